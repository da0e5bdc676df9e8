package etcd

import (
	"errors"

	"github.com/multipaas/multipaas/appliance/problem"
)

// Unwell is what is said about a server that doesn't answer, or takes no writes.
var Unwell = problem.Problem{
	Code:     "datastore-unwell",
	Title:    "The datastore does not work as it should",
	Severity: problem.High,
	Text:     "Nothing new can be asked of the platform; what runs goes on.",
}

// Tight is said while only the reserve is left.
var Tight = problem.Problem{
	Code:     "datastore-tight",
	Title:    "The datastore has no room for anything new",
	Severity: problem.High,
	Text: "Its disk or its database is nearly full. Nobody but sysadmins can make anything; " +
		"what is there goes on, and can be changed and deleted.",
	Remedy: "Make room on its disk, and delete what is not needed.",
}

// ErrTight is what is wrong then.
var ErrTight = errors.New("only the reserve is left")
