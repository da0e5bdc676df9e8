package resource

import (
	"fmt"
	"slices"
	"time"
)

// StorageDriver is among the Drivers of hosts that can have shared volumes.
const StorageDriver = "glusterfs"

// BlockDriver is among the Drivers of hosts that can show machines raw blocks.
const BlockDriver = "blocks"

// ShowsBlocks says whether volumes of raw blocks can be on a node.
func (n *Node) ShowsBlocks() bool { return slices.Contains(n.Status.Drivers, BlockDriver) }

// EncryptionDriver is among the Drivers of hosts that can encrypt volumes.
const EncryptionDriver = "luks"

// SharedVolume has copies on several hosts, and all machines of its workspace see it.
const SharedVolume = "shared"

// VolumeBrick is one copy of a shared volume: a file system on a host, as GlusterFS calls it.
type VolumeBrick struct {
	UID string `json:"uid"`
	// Node is the host that it is on: a copy that is somewhere else is another brick.
	Node    string `json:"node,omitempty" doc:"The host that it is on"`
	NodeUID string `json:"nodeUID,omitempty"`
	Pool    string `json:"pool,omitempty" hidden:"true"` // UID of that host's pool; see VolumeStatus.Pool
	Arbiter bool   `json:"arbiter,omitempty" doc:"It has the names of files and no data, and knows which copy is right"`
	// Replaces is the brick whose place it takes, until GlusterFS has it there.
	Replaces string `json:"replaces,omitempty"`
	// Filling says that it was empty when others had data, and has not had all of that yet: it is no copy to go on with.
	Filling   bool  `json:"filling,omitempty" doc:"It is given what others have, and hasn't all yet"`
	SizeBytes int64 `json:"sizeBytes,omitempty" doc:"What it has now"`
	UsedBytes int64 `json:"usedBytes,omitempty" doc:"What of that is used, as last seen"`
	Ready     bool  `json:"ready,omitempty" doc:"Its host has it, with its size"`
	Online    bool  `json:"online,omitempty" doc:"The others reach it"`
	// Heal counts what it has and others lack; -1: some were away, and how many there are isn't known yet. HealingSince is
	// by the server's clock.
	Heal         int64     `json:"heal,omitempty" doc:"How many files and folders others have to be given by it; -1: not known yet"`
	HealingSince time.Time `json:"healingSince,omitzero" doc:"Since when there are some"`
	// GivenSince is since when it is given what others have and it hasn't, for all that is known, by the server's clock; zero:
	// it isn't, or it has never been away.
	GivenSince time.Time `json:"givenSince,omitzero" doc:"Since when it is given what it lacks"`
	// Looked is the Status.Look after which Heal was asked, 0 if that isn't known. Process is the one that serves it.
	Looked  int64 `json:"looked,omitempty" hidden:"true"`
	Process int   `json:"process,omitempty" hidden:"true"`
	// Falls counts how often it was seen to go away, to be served by another process, or to have what others lack, when that
	// wasn't so before. Server is the start of what its host serves all bricks with, as that says; "": not known.
	Falls   int64  `json:"falls,omitempty" hidden:"true"`
	Server  string `json:"server,omitempty" hidden:"true"`
	Removed bool   `json:"removed,omitempty" doc:"Its host has taken it away"`
	// Mended counts files that were not as in the other copies when they were compared, and were made so.
	Mended   int64     `json:"mended,omitempty" doc:"How many of its files were not as in the other copies, and were mended"`
	MendedAt time.Time `json:"mendedAt,omitzero" doc:"When some were last"`
	Message  string    `json:"message,omitempty" doc:"Why it isn't ready"`
}

// The conditions of a shared volume besides the others.
const (
	VolumeServed     = "Served"     // GlusterFS has it, made of its bricks
	VolumeReplicated = "Replicated" // all its copies are there, and the same; none of a volume with one
	VolumeUnserved   = "Unserved"   // GlusterFS has forgotten it: its bricks can be taken away
	// VolumeCopiesStay is False while a copy is on a host that is being removed.
	VolumeCopiesStay = "CopiesStay"
	// VolumeImported is True once all is in it of the file that it is made from.
	VolumeImported = "Imported"
)

