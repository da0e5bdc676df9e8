package plane

import "github.com/multipaas/multipaas/appliance/problem"

// What can go wrong with a plane.
var (
	Full = problem.Problem{
		Code:     "workspace-datastore-full",
		Title:    "The datastore of a workspace is full, or nearly",
		Severity: problem.Medium,
		Text:     "When it is full, its cluster takes nothing new until objects are deleted; what runs goes on.",
		Remedy: "Find out with the tenant what fills it: kubectl get --raw /metrics shows apiserver_resource_objects. " +
			"The limit is workspaces.datastore_limit.",
	}
	Dies = problem.Problem{
		Code:     "plane-dies",
		Title:    "The plane of a workspace exits again and again",
		Severity: problem.High,
		Text:     "Its pods run on, but nothing can be asked of it.",
		Remedy:   "Look at what it says; if its memory or its disk is short, make room.",
	}
	Damaged = problem.Problem{
		Code:     "plane-database-damaged",
		Title:    "The database of a workspace's plane is damaged",
		Severity: problem.High,
		Text:     "Its pods run on, but nothing can be asked of it.",
		Remedy: "Put a backup of own/state.db in its place, without state.db-wal and state.db-shm, and look at the disk; " +
			"without a backup the workspace has to be made anew.",
	}
)
