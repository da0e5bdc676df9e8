package machine

import "github.com/multipaas/multipaas/appliance/problem"

// CantRun is what is said about a host that lacks what machines need.
var CantRun = problem.Problem{
	Code:     "cant-run-machines",
	Title:    "This node can't run machines",
	Severity: problem.High,
	Text:     "No machine is placed here until it can.",
}
