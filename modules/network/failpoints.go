package network

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "network/attach/namespace-made", In: failpoint.Both, Cuts: "the workspace's namespace is there, empty"},
		{Name: "network/attach/rules-set", In: failpoint.Both, Cuts: "the rules stand, no link does"},
		{Name: "network/attach/bridge-made", In: failpoint.Both, Cuts: "the bridge is there, the way to other hosts is not"},
		{Name: "network/attach/vxlan-made", In: failpoint.Both, Cuts: "the way to other hosts is there, the one to the outside is not"},
		{Name: "network/attach/uplink-made", In: failpoint.Both, Cuts: "all links are there, the members are not known"},
		{Name: "network/detach/links-removed", In: failpoint.Both, Cuts: "the links are gone, the host's rules are not"},
		{Name: "network/detach/rules-removed", In: failpoint.Both, Cuts: "the host's rules are gone if it was the last network, the namespace is not"},
		{Name: "network/detach/namespace-removed", In: failpoint.Both, Cuts: "nothing of the network is left, nobody was told"},
		{Name: "network/machine/namespace-made", In: failpoint.Node, Cuts: "the machine's namespace is there, its link is not"},
		{Name: "network/machine/port-made", In: failpoint.Node, Cuts: "the machine's link is there, nothing says whose it is"},
		{Name: "network/machine/port-joined", In: failpoint.Node, Cuts: "the machine's link is on the bridge, its addresses are not set"},
		{Name: "network/machine/port-removed", In: failpoint.Node, Cuts: "the machine's link is gone, its namespace is not"},
	}
}
