package agent

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "agent/state-kept", In: faultpoint.Node, Cuts: "the new state is on disk, nothing of it was done"},
		{Name: "agent/certificates-signed", In: faultpoint.Node, Cuts: "the server has signed for a machine, nothing is kept"},
		{Name: "agent/certificates-kept", In: faultpoint.Node, Cuts: "the machine's certificates are kept, it is not made"},
		{Name: "agent/machine-removed", In: faultpoint.Node, Cuts: "the machine is gone, its network and keys are not"},
		{Name: "agent/network-removed", In: faultpoint.Node, Cuts: "the machine and its network are gone, its keys are not"},
		{Name: "agent/keys-removed", In: faultpoint.Node, Cuts: "nothing of the machine is left, the server does not know"},
		{Name: "node/join/answered", In: faultpoint.Node, Cuts: "the node has its certificate, but not on disk"},
		{Name: "node/join/kept", In: faultpoint.Node, Cuts: "the node knows who it is, and runs nothing"},
		{Name: "node/renew/signed", In: faultpoint.Node, Cuts: "the node has a new certificate, but not on disk"},
		{Name: "node/renew/kept", In: faultpoint.Node, Cuts: "the new certificate is on disk, the old one is in use"},
		{Name: "node/leave/cleaned", In: faultpoint.Node, Cuts: "machines and networks are gone, the identity is not"},
	}
}
