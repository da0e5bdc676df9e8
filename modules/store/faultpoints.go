package store

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "store/committed", In: faultpoint.Server, Cuts: "a commit is in etcd, who asked for it does not know"},
	}
}
