package access

import (
	"crypto/tls"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// NodeOf returns the node whose certificate the connection was made
// with. The TLS stack has verified it against the platform's CA; here it only
// counts that it did, and that it is a node's.
func NodeOf(state *tls.ConnectionState) (*Principal, error) {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return nil, &Refusal{
			Reason: ErrUnauthenticated,
			Text:   "This endpoint needs the certificate of a node.",
			Remedy: "Join the machine with `multipaas node join`.",
		}
	}
	leaf := state.PeerCertificates[0]
	ofNodes := slices.Contains(leaf.Subject.Organization, wire.NodesOrganization)
	if !ofNodes || resource.CheckName("node", leaf.Subject.CommonName) != nil {
		return nil, &Refusal{Reason: ErrDenied, Text: "This certificate is not one of a node."}
	}
	return &Principal{Node: leaf.Subject.CommonName}, nil
}
