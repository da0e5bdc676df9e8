package workspace

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "workspace/create/allocated", In: failpoint.Server, Cuts: "network number and keys are in the store, nothing is on the host"},
		{Name: "workspace/create/plane-ready", In: failpoint.Server, Cuts: "the plane answers, the status does not say so"},
		{Name: "workspace/create/addon-applied", In: failpoint.Server, Cuts: "the first of the cluster's objects is there, the others are not"},
		{Name: "workspace/create/addons-applied", In: failpoint.Server, Cuts: "all of the cluster's objects are there, the status does not say so"},
		{Name: "workspace/machine/placed", In: failpoint.Server, Cuts: "a machine is in the store, no agent knows"},
		{Name: "workspace/scale/machine-marked", In: failpoint.Server, Cuts: "a machine shall go, nothing of it has"},
		{Name: "workspace/scale/machine-drained", In: failpoint.Server, Cuts: "a machine's pods are gone, its agent does not know"},
		{Name: "workspace/scale/node-deleted", In: failpoint.Server, Cuts: "a machine and its Kubernetes node are gone, the record is not"},
		{Name: "workspace/scale/machine-deleted", In: failpoint.Server, Cuts: "the record of a machine is gone"},
		{Name: "workspace/delete/machines-marked", In: failpoint.Server, Cuts: "a machine is told to go, others may not be"},
		{Name: "workspace/delete/plane-stopped", In: failpoint.Server, Cuts: "the plane's process has ended, its data is there"},
		{Name: "workspace/delete/plane-removed", In: failpoint.Server, Cuts: "nothing of the plane is left, the network is"},
		{Name: "workspace/delete/network-removed", In: failpoint.Server, Cuts: "nothing is left on the server's host, the records are"},
		{Name: "workspace/delete/committed", In: failpoint.Server, Cuts: "the records are gone, nobody was told"},
	}
}
