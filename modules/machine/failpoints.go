package machine

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "machine/start/recorded", In: failpoint.Node, Cuts: "the machine's folder and record are there"},
		{Name: "machine/start/disk-mounted", In: failpoint.Node, Cuts: "the disk is mounted, the root is not"},
		{Name: "machine/start/root-mounted", In: failpoint.Node, Cuts: "the root is mounted, the control group is not there"},
		{Name: "machine/start/group-made", In: failpoint.Node, Cuts: "the control group is there, the bundle is not"},
		{Name: "machine/start/bundle-written", In: failpoint.Node, Cuts: "everything is there, the container is not"},
		{Name: "machine/start/container-running", In: failpoint.Node, Cuts: "the container runs, the record does not count it"},
		{Name: "machine/remove/processes-ended", In: failpoint.Node, Cuts: "the machine's processes are gone, the container is known"},
		{Name: "machine/remove/container-deleted", In: failpoint.Node, Cuts: "the container is gone, its group and mounts are not"},
		{Name: "machine/remove/unmounted", In: failpoint.Node, Cuts: "nothing is mounted, the files are there"},
	}
}
