package apps

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "app/deploy/service-applied", In: failpoint.Server, Cuts: "the Service is there, the Deployment is not"},
		{Name: "app/deploy/deployment-applied", In: failpoint.Server, Cuts: "the Deployment is there, the route is not"},
		{Name: "app/deploy/route-made", In: failpoint.Server, Cuts: "the route is there, the status does not say so"},
		{Name: "app/delete/route-removed", In: failpoint.Server, Cuts: "nobody is sent to the app any more, it runs"},
		{Name: "app/delete/objects-deleted", In: failpoint.Server, Cuts: "the cluster has been told to delete the app"},
	}
}
