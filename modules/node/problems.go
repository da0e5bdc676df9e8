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

// Differs is what is said about a node that says of itself what was not confirmed.
var Differs = problem.Problem{
	Code:     "node-differs",
	Title:    "A node says of itself what nobody has confirmed",
	Severity: problem.High,
	Text:     "Nothing was done about it: a host that somebody has broken into could say anything.",
	Remedy: "If the host has really moved or grown: mp nodes set NODE --address ADDRESS, --cpu, --memory or --disk; " +
		"else look who is on it.",
}
