package node

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "node/join/token-spent", In: faultpoint.Server, Cuts: "the token is used up, the node is not there"},
		{Name: "node/join/recorded", In: faultpoint.Server, Cuts: "the node is there, its certificate is not signed"},
		{Name: "node/join/signed", In: faultpoint.Server, Cuts: "the certificate is signed, the node does not have it"},
		{Name: "node/leave/marked", In: faultpoint.Server, Cuts: "the node shall go, it has no answer"},
		{Name: "node/leave/machine-marked", In: faultpoint.Server, Cuts: "a machine of the node shall go, others may not"},
		{Name: "node/leave/deleted", In: faultpoint.Server, Cuts: "the node's record is gone, its agent does not know"},
	}
}
