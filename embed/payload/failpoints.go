package payload

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "payload/file-unpacked", In: failpoint.Both, Cuts: "a file is unpacked, under its temporary name"},
		{Name: "payload/files-unpacked", In: failpoint.Both, Cuts: "all files are unpacked, no tree has them"},
		{Name: "payload/tree-linked", In: failpoint.Both, Cuts: "the tree is whole, under its temporary name"},
		{Name: "payload/tree-pruned", In: failpoint.Both, Cuts: "a former tree is gone, its files are not"},
	}
}
