package node

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "node/join/token-spent", In: failpoint.Server, Cuts: "the token is used up, the node is not there"},
		{Name: "node/join/recorded", In: failpoint.Server, Cuts: "the node is there, its certificate is not signed"},
		{Name: "node/join/signed", In: failpoint.Server, Cuts: "the certificate is signed, the node does not have it"},
		{Name: "node/leave/marked", In: failpoint.Server, Cuts: "the node shall go, it has no answer"},
		{Name: "node/leave/machine-marked", In: failpoint.Server, Cuts: "a machine of the node shall go, others may not"},
		{Name: "node/leave/deleted", In: failpoint.Server, Cuts: "the node's record is gone, its agent does not know"},
	}
}
