package api

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "workspace/create/committed", In: faultpoint.Server, Cuts: "workspace and task are in the store, the client has no answer"},
		{Name: "workspace/scale/committed", In: faultpoint.Server, Cuts: "the new number of machines is in the store, no machine is"},
		{Name: "workspace/delete/marked", In: faultpoint.Server, Cuts: "the workspace shall go, its apps are not told"},
		{Name: "app/deploy/committed", In: faultpoint.Server, Cuts: "app and task are in the store, the client has no answer"},
		{Name: "app/delete/marked", In: faultpoint.Server, Cuts: "the app shall go, the client has no answer"},
		{Name: "account/delete/marked", In: faultpoint.Server, Cuts: "the account shall go, its roles are there"},
		{Name: "account/delete/roles-dropped", In: faultpoint.Server, Cuts: "nobody has a role in the account, it is there"},
		{Name: "organization/delete/marked", In: faultpoint.Server, Cuts: "the organization shall go, its roles are there"},
		{Name: "organization/delete/roles-dropped", In: faultpoint.Server, Cuts: "nobody has a role in the organization, its images are there"},
		{Name: "organization/delete/images-removed", In: faultpoint.Server, Cuts: "its images are gone, the organization is there"},
	}
}
