package resource

// DefaultPool is the name of the pool that each host has by itself: a folder beside what else the
// platform keeps there. Its UID is empty.
const DefaultPool = "default"

// NodePool is a place for volumes that an operator has given a node: a disk, a partition or a folder.
type NodePool struct {
	Name string `json:"name" maxLength:"57" example:"fast"`
	// UID is written on the disk, or into the folder, and is how it is found again: names of disks change.
	UID    string `json:"uid"`
	Device string `json:"device,omitempty" doc:"The disk or partition that it is made of, as it was called then" example:"/dev/sdb"`
	Path   string `json:"path,omitempty" doc:"The folder that it is" example:"/srv/volumes"`
	// Erase is the serial number of a device of which what it holds may be destroyed to make the pool. It is consent to one
	// try, and goes once its host has made that.
	Erase string `json:"erase,omitempty" doc:"Serial number of the device whose data may be destroyed"`
	// Removing: nothing new is placed there, and its host lets go of it.
	Removing bool `json:"removing,omitempty" doc:"It is being taken away"`
	// Lost: it will not come back, and what is in it is lost.
	Lost bool `json:"lost,omitempty" doc:"It will not come back; what is in it is lost"`
}

// Pool is where a node has volumes.
type Pool struct {
	Name      string `json:"name" example:"default"`
	UID       string `json:"uid,omitempty" doc:"Empty: the host's own folder"`
	Path      string `json:"path"`
	Device    string `json:"device,omitempty" doc:"What the disk is called now" example:"/dev/sdb"`
	Serial    string `json:"serial,omitempty" doc:"The disk's serial number"`
	SizeBytes int64  `json:"sizeBytes"`
	FreeBytes int64  `json:"freeBytes"`
	// CapacityBytes is what can be promised to volumes; 0 of a host's own folder, which shares the host's disk
	// with machines.
	CapacityBytes int64 `json:"capacityBytes,omitempty" doc:"What volumes may be promised there"`
	// PromisedBytes is what volumes, copies and snapshots there have been promised. It is computed for those who ask.
	PromisedBytes int64 `json:"promisedBytes,omitempty" doc:"What volumes have been promised there"`
	// Reflink: copies of volumes share blocks there.
	Reflink bool `json:"reflink,omitempty" doc:"Snapshots and clones take no time and no room"`
	// Copies: its agent knows snapshots, and volumes that are made from something. One from before
	// would make them empty.
	Copies bool `json:"copies,omitempty" doc:"Volumes can be copied there"`
	// Made: it has been there. From then on nothing is made anew in its place.
	Made bool `json:"made,omitempty" doc:"It has been there"`
	// Tried: its host has made the one try to which NodePool.Erase of this pool is consent.
	Tried   bool   `json:"tried,omitempty" doc:"The consent to erase its device was used"`
	Removed bool   `json:"removed,omitempty" doc:"The host has let go of it"`
	Health  string `json:"health,omitempty" doc:"What the disk (SMART) and kernel say: ok, unknown, or what is wrong" example:"ok"`
	Note    string `json:"note,omitempty" doc:"What an operator should know of it"`
	Message string `json:"message,omitempty" doc:"Why it is not there now"`
}

// What Health says of a pool of which nothing bad is known, and of one of which nothing is.
const (
	PoolWell          = "ok"
	PoolHealthUnknown = "unknown"
)

// Ails says whether a pool's disk, or the kernel, says that it is not well.
func (p Pool) Ails() bool {
	return p.Health != "" && p.Health != PoolWell && p.Health != PoolHealthUnknown
}

// PoolAt is a pool of a node, by their UIDs.
type PoolAt struct{ Node, Pool string }

// PromisedToVolumes sums up what volumes have been promised, in bytes.
func PromisedToVolumes(volumes []*Volume) map[PoolAt]int64 {
	promised := map[PoolAt]int64{}
	for _, v := range volumes {
		if v.Status.NodeUID != "" {
			promised[PoolAt{v.Status.NodeUID, v.Status.Pool}] += v.Spec.SizeBytes
		}
		if m := v.Status.Moving; m != nil {
			promised[PoolAt{m.NodeUID, m.Pool}] += v.Spec.SizeBytes
		}
		for _, b := range v.AllBricks() {
			if !b.Removed {
				promised[PoolAt{b.NodeUID, b.Pool}] += BrickBytes(v.Spec.SizeBytes, b.Arbiter)
			}
		}
	}
	return promised
}

// PromisedToSnapshots sums up what snapshots have been promised, in bytes.
func PromisedToSnapshots(snapshots []*Snapshot) map[PoolAt]int64 {
	promised := map[PoolAt]int64{}
	for _, s := range snapshots {
		promised[PoolAt{s.Status.NodeUID, s.Status.Pool}] += s.Asks().VolumeBytes
	}
	return promised
}

// Pool is what is seen of the node's pool with this UID, nil if nothing is.
func (n *Node) Pool(uid string) *Pool {
	for i := range n.Status.Pools {
		if n.Status.Pools[i].UID == uid {
			return &n.Status.Pools[i]
		}
	}
	return nil
}

// WantedPool is the node's pool with this UID as it shall be; nil for its own folder, and if there is none.
func (n *Node) WantedPool(uid string) *NodePool {
	for i := range n.Spec.Pools {
		if n.Spec.Pools[i].UID == uid && uid != "" {
			return &n.Spec.Pools[i]
		}
	}
	return nil
}

// Keeps says whether the node shall go on having its pool with this UID.
func (n *Node) Keeps(uid string) bool {
	want := n.WantedPool(uid)
	return uid == "" || want != nil && !want.Removing && !want.Lost
}

// LostPool says whether what is in the node's pool with this UID was given up, and the node itself may live.
func (n *Node) LostPool(uid string) bool {
	want := n.WantedPool(uid)
	return want != nil && want.Lost
}

// TakesIn says whether new volumes can be put into the node's pool with this UID now.
func (n *Node) TakesIn(uid string) bool {
	p := n.Pool(uid)
	return p != nil && p.Message == "" && n.Keeps(uid)
}

// HasPool says whether volumes can be made on it now. away is whether it has a place for some that isn't there.
func (n *Node) HasPool() (ok, away bool) {
	for _, p := range n.Status.Pools {
		ok, away = ok || n.TakesIn(p.UID), away || p.Message != ""
	}
	return ok, away && !ok
}

// IsIn says whether a volume, or a copy of it, is in a pool.
func (v *Volume) IsIn(at PoolAt) bool {
	for _, b := range v.AllBricks() {
		if !b.Removed && at == (PoolAt{b.NodeUID, b.Pool}) {
			return true
		}
	}
	if m := v.Status.Moving; m != nil && !m.Removed && at == (PoolAt{m.NodeUID, m.Pool}) {
		return true
	}
	return v.Status.NodeUID != "" && at == (PoolAt{v.Status.NodeUID, v.Status.Pool})
}
