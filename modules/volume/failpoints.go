package volume

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "volume/make/recorded", In: failpoint.Node, Cuts: "the volume's folder and record are there, its disk is not"},
		{Name: "volume/make/mounted", In: failpoint.Node, Cuts: "the disk is mounted, its root is not its owner's"},
		{Name: "volume/snapshot/recorded", In: failpoint.Node, Cuts: "the snapshot's folder and record are there, its disk is not"},
		{Name: "volume/move/received", In: failpoint.Node, Cuts: "all of the volume came from its former host, and nobody was told"},
		{Name: "volume/import/unpacked", In: failpoint.Node, Cuts: "all of the file is in the volume, its record does not say so"},
		{Name: "volume/pool/formatted", In: failpoint.Node, Cuts: "the disk has the pool's file system, with nothing in it"},
		{Name: "volume/attach/folder-made", In: failpoint.Node, Cuts: "the machine has a folder for the volume, with nothing in it"},
		{Name: "volume/remove/shut-down", In: failpoint.Node, Cuts: "the volume's file system has stopped, it takes its room still"},
		{Name: "volume/remove/unmounted", In: failpoint.Node, Cuts: "nothing of the volume is mounted, its files are there"},
		{Name: "volume/remove/disk-deleted", In: failpoint.Node, Cuts: "the volume's disk is gone, its folder is not"},
	}
}
