package atomicfile

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "file/written", In: failpoint.Both, Cuts: "the new content stands beside the file, which is still the old one"},
	}
}
