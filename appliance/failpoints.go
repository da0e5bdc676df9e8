package appliance

import (
	"cmp"
	"slices"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/embed/payload"
	"github.com/multipaas/multipaas/embed/plane"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/apps"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/machine"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/storage"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/volume"
	"github.com/multipaas/multipaas/modules/workspace"
)

// Failpoints are all points at which a test may kill this program, sorted by
// name. Each package says what its own are.
func Failpoints() []failpoint.Point {
	all := slices.Concat(
		[]failpoint.Point{
			{Name: "bootstrap/platform-authority-made", In: failpoint.Server, Cuts: "the platform's authority stands, etcd's does not"},
			{Name: "workspace/create/etcd-user-made", In: failpoint.Server, Cuts: "the plane's user is in etcd, its certificate is not there"},
			{Name: "workspace/delete/etcd-user-removed", In: failpoint.Server, Cuts: "the plane's user and keys are gone from etcd, its folder is not"},
		},
		atomicfile.Failpoints(),
		diskimage.Failpoints(),
		pki.Failpoints(),
		rootfs.Failpoints(),
		etcd.Failpoints(),
		payload.Failpoints(),
		plane.Failpoints(),
		agent.Failpoints(),
		api.Failpoints(),
		apps.Failpoints(),
		balancer.Failpoints(),
		identity.Failpoints(),
		machine.Failpoints(),
		network.Failpoints(),
		node.Failpoints(),
		registry.Failpoints(),
		storage.Failpoints(),
		store.Failpoints(),
		volume.Failpoints(),
		workspace.Failpoints(),
	)
	slices.SortFunc(all, func(a, b failpoint.Point) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
