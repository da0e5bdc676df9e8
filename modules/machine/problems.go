package machine

import "github.com/multipaas/multipaas/appliance/problem"

// CantRun is what is said about a host that lacks what machines need.
var CantRun = problem.Problem{
	Code:     "cant-run-machines",
	Title:    "This node can't run machines",
	Severity: problem.High,
	Text:     "No machine is placed here until it can.",
}

// UsersShared is what is said about a host whose kernel can't give machines users of
// their own.
var UsersShared = problem.Problem{
	Code:     "machine-users-shared",
	Title:    "Root in a machine is root on this node",
	Severity: problem.Medium,
	Text: "Machines run without a user namespace: what keeps a tenant who breaks out of a pod from the host " +
		"is weaker. Such machines stay so for their life, and so do those that were placed before there were ranges of users.",
	Remedy: "Use Linux 5.19 or newer, with user namespaces (user.max_user_namespaces) and a data directory on ext4, XFS or Btrfs; " +
		"then replace the machines: scale the workspace down, and up again.",
}