// BrickBytes is what a brick takes of its host's disk. For each file an arbiter has an inode of 512
// bytes, names, and what GlusterFS knows of it: about 1 KiB together, so a sixteenth is enough
// for files of 16 KiB and more.
func BrickBytes(size int64, arbiter bool) int64 {
	if !arbiter {
		return size
	}
	return (max(size/16, MinVolumeBytes) + 1<<20 - 1) &^ (1<<20 - 1)
}

// Brick is the brick with this UID, nil if there is none.
func (v *Volume) Brick(uid string) *VolumeBrick {
	for i := range v.Status.Bricks {
		if v.Status.Bricks[i].UID == uid {
			return &v.Status.Bricks[i]
		}
	}
	return nil
}

// AllBricks are its copies, and those that are leaving.
func (v *Volume) AllBricks() []VolumeBrick { return slices.Concat(v.Status.Bricks, v.Status.Leaving) }

// FileHost is the host that writes a volume's file into it, by its name and UID: of a shared one that of its first copy.
func (v *Volume) FileHost() (node, uid string) {
	if len(v.Status.Bricks) > 0 {
		return v.Status.Bricks[0].Node, v.Status.Bricks[0].NodeUID
	}
	return v.Status.Node, v.Status.NodeUID
}

// Whole says whether all its copies are there, and the same, as far as was heard last.
func (v *Volume) Whole() bool {
	return len(v.Status.Bricks) > 0 && !slices.ContainsFunc(v.Status.Bricks, func(b VolumeBrick) bool {
		return !b.Online || b.Replaces != "" || b.Heal != 0 || b.Filling
	})
}

// Going says that its hosts shall take it away: it is deleted, and nothing is made from it any more.
func (v *Volume) Going() bool { return v.Deleting() && v.Status.Phase == Deleting }

// Given says how many bytes are used in a copy that is given what it lacks, of how many in the fullest of those that have all.
// It is an estimate: hosts say it now and then, what is written meanwhile counts in both, and of a copy that lacks the new
// content of old files nothing is to be seen. ok: it is given something, and both are known.
func (v *Volume) Given(b VolumeBrick) (has, all int64, ok bool) {
	if b.GivenSince.IsZero() || b.Arbiter || !b.Online {
		return 0, 0, false
	}
	for _, o := range v.Status.Bricks {
		if o.Online && !o.Arbiter && !o.Filling && o.Replaces == "" && o.GivenSince.IsZero() {
			all = max(all, o.UsedBytes)
		}
	}
	return min(b.UsedBytes, all), all, all > 0 && b.UsedBytes > 0
}

// GivenText says how far a copy is that is given what it lacks; "" if none is.
func (v *Volume) GivenText(b VolumeBrick) string {
	if b.GivenSince.IsZero() || !b.Online {
		return ""
	}
	text := "since " + b.GivenSince.UTC().Format(time.RFC3339)
	lacking := int64(0)
	for _, o := range v.Status.Bricks {
		lacking = max(lacking, o.Heal)
	}
	if lacking > 0 {
		text = fmt.Sprintf("%d files and folders to go, %s", lacking, text)
	}
	if has, all, ok := v.Given(b); ok {
		text = fmt.Sprintf("about %s of %s, %s", Bytes.Text(has), Bytes.Text(all), text)
	}
	return text
}

// Filled says whether some of its copies hadn't all that others have when that was heard last.
func (v *Volume) Filled() bool {
	return slices.ContainsFunc(v.Status.Bricks, func(b VolumeBrick) bool { return b.Filling })
}

// CopyDriver is among the Drivers of hosts that can copy shared volumes.
const CopyDriver = "shared-copies"

// CopiesShared says whether a host can.
func (n *Node) CopiesShared() bool { return slices.Contains(n.Status.Drivers, CopyDriver) }

// SharedFileDriver is among the Drivers of hosts that read shared volumes into files, and write them from such.
const SharedFileDriver = "shared-file"

// FilesShared says whether a host does.
func (n *Node) FilesShared() bool { return slices.Contains(n.Status.Drivers, SharedFileDriver) }

// BrickCopy is how far a copy of a shared volume is, which is one of its bricks as that was at some moment. All others have the
// same before, and after: then it has all that anybody was told is written.
type BrickCopy struct {
	Brick string `json:"brick"` // its UID
	// Look is the volume's Status.Look that is waited for; 0: none.
	Look int64 `json:"look,omitempty"`
	// Seen is what the volume's bricks were when all had the same, see Volume.Processes; "": they haven't been seen
	// so yet, and no host copies anything.
	Seen string `json:"seen,omitempty"`
	// Checked says that they were the same again once it was made, with nothing else in between.
	Checked bool `json:"checked,omitempty"`
}

