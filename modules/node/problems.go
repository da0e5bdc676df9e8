package node

import "github.com/multipaas/multipaas/appliance/problem"

// Silent is what is said about a node from which nothing is heard.
var Silent = problem.Problem{
	Code:     "node-silent",
	Title:    "A node does not report",
	Severity: problem.High,
	Text:     "Its machines may still run, but nothing can be changed about them.",
	Remedy:   "Check the host, its network and its multipaas service; if it is lost for good: mp nodes remove NODE --lost",
}
