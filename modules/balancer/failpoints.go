package balancer

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "certificate/locked", In: failpoint.Server, Cuts: "the lock of a domain's certificate is taken"},
		{Name: "certificate/stored", In: failpoint.Server, Cuts: "one of key, certificate and description is stored"},
	}
}
