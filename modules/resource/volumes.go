package resource

// Volume is storage of one workspace, with a size that is a limit.
type Volume struct {
	InWorkspace
	Spec   VolumeSpec   `json:"spec"`
	Status VolumeStatus `json:"status" readOnly:"true"`
}

// The classes of volumes.
const (
	// LocalVolume is on the disk of one host, and lost with it.
	LocalVolume = "local"
)

// MinVolumeBytes is the smallest volume: XFS isn't made smaller.
const MinVolumeBytes = 300 << 20

// MaxVolumeBytes is the largest: 256 TiB, which keeps sums far from the end of the numbers.
const MaxVolumeBytes = 1 << 48

// VolumeSpec is what the tenant wants.
type VolumeSpec struct {
	Class     string `json:"class,omitempty" enum:"local,shared" doc:"local, the default, is on one host; shared is on several"`
	SizeBytes int64  `json:"sizeBytes" minimum:"0" doc:"A limit, in whole MiB; it can grow and not shrink" example:"10737418240"`
	// Replicas is how many hosts have a copy of a shared volume's data. 0: three, if the platform has so
	// many hosts for it, else one. It is decided once; there are as many as Status.Bricks says.
	Replicas int `json:"replicas,omitempty" minimum:"0" maximum:"3" doc:"Of a shared volume: on how many hosts its data is"`
	// Arbiter makes two copies safe: a third host that keeps names and no data.
	Arbiter   bool `json:"arbiter,omitempty" doc:"Of a shared volume with 2 replicas: a third host knows which one is right"`
	Encrypted bool `json:"encrypted,omitempty" doc:"Its data can't be read from its hosts' disks without a key of the servers"`
	// Block has it be without a file system.
	Block bool `json:"block,omitempty" doc:"Of a local volume: pods get raw blocks, without a file system; it can't be changed"`
	// Source is what it is made from; nil: it is made with nothing in it.
	Source *VolumeSource `json:"source,omitempty" doc:"What it is made from; it can't be changed later"`
	// Import has it be made from a file that is sent: nobody has it before all of that is there.
	Import bool `json:"import,omitempty" doc:"What is in it is sent as a file, by volumes.import; it can't be changed later"`
	// Claim is the PersistentVolumeClaim that it was made for or is bound to.
	Claim string `json:"claim,omitempty" readOnly:"true" doc:"The claim that has it: NAMESPACE/NAME" example:"default/data"`
	// Place is the host that it was moved to last, as the workspace calls it; "" if it never was.
	Place string `json:"place,omitempty" readOnly:"true" doc:"The host that it was moved to last"`
	// Provisioned volumes go when their cluster says so. The mark goes once a person has bound or
	// unbound one: from then on it is a person who deletes it.
	Provisioned bool `json:"provisioned,omitempty" readOnly:"true" doc:"It was made for its claim, and goes with it"`
}

// VolumeSource is what a volume is made from: a snapshot, or another volume as it is then. One of the two
// is named.
type VolumeSource struct {
	Snapshot string `json:"snapshot,omitempty" maxLength:"63" doc:"Name of a snapshot" example:"db-before"`
	Volume   string `json:"volume,omitempty" maxLength:"63" doc:"Name of another volume"`
	UID      string `json:"uid,omitempty" readOnly:"true"`
}

// VolumeStatus is what the platform sees.
type VolumeStatus struct {
	State
	// Node is the host that it is on: it is chosen once.
	Node    string `json:"node,omitempty" doc:"The host that it is on"`
	NodeUID string `json:"nodeUID,omitempty"`
	// Pool is the UID of that host's pool that it is in, for good; empty: in the host's own folder.
	Pool string `json:"pool,omitempty" hidden:"true"`
	// FirstUID is the host's user that its root folder belongs to: root in the machines. In shared ones it is 0: see
	// wire.Volume.
	FirstUID  uint32 `json:"firstUID,omitempty"`
	SizeBytes int64  `json:"sizeBytes,omitempty" doc:"What it has now"`
	UsedBytes int64  `json:"usedBytes,omitempty" doc:"What of that is used, as last seen"`
	// Bricks are the copies of a shared volume, in GlusterFS's order, an arbiter last.
	Bricks []VolumeBrick `json:"bricks,omitempty" doc:"The copies of a shared volume"`
	// Look counts how often somebody wanted to know anew how its bricks are.
	Look int64 `json:"look,omitempty" hidden:"true"`
	// Copy is of a shared volume that is made from another; nil: from a snapshot, or from nothing.
	Copy *BrickCopy `json:"copy,omitempty" hidden:"true"`
	// Scrub is nil before it was first wanted.
	Scrub *VolumeScrub `json:"scrub,omitempty" doc:"Of a shared volume: whether its copies were found to be the same"`
	// Leaving are bricks whose places others have taken, on hosts that are being removed: they are kept until those
	// have all that is in them, and their hosts have then taken them away.
	Leaving []VolumeBrick `json:"leaving,omitempty" doc:"Copies whose place others have taken, until they are gone"`
	// Moving is of one on its way to another host, until its former one has nothing of it any more.
	Moving *VolumeMove `json:"moving,omitempty" doc:"Of a local volume on its way to another host"`
	// Trash is said once, of a volume that goes there; it is not stored.
	Trash string `json:"trash,omitempty" doc:"What it is called in the trash"`
	// Attachments are the machines of the workspace on that host: all of them see it.
	Attachments []VolumeAttachment `json:"attachments,omitempty" doc:"The machines on that host, whose pods can use it"`
}

