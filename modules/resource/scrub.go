package resource

import (
	"slices"
	"time"
)

// VolumeScrub is how far it is that the copies of a shared volume are compared, byte by byte, and what was found last.
type VolumeScrub struct {
	// Wanted counts how often they were to be compared, and Done is the last that has ended: while these are not the same
	// they are being compared. Brick is the UID of that whose host does it; "": it isn't chosen.
	Wanted int64  `json:"wanted,omitempty" hidden:"true"`
	Done   int64  `json:"done,omitempty" hidden:"true"`
	Brick  string `json:"brick,omitempty" hidden:"true"`
	Bytes  int64  `json:"bytes,omitempty" doc:"How much of a copy was compared so far, while they are being compared"`
	// What follows is of the last time that it was done to the end. Checked is by the server's clock.
	Checked      time.Time `json:"checked,omitzero" doc:"When they were last compared to the end"`
	CheckedBytes int64     `json:"checkedBytes,omitempty" doc:"How much of a copy was compared then"`
	Files        int64     `json:"files,omitempty" doc:"How many files with data were compared then"`
	Mended       int64     `json:"mended,omitempty" doc:"How many files were not the same in all copies, and were made so"`
	Damaged      int64     `json:"damaged,omitempty" doc:"How many files are not the same in all copies, and stay so"`
	Names        []string  `json:"names,omitempty" doc:"Some of those"`
	Left         int64     `json:"left,omitempty" doc:"How many files could not be compared: a copy had yet to be given something"`
}

// Runs says whether copies are being compared, or wait for it.
func (s *VolumeScrub) Runs() bool { return s != nil && s.Wanted != s.Done }

// VolumeIntact is the condition of a shared volume with several copies whether they were the same when they were last
// compared.
const VolumeIntact = "Intact"

// ScrubDriver is among the Drivers of hosts that can compare the copies of shared volumes.
const ScrubDriver = "shared-scrub"

// Scrubs says whether a host can.
func (n *Node) Scrubs() bool { return slices.Contains(n.Status.Drivers, ScrubDriver) }
