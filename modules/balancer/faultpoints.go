package balancer

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "certificate/locked", In: faultpoint.Server, Cuts: "the lock of a domain's certificate is taken"},
		{Name: "certificate/stored", In: faultpoint.Server, Cuts: "one of key, certificate and description is stored"},
	}
}
