package etcd

import "github.com/multipaas/multipaas/appliance/problem"

// Unwell is what is said about a server that doesn't answer, or takes no writes.
var Unwell = problem.Problem{
	Code:     "datastore-unwell",
	Title:    "The datastore does not work as it should",
	Severity: problem.High,
	Text:     "Nothing new can be asked of the platform; what runs goes on.",
}
