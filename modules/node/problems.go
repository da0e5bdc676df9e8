package node

import (
	"time"

	"github.com/multipaas/multipaas/appliance/problem"
)

// Silent is what is said about a node from which nothing is heard.
var Silent = problem.Problem{
	Code:     "node-silent",
	Title:    "A node does not report",
	Severity: problem.High,
	Text:     "Its machines may still run, but nothing can be changed about them.",
	Remedy:   "Check the host, its network and its multipaas service; if it is lost for good: mp nodes remove NODE --lost",
}

// NotShown is what is said about a node that says to have an address from which it has
// not reported.
var NotShown = problem.Problem{
	Code:     "node-address-not-shown",
	Title:    "A node says to have an address that it has not shown",
	Severity: problem.Medium,
	After:    time.Minute, // one that has moved is shown within seconds
	Text: "Tenants of other hosts reach its ports there, as far as `egress` lets them. " +
		"The host's word is not enough to keep them from an address, which may be anybody's.",
	Remedy: "If it is the host's: mp nodes set NODE --also ADDRESS,ADDRESS, with all that it has and can't show; " +
		"else look who is on it. If tenants need nothing of that network, leave it out of `egress`.",
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

// Keeps is what is said about a node of which the claims of workspaces that are gone for
// a day wait.
var Keeps = problem.Problem{
	Code:     "node-keeps-claims",
	Title:    "A node has not said that it holds nothing of workspaces that are gone",
	Severity: problem.Medium,
	After:    10 * time.Minute, // one that has come back says it with its first report
	Text: "No other workspace gets their numbers of networks and users until it does: " +
		"its disk may have their files.",
	Remedy: "Upgrade the host's multipaas if it is older than the server's, and look in its log what it can't take away; " +
		"if it is lost for good: mp nodes remove NODE --lost",
}

// Flipped is what is said about a node whose disk gives back something else than was written to it.
var Flipped = problem.Problem{
	Code:     "node-disk-flips",
	Title:    "A disk of a node gives back something else than was written to it",
	Severity: problem.High,
	Text: "It was found when copies of shared volumes were compared, and they were mended from the other copies. " +
		"Nobody mends local volumes on it.",
	Remedy: "Check its disk (`smartctl`), its memory and its controller. If the disk fails: mp nodes storage remove NODE POOL " +
		"moves what is on it to others. It is said for 30 days.",
}
