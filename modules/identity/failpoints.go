package identity

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "bootstrap/admin-file-written", In: failpoint.Server, Cuts: "the first sysadmin's password is in the file, the user is not there"},
		{Name: "bootstrap/admin-made", In: failpoint.Server, Cuts: "the first sysadmin is there"},
		{Name: "token/create/committed", In: failpoint.Server, Cuts: "the token is in the store, who asked does not have it"},
		{Name: "account/create/committed", In: failpoint.Server, Cuts: "account, owner and role are in the store, the client has no answer"},
		{Name: "user/delete/credential-removed", In: failpoint.Server, Cuts: "the user can't log in, his sessions go on"},
		{Name: "user/delete/sessions-ended", In: failpoint.Server, Cuts: "the user's sessions are over, his roles are there"},
		{Name: "user/delete/roles-removed", In: failpoint.Server, Cuts: "the user has no role, he is there"},
	}
}
