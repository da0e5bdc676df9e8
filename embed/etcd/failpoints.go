package etcd

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "bootstrap/etcd-root-made", In: failpoint.Server, Cuts: "etcd has its root user and lets everybody in still"},
		{Name: "bootstrap/etcd-closed", In: failpoint.Server, Cuts: "etcd asks who one is; nobody has been told it is ready"},
	}
}
