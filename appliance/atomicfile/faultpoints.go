package atomicfile

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "file/written", In: faultpoint.Both, Cuts: "the new content stands beside the file, which is still the old one"},
	}
}
