package wire

// A volume that moves goes through a server, which pairs two requests: the host that it goes to asks for
// it (FetchPath), so the one that has it finds a Send in its state, and answers by SendPath. Whoever is cut
// off asks again, from where he has come to.
const (
	// FetchPath is asked with ?volume=KEY&uid=UID&from=OFFSET: a stream, as the host that has the volume sent it.
	FetchPath = AgentPath + "fetch"
	// SendPath takes such a stream, with ?id=Send.ID.
	SendPath = AgentPath + "send"
)

// Send is a volume that this node has put away (Volume.Keep) and another one waits for. It goes with who waits.
type Send struct {
	ID        string `json:"id"`
	UID       string `json:"uid"`       // the volume's
	NetworkID string `json:"networkId"` // of its workspace
	From      int64  `json:"from,omitempty"`
}
