package wire

import "github.com/multipaas/multipaas/modules/resource"

// ScrubItem is the kind of ScrubReport, and ScrubDriver among the Drivers in the reports of hosts that know Scrub.
const (
	ScrubItem   = "scrub"
	ScrubDriver = resource.ScrubDriver
)

// Scrub says to compare all copies of a shared volume, byte by byte.
type Scrub struct {
	Key       string `json:"key"`       // of the volume
	UID       string `json:"uid"`       // of the volume
	NetworkID string `json:"networkId"` // of its workspace
	Brick     string `json:"brick"`     // UID of this host's; it has data
	Number    int64  `json:"number"`    // another one is another time
}

// ScrubReport is how far that is.
type ScrubReport struct {
	Key    string `json:"key"` // of the volume
	UID    string `json:"uid"`
	Number int64  `json:"number"`
	Done   bool   `json:"done,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"` // of one copy
	Files  int64  `json:"files,omitempty"`
	// Mended is how many files of a brick, by its UID, were not as in the others, and are now.
	Mended  map[string]int64 `json:"mended,omitempty"`
	Damaged int64            `json:"damaged,omitempty"` // files that are not the same in all, and stay so
	Names   []string         `json:"names,omitempty"`   // of some of those
	Left    int64            `json:"left,omitempty"`    // files, or folders, that could not be compared
}
