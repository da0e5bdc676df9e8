package machine

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "machine/start/recorded", In: faultpoint.Node, Cuts: "the machine's folder and record are there"},
		{Name: "machine/start/image-unpacked", In: faultpoint.Node, Cuts: "the image is unpacked, under its temporary name"},
		{Name: "machine/start/disk-file-made", In: faultpoint.Node, Cuts: "the disk's file is there, without a file system"},
		{Name: "machine/start/disk-formatted", In: faultpoint.Node, Cuts: "the disk has a file system, but not its name"},
		{Name: "machine/start/loop-attached", In: faultpoint.Node, Cuts: "the loop device is there, not mounted"},
		{Name: "machine/start/disk-mounted", In: faultpoint.Node, Cuts: "the disk is mounted, the root is not"},
		{Name: "machine/start/root-mounted", In: faultpoint.Node, Cuts: "the root is mounted, the control group is not there"},
		{Name: "machine/start/group-made", In: faultpoint.Node, Cuts: "the control group is there, the bundle is not"},
		{Name: "machine/start/bundle-written", In: faultpoint.Node, Cuts: "everything is there, the container is not"},
		{Name: "machine/start/container-running", In: faultpoint.Node, Cuts: "the container runs, the record does not count it"},
		{Name: "machine/remove/processes-ended", In: faultpoint.Node, Cuts: "the machine's processes are gone, the container is known"},
		{Name: "machine/remove/container-deleted", In: faultpoint.Node, Cuts: "the container is gone, its group and mounts are not"},
		{Name: "machine/remove/unmounted", In: faultpoint.Node, Cuts: "nothing is mounted, the files are there"},
	}
}
