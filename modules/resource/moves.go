package resource

// VolumeMove is a local volume on its way to another host. Two hosts have something of it; of both
// the platform is told until one of them has nothing any more.
//
//	Copying   the volume's host has put it away, and the other one fetches it
//	Switched  it is on the host it was to go to, and the former one has put it away still
//	Removing  the other host takes away what it has of it
type VolumeMove struct {
	// ID is no other move's.
	ID    string    `json:"id"`
	Stage MoveStage `json:"stage" enum:"Copying,Switched,Removing"`
	// Node is the other host: the one that it goes to, and once it is there the one that it was on.
	Node     string `json:"node,omitempty" doc:"The other host that has something of it"`
	NodeUID  string `json:"nodeUID,omitempty"`
	Pool     string `json:"pool,omitempty" hidden:"true"` // UID of that host's pool; see VolumeStatus.Pool
	FirstUID uint32 `json:"firstUID,omitempty"`
	// Away says that the volume's host has put it away, and Copied that the other one has all of it.
	Away   bool `json:"away,omitempty" doc:"No machine sees it: it can be copied"`
	Copied bool `json:"copied,omitempty" doc:"The other host has all of it"`
	// Removed says that the other host has nothing of it any more.
	Removed bool `json:"removed,omitempty"`
	// Followed says that the cluster's PersistentVolume names the host on which pods will have it.
	Followed bool `json:"followed,omitempty" doc:"The cluster runs pods that use it where it goes"`
}

// Step is what hosts are told that their reports are of: "" for none.
func (m *VolumeMove) Step() string {
	if m == nil {
		return ""
	}
	return m.ID + "/" + string(m.Stage)
}

// MoveStage is how far a move is.
type MoveStage string

// The stages of a move. One that is given up goes from Copying to Removing.
const (
	MoveCopying  MoveStage = "Copying"
	MoveSwitched MoveStage = "Switched"
	MoveRemoving MoveStage = "Removing"
)

// Home is the UID of the node on which pods have a volume, or will have it once it has moved.
func (s *VolumeStatus) Home() string {
	if m := s.Moving; m != nil && m.Stage == MoveCopying {
		return m.NodeUID
	}
	return s.NodeUID
}

// MovingOn says whether a node, by its UID, is the other host of a volume that moves.
func (s *VolumeStatus) MovingOn(node string) bool {
	return s.Moving != nil && s.Moving.NodeUID == node && node != ""
}

// remains are what the other host still has of a volume whose move is over, nil for nothing. It is a copy.
func (s *VolumeStatus) remains() *VolumeMove {
	if s.Moving == nil {
		return nil
	}
	m := *s.Moving
	m.Stage = MoveRemoving
	return &m
}
