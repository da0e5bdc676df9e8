package etcd

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "bootstrap/etcd-root-made", In: faultpoint.Server, Cuts: "etcd has its root user and lets everybody in still"},
		{Name: "bootstrap/etcd-closed", In: faultpoint.Server, Cuts: "etcd asks who one is; nobody has been told it is ready"},
	}
}