// Whole says whether it can be relied on. What is no copy of a brick can be.
func (c *BrickCopy) Whole() bool { return c == nil || c.Checked }

// Failed says whether it can never be relied on, and nobody ever had it.
func (c *BrickCopy) Failed(conditions Conditions) bool {
	ready := conditions.Get(VolumeReady)
	return !c.Whole() && ready != nil && ready.Final
}

// Due says whether its host shall make it.
func (c *BrickCopy) Due() bool { return c == nil || c.Seen != "" }

// Processes are those that serve a volume's bricks, as a text that is another once one has ended, or its brick has
// missed something. looked: what is known of them was asked after this Status.Look.
func (v *Volume) Processes(look int64) (text string, looked bool) {
	looked = true
	for _, b := range v.Status.Bricks {
		looked = looked && b.Looked >= look
		text += fmt.Sprintf("%s=%d/%d ", b.UID, b.Process, b.Falls)
	}
	return text, looked
}

// Shares says whether a host is one for shared volumes, be it silent now.
func (n *Node) Shares() bool {
	has, away := n.HasPool()
	return !n.Deleting() && (has || away) && n.Status.Address.IsValid() && slices.Contains(n.Status.Drivers, StorageDriver)
}

// Encrypts says whether a host can encrypt volumes.
func (n *Node) Encrypts() bool { return slices.Contains(n.Status.Drivers, EncryptionDriver) }

// Lost says that nothing is left of what it held. One that can't be made from its file any more isn't: its copies are there.
func (v *Volume) Lost() bool {
	c := v.Status.Conditions.Get(VolumeReady)
	return c != nil && c.Final && c.Reason != VolumeImporting
}

// MovesFrom says whether a volume leaves a node by itself that is removed: others have what is in it, and one of nodes could
// have its copy, if there is room. In the trash it doesn't, nor if it is lost. Of a copy that failed nothing is kept.
func (v *Volume) MovesFrom(node *Node, nodes []*Node) bool {
	if v.Spec.Class != SharedVolume || len(v.Status.Bricks) < 3 || v.Status.Conditions.Get(VolumeKept) != nil {
		return false
	}
	if v.Status.Copy.Failed(v.Status.Conditions) ||
		!slices.ContainsFunc(v.Status.Bricks, func(b VolumeBrick) bool { return b.NodeUID == node.UID && !b.Removed }) {
		return true // it is leaving already
	}
	if v.Lost() {
		return false
	}
	return slices.ContainsFunc(nodes, func(n *Node) bool {
		return n.UID != node.UID && n.Shares() && !n.Spec.Unschedulable && !v.IsOn(n.UID) && (!v.Spec.Encrypted || n.Encrypts())
	})
}

// IsOn says whether a node, by its UID, has the volume or a copy of it, or something of it
// that comes or goes.
func (v *Volume) IsOn(node string) bool {
	for _, b := range v.AllBricks() {
		if b.NodeUID == node && !b.Removed {
			return true
		}
	}
	return v.Status.NodeUID == node && node != "" || v.Status.MovingOn(node)
}

// Copies are how many copies of the data there are to be.
func (v *Volume) Copies() (n int) {
	for _, b := range v.Status.Bricks {
		if !b.Arbiter {
			n++
		}
	}
	return n
}

// CheckCopies says why there can't be as many copies as are asked for, and what to do; "" if there can.
func (s VolumeSpec) CheckCopies() (why, remedy string) {
	switch {
	case s.Class != SharedVolume && (s.Replicas > 1 || s.Arbiter):
		return "a volume of class " + s.Class + " has one copy", "Leave it out."
	case s.Replicas < 0 || s.Replicas > 3:
		return "a volume has 1 or 3 copies, or 2 and an arbiter", "Ask for one of these."
	case s.Arbiter && s.Replicas != 0 && s.Replicas != 2:
		return "an arbiter is for two copies", "Ask for 2 with it, or leave it out."
	case s.Replicas == 2 && !s.Arbiter:
		return "two copies that lose each other can't tell which one is right, and would differ (split brain)",
			"Ask for 3, or for 2 and an arbiter, which has no data and tells them."
	}
	return "", ""
}
