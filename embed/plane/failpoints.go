package plane

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "workspace/create/files-written", In: failpoint.Server, Cuts: "the plane's files stand, its process does not run"},
		{Name: "workspace/create/process-started", In: failpoint.Server, Cuts: "the plane's process starts"},
	}
}
