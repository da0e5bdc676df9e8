package wire

import (
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// A volume that moves goes through a server, which pairs two requests: the host that it goes to asks for
// it (FetchPath), so the one that has it finds a Send in its state, and answers by SendPath. Whoever is cut
// off asks again, from where he has come to.
const (
	// FetchPath is asked with ?volume=KEY&uid=UID&from=OFFSET: a stream, as the host that has the volume sent it. With
	// ?id=File.ID&from=OFFSET it is what a tenant sends.
	FetchPath = AgentPath + "fetch"
	// SendPath takes such a stream, with ?id=Send.ID or File.ID; with &failed=TEXT instead why there is none, and with
	// &lasting=true there never will be.
	SendPath = AgentPath + "send"
)

// Send is a volume that this node has put away (Volume.Keep) and another one waits for. It goes with who waits.
type Send struct {
	ID        string `json:"id"`
	UID       string `json:"uid"`       // the volume's
	NetworkID string `json:"networkId"` // of its workspace
	From      int64  `json:"from,omitempty"`
}

// FileDriver is among the Drivers in the reports of hosts that read volumes into files, and write them from such.
const FileDriver = "file"

// SharedFileDriver is the same of hosts that do so with shared volumes.
const SharedFileDriver = resource.SharedFileDriver

// File is a snapshot on this node that somebody waits for as a file, or a volume that somebody sends as one: see
// modules/internal/archive. It goes with who waits, as a Send does.
type File struct {
	ID        string `json:"id"`
	UID       string `json:"uid"`              // of the snapshot or volume, which is in State.Volumes too
	NetworkID string `json:"networkId"`        // of its workspace
	Import    bool   `json:"import,omitempty"` // it comes; else it is to be sent, from this offset on
	From      int64  `json:"from,omitempty"`
	// The others are what the file says of a snapshot: the key and class of its volume, and when it was taken.
	Volume  string    `json:"volume,omitempty"`
	Class   string    `json:"class,omitempty"`
	TakenAt time.Time `json:"takenAt,omitzero"`
}

// How far a volume is that is made from a file: VolumeReport.Import.
const (
	ImportBegun  = "begun"
	ImportDone   = "done"
	ImportBroken = "broken" // it will never be done
)