// HideHosts takes out where it is, which is not for tenants.
func (s *VolumeStatus) HideHosts() {
	s.Node, s.NodeUID, s.Pool, s.Leaving, s.Copy, s.Look = "", "", "", nil, nil, 0
	if m := s.Moving; m != nil {
		m.Node, m.NodeUID, m.Pool = "", "", ""
	}
	for i := range s.Bricks {
		b := &s.Bricks[i]
		b.Node, b.NodeUID, b.Pool, b.Looked, b.Process, b.Falls, b.Server = "", "", "", 0, 0, 0, ""
	}
}

// VolumeAttachment is a machine that shall see a volume.
type VolumeAttachment struct {
	Machine    string `json:"machine" doc:"Its name" example:"shop-1"`
	MachineUID string `json:"machineUID"`
	Attached   bool   `json:"attached" doc:"Whether it sees it"`
	Message    string `json:"message,omitempty" doc:"Why not"`
}

// The conditions of a volume, in the order they come true.
const (
	VolumePlaced  = "Placed"  // a host was chosen
	VolumeReady   = "Ready"   // the host has made it, with the size that is wanted
	VolumeKept    = "Kept"    // in the trash: no machine sees it any more
	VolumeRemoved = "Removed" // the host has taken everything of it away
)

// VolumeImporting is the reason why a volume is not Ready that is made from a file, of which not all is there. It is
// final if that can't be unpacked.
const VolumeImporting = "Importing"

// Attached says whether some machine sees it, and otherwise why none does, if that is known.
func (v *Volume) Attached() (ok bool, why string) {
	for _, a := range v.Status.Attachments {
		if a.Attached {
			return true, ""
		}
		if a.Message != "" {
			why = "machine " + a.Machine + ": " + a.Message
		}
	}
	return false, why
}

// Made says that its host has had it.
func (v *Volume) Made() bool { return v.Status.SizeBytes > 0 }

// Importing says that it is made from a file, of which not all is there.
func (v *Volume) Importing() bool {
	return v.Spec.Import && !v.Made() && !v.Status.Conditions.Is(VolumeImported)
}

// Kind is "volumes".
func (*Volume) Kind() string { return "volumes" }

// State is what its controller says.
func (v *Volume) State() State { return v.Status.State }

// Asks counts it by the size that it may grow to.
func (v *Volume) Asks() Limits { return Limits{Volumes: 1, VolumeBytes: v.Spec.SizeBytes} }

// How many volumes may be on a host, and how many of one workspace: each is mounted once, and
// once more for each machine there that sees it. A kernel has 100,000 mounts in one namespace.
const (
	MaxVolumesOnHost          = 1000
	MaxWorkspaceVolumesOnHost = 250
)

// How many mounts of shared volumes a host has, and how many of one workspace: for each machine there and each volume a client
// runs, which takes 11 MB.
const (
	MaxMountsOnHost          = 1000
	MaxWorkspaceMountsOnHost = MaxWorkspaceVolumesOnHost
)

// How many shared volumes a host writes files into at a time, and how many of one workspace: the mounts are there while
// nobody sends, too.
const (
	MaxImportsOnHost          = 16
	MaxWorkspaceImportsOnHost = 2
)

// How many snapshots may be on a host, and how many of one workspace: nothing of them is mounted, but all are
// told to the host, some 300 bytes each, and looked at.
const (
	MaxSnapshotsOnHost          = 4000
	MaxWorkspaceSnapshotsOnHost = 1000
)

// VolumeKey is what an encrypted volume is encrypted with, or a snapshot of one, under the name of its UID. It is
// there from when that is placed until its host is told to destroy it: without it nobody
// reads what is left. It stands in the organization, for it outlives the workspace in the trash. No API
// operation returns one.
type VolumeKey struct {
	InOrganization
	Sealed []byte `json:"sealed"` // with the servers' key, for the organization
}

// Kind is "volumekeys".
func (*VolumeKey) Kind() string { return "volumekeys" }
