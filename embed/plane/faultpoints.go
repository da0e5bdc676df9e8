package plane

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "workspace/create/files-written", In: faultpoint.Server, Cuts: "the plane's files stand, its process does not run"},
		{Name: "workspace/create/process-started", In: faultpoint.Server, Cuts: "the plane's process starts"},
	}
}
