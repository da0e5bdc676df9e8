package store

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "store/committed", In: failpoint.Server, Cuts: "a commit is in etcd, who asked for it does not know"},
	}
}
