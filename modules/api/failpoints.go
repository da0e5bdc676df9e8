package api

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "workspace/create/committed", In: failpoint.Server, Cuts: "workspace and task are in the store, the client has no answer"},
		{Name: "workspace/scale/committed", In: failpoint.Server, Cuts: "the new number of machines is in the store, no machine is"},
		{Name: "workspace/delete/marked", In: failpoint.Server, Cuts: "the workspace shall go, its apps are not told"},
		{Name: "app/deploy/committed", In: failpoint.Server, Cuts: "app and task are in the store, the client has no answer"},
		{Name: "app/delete/marked", In: failpoint.Server, Cuts: "the app shall go, the client has no answer"},
		{Name: "account/delete/marked", In: failpoint.Server, Cuts: "the account shall go, its roles are there"},
		{Name: "account/delete/roles-dropped", In: failpoint.Server, Cuts: "nobody has a role in the account, it is there"},
		{Name: "organization/delete/marked", In: failpoint.Server, Cuts: "the organization shall go, its roles are there"},
		{Name: "organization/delete/roles-dropped", In: failpoint.Server, Cuts: "nobody has a role in the organization, its images are there"},
		{Name: "organization/delete/images-removed", In: failpoint.Server, Cuts: "its images are gone, the organization is there"},
	}
}
