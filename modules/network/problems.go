package network

import (
	"time"

	"github.com/multipaas/multipaas/appliance/problem"
)

// What can go wrong between hosts.
var (
	AddressTaken = problem.Problem{
		Code:     "address-taken",
		Title:    "Another host uses the address of this one",
		Severity: problem.High,
		Text: "Connections to this host break off, or reach the other one; what runs here goes on. " +
			"This host keeps its address and tells its neighbours so.",
		Remedy: "Find the host with that hardware address (the switch knows at which port it is) and give it another address.",
	}
	AddressUnwatched = problem.Problem{
		Code:     "address-unwatched",
		Title:    "Nobody would notice if another host took the address of this one",
		Severity: problem.Low,
		After:    time.Minute,
		Remedy:   "Run multipaas as root, with CAP_NET_RAW, on the interface that has its address.",
	}
	PathNarrow = problem.Problem{
		Code:     "path-narrow",
		Title:    "The network to another host carries less than its interface sends",
		Severity: problem.Medium,
		Text: "The workspaces' networks use smaller packets until it is fixed; " +
			"other traffic between these hosts may stall for seconds.",
		Remedy: "Find the switch or the interface with a smaller MTU on the way and set it to that of the hosts, " +
			"or set the hosts' interfaces to what the path carries.",
	}
)
