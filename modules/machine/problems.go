package machine

import (
	"time"

	"github.com/multipaas/multipaas/appliance/problem"
)

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

// TablesCrowded is what is said about a host whose kernel has too much to keep in mind, and
// no machine that shows why.
var TablesCrowded = problem.Problem{
	Code:     "kernel-tables-crowded",
	Title:    "The kernel's tables of neighbours or connections fill up",
	Severity: problem.High,
	After:    10 * time.Second, // a machine that is why is ended before
	Text: "No machine holds so much that it would be ended: there are very many, or a program of this host's own is why, " +
		"or somebody who became root in a machine hides what he holds. When a table is full, nobody here gets new connections.",
	Remedy: "Look for what grows with `ip neigh` and `conntrack -C` on the node, and in its network namespaces (`ip netns`). " +
		"If it is none of your own, take the workspaces' machines off this node one after the other, and see when it is over.",
}
