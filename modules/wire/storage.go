package wire

import (
	"net/netip"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// Hosts with shared volumes know each other by certificates of an authority that is used for
// nothing else: the common name is the node's UID. They are for StorageCertificateLife, since
// glusterd refuses one that has expired and a host may be without its server for long. An agent
// gets new ones every StorageCertificateRenew by its own clock.
const (
	// StorageCertificatePath takes a JoinRequest with the CSR alone: JoinResponse.
	StorageCertificatePath  = AgentPath + "storage-certificate"
	StorageCertificateLife  = 5 * 365 * 24 * time.Hour
	StorageCertificateRenew = 365 * 24 * time.Hour
)

// Pool is a disk or folder in which a host shall have volumes.
type Pool struct {
	resource.NodePool
	// Made says that the host has had it: one that isn't there is away, and none is made anew.
	Made bool `json:"made,omitempty"`
}

// CopyDriver is among the Drivers in the reports of hosts that know Brick.Source and ClusterBrick.Filling.
const CopyDriver = resource.CopyDriver

// StorageDriver is among the Drivers in the reports of hosts that can have shared volumes.
const StorageDriver = resource.StorageDriver

// BlockDriver is among the Drivers in the reports of hosts that can show machines raw blocks.
const BlockDriver = resource.BlockDriver

// MoveDriver is among the Drivers in the reports of hosts whose volumes can move: an agent that knows no
// Volume.Incoming would make an empty one.
const MoveDriver = "move"

// Arrival is the ID of the move by which a volume comes to this host, or has come before anybody relies on that; ""
// for another. Then nothing but what came by this very move is the volume: what else the host may have of it is older.
func (v Volume) Arrival() string {
	id, stage, _ := strings.Cut(v.Move, "/") // resource.VolumeMove.Step
	if v.Incoming || stage == string(resource.MoveSwitched) && !v.Keep {
		return id
	}
	return ""
}

// Storage is a host's part in shared volumes. A host has one as long as it has a brick, and then
// until the cluster has forgotten it (Report.StorageMembers): one that the others take for theirs
// and that knows nothing of them could not come back.
type Storage struct {
	// Bricks are this host's, those that it shall take away too.
	Bricks []Brick `json:"bricks,omitempty"`
	// Cluster is what the host that leads shall bring about; nil on all others.
	Cluster *Cluster `json:"cluster,omitempty"`
	// Scrubs are volumes whose copies this host shall compare.
	Scrubs []Scrub `json:"scrubs,omitempty"`
	// Renew has what serves bricks be started anew, if it is Report.StorageOld.
	Renew bool `json:"renew,omitempty"`
}

// Brick is one replica of a shared volume on a host.
type Brick struct {
	Key       string `json:"key"`            // of the volume
	Volume    string `json:"volume"`         // the volume's UID
	UID       string `json:"uid"`            // the brick's; no other ever has it
	NetworkID string `json:"networkId"`      // of its workspace
	Pool      string `json:"pool,omitempty"` // see Volume
	SizeBytes int64  `json:"sizeBytes"`
	// Made says that the host has had it: an image that isn't there is a loss, and no empty
	// one takes its place.
	Made bool `json:"made,omitempty"`
	// Source is as a Volume's, of a snapshot of another brick, or of that itself. Only a host whose Drivers name CopyDriver
	// is told.
	Source string `json:"source,omitempty"`
	// Encrypted is as a Volume's.
	Encrypted bool `json:"encrypted,omitempty"`
	// Remove says: destroy it, and report Removed.
	Remove bool `json:"remove,omitempty"`
}

// Cluster is GlusterFS as it shall be, as far as glusterd knows of it. A peer that isn't named has
// no brick any more, and is to be forgotten; a volume that isn't named stays as it is.
type Cluster struct {
	Peers   []Peer          `json:"peers,omitempty"` // all hosts with bricks, the one that leads included
	Volumes []ClusterVolume `json:"volumes,omitempty"`
}

// Peer is a host of the cluster.
type Peer struct {
	UID     string     `json:"uid"` // the node's: the common name of its certificate
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
}

// ClusterVolume is a shared volume as glusterd shall have it.
type ClusterVolume struct {
	Key       string         `json:"key"`
	UID       string         `json:"uid"`       // GlusterName makes its name of it
	NetworkID string         `json:"networkId"` // of its workspace
	Bricks    []ClusterBrick `json:"bricks"`    // in order, an arbiter last
	Arbiter   bool           `json:"arbiter,omitempty"`
	// Hosts are the common names of the certificates of hosts that may have it: those of its
	// bricks, and those of the workspace's machines.
	Hosts []string `json:"hosts"`
	// Made says that glusterd has had it: if it has it no more, none is made anew.
	Made bool `json:"made,omitempty"`
	// Look grows when somebody wants to know anew how its bricks are: see ClusterBrickReport.
	Look int64 `json:"look,omitempty"`
	// Stop says: it is in the trash. Nobody has it, not even who had it, and what is in its bricks stays.
	Stop bool `json:"stop,omitempty"`
	// Remove says: have glusterd forget it, and report Removed. Bricks stay.
	Remove bool `json:"remove,omitempty"`
}

// ClusterBrick is a brick as the host that leads knows it.
type ClusterBrick struct {
	UID     string     `json:"uid"`
	Address netip.Addr `json:"address"` // its host's
	Ready   bool       `json:"ready"`   // its host has made it
	// Lost says that its host was given up and comes back no more. glusterd changes and forgets nothing of
	// volumes while a host is away; one with none but lost bricks is given up there too.
	Lost bool `json:"lost,omitempty"`
	// Replaces is the UID of the brick whose place it takes, "" for none. Once glusterd has it
	// there, it does not matter any more.
	Replaces string `json:"replaces,omitempty"`
	// ReplacesLost is Lost of that one.
	ReplacesLost bool `json:"replacesLost,omitempty"`
	// Filling says that it is empty: the volume is made of the others, and they give it what they have.
	Filling bool `json:"filling,omitempty"`
}

// GlusterName is what GlusterFS calls the shared volume of this UID.
func GlusterName(uid string) string { return strings.ToLower(uid) }

// BrickReport is what a host knows about a brick. See MachineReport for Removed.
type BrickReport struct {
	Key       string `json:"key"` // of the volume
	UID       string `json:"uid"`
	Ready     bool   `json:"ready"` // it is there, with SizeBytes
	SizeBytes int64  `json:"sizeBytes,omitempty"`
	UsedBytes int64  `json:"usedBytes,omitempty"`
	// Server is another text after what serves the host's bricks was started anew, all of it; "": it isn't known.
	Server  string `json:"server,omitempty"`
	Removed bool   `json:"removed,omitempty"`
	Message string `json:"message,omitempty"`
}

// ClusterReport is what the host that leads knows about a shared volume.
type ClusterReport struct {
	Key     string `json:"key"`
	UID     string `json:"uid"`
	Ready   bool   `json:"ready"`             // glusterd has it as it shall be, and started
	Stopped bool   `json:"stopped,omitempty"` // nobody has it any more; only of one that shall be
	Removed bool   `json:"removed,omitempty"`
	// Bricks are those that glusterd has in it, in order. None: they could not be asked for.
	Bricks  []ClusterBrickReport `json:"bricks,omitempty"`
	Message string               `json:"message,omitempty"`
}

// ClusterBrickReport is a brick as the cluster sees it.
type ClusterBrickReport struct {
	UID    string `json:"uid"`
	Online bool   `json:"online"`
	// Heal is how many files and folders others have to be given by it; -1 if nobody could be asked since bricks came or went.
	Heal int64 `json:"heal,omitempty"`
	// Looked is the ClusterVolume.Look after which all this was asked; 0 if that isn't known. Process is the one that serves it
	// on its host, with others.
	Looked  int64 `json:"looked,omitempty"`
	Process int   `json:"process,omitempty"`
}
