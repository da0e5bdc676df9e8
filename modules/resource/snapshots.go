package resource

import "time"

// Snapshot is what a volume held at a moment, as after a power cut, on the volume's host. It stands
// by itself: the volume may be deleted.
type Snapshot struct {
	InWorkspace
	Spec   SnapshotSpec   `json:"spec"`
	Status SnapshotStatus `json:"status" readOnly:"true"`
}

// SnapshotSpec is what the tenant wants. It never changes.
type SnapshotSpec struct {
	Volume    string `json:"volume" maxLength:"63" doc:"Name of the volume that it is of" example:"db"`
	VolumeUID string `json:"volumeUID,omitempty" readOnly:"true"`
	// Provisioned snapshots go when their cluster says so.
	Provisioned bool `json:"provisioned,omitempty" readOnly:"true" doc:"It was made for a VolumeSnapshot, and goes with it"`
	// Until is when the platform deletes it; nil: a person does.
	Until *time.Time `json:"until,omitempty" doc:"It is deleted then; it can't be changed later"`
	// Class is its volume's; empty, in those from before: local.
	Class string `json:"class,omitempty" readOnly:"true" doc:"Its volume's class"`
	// Encrypted says that its volume is, with whose key it is too.
	Encrypted bool `json:"encrypted,omitempty" readOnly:"true" doc:"As its volume is"`
	// Block says that its volume has no file system.
	Block bool `json:"block,omitempty" readOnly:"true" doc:"As its volume is"`
	// SizeBytes is what the volume has at most; the snapshot is promised as much.
	SizeBytes int64 `json:"sizeBytes,omitempty" readOnly:"true" doc:"The volume's limit when it was asked for"`
}

// SnapshotStatus is what the platform sees.
type SnapshotStatus struct {
	State
	// Node is the host that it is on, its volume's.
	Node      string     `json:"node,omitempty" doc:"The host that it is on"`
	NodeUID   string     `json:"nodeUID,omitempty"`
	Pool      string     `json:"pool,omitempty" hidden:"true"` // UID of that host's pool, its volume's; see VolumeStatus.Pool
	FirstUID  uint32     `json:"firstUID,omitempty"`
	SizeBytes int64      `json:"sizeBytes,omitempty" doc:"What a volume has at least that is made from it"`
	UsedBytes int64      `json:"usedBytes,omitempty" doc:"What it takes of the host's disk, what it shares with others included"`
	ReadyAt   *time.Time `json:"readyAt,omitempty" doc:"Since when it can be used; what it holds is a little older"`
	Copy      *BrickCopy `json:"copy,omitempty" hidden:"true"` // of a shared volume's
}

// The conditions of a snapshot.
const (
	SnapshotReady   = "Ready"   // the host has made it
	SnapshotRemoved = "Removed" // the host has taken everything of it away
)

// Kind is "snapshots".
func (*Snapshot) Kind() string { return "snapshots" }

// State is what its controller says.
func (s *Snapshot) State() State { return s.Status.State }

// Asks counts it as a volume of its size: what it shares with others now it may have alone later.
func (s *Snapshot) Asks() Limits {
	return Limits{Snapshots: 1, VolumeBytes: max(s.Spec.SizeBytes, s.Status.SizeBytes)}
}

// Usable says that volumes can be made from it.
func (s *Snapshot) Usable() bool { return s.Made() && s.Status.Copy.Whole() }

// Made says that its host has had it.
func (s *Snapshot) Made() bool { return s.Status.SizeBytes > 0 }
