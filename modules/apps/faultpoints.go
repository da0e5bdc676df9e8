package apps

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "app/deploy/service-applied", In: faultpoint.Server, Cuts: "the Service is there, the Deployment is not"},
		{Name: "app/deploy/deployment-applied", In: faultpoint.Server, Cuts: "the Deployment is there, the route is not"},
		{Name: "app/deploy/route-made", In: faultpoint.Server, Cuts: "the route is there, the status does not say so"},
		{Name: "app/delete/route-removed", In: faultpoint.Server, Cuts: "nobody is sent to the app any more, it runs"},
		{Name: "app/delete/objects-deleted", In: faultpoint.Server, Cuts: "the cluster has been told to delete the app"},
	}
}
