package payload

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "payload/file-unpacked", In: faultpoint.Both, Cuts: "a file is unpacked, under its temporary name"},
		{Name: "payload/files-unpacked", In: faultpoint.Both, Cuts: "all files are unpacked, no tree has them"},
		{Name: "payload/tree-linked", In: faultpoint.Both, Cuts: "the tree is whole, under its temporary name"},
		{Name: "payload/tree-pruned", In: faultpoint.Both, Cuts: "a former tree is gone, its files are not"},
	}
}
