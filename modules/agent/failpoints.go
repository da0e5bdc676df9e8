package agent

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "agent/state-kept", In: failpoint.Node, Cuts: "the new state is on disk, nothing of it was done"},
		{Name: "agent/certificates-signed", In: failpoint.Node, Cuts: "the server has signed for a machine, nothing is kept"},
		{Name: "agent/certificates-kept", In: failpoint.Node, Cuts: "the machine's certificates are kept, it is not made"},
		{Name: "agent/machine-removed", In: failpoint.Node, Cuts: "the machine is gone, its network and keys are not"},
		{Name: "agent/network-removed", In: failpoint.Node, Cuts: "the machine and its network are gone, its keys are not"},
		{Name: "agent/keys-removed", In: failpoint.Node, Cuts: "nothing of the machine is left, the server does not know"},
		{Name: "node/join/answered", In: failpoint.Node, Cuts: "the node has its certificate, but not on disk"},
		{Name: "node/join/kept", In: failpoint.Node, Cuts: "the node knows who it is, and runs nothing"},
		{Name: "node/renew/signed", In: failpoint.Node, Cuts: "the node has a new certificate, but not on disk"},
		{Name: "node/renew/kept", In: failpoint.Node, Cuts: "the new certificate is on disk, the old one is in use"},
		{Name: "node/leave/cleaned", In: failpoint.Node, Cuts: "machines and networks are gone, the identity is not"},
	}
}
