package appliance

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/embed/manifests"
	"github.com/multipaas/multipaas/modules/apps"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/task"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// addWorkspaces adds who runs the workspaces, and shows them in the status.
func (s *server) addWorkspaces(
	from part[*store.Store],
	d *database,
	planes part[*planes],
	networks *network.Network,
	accounts cacheOf[*resource.Account],
	nodes cacheOf[*resource.Node],
	workspaces cacheOf[*resource.Workspace],
	machines cacheOf[*resource.Machine],
) part[*workspace.Controller] {
	s.items = func() []status.Item { return workspaceItems(workspaces.value) }
	n := &needs{}
	byName := accounts.of(n)
	return add(s.graph, "planes", n, workspace.New(workspace.Config{
		Log:        s.part("planes"),
		Store:      from.of(n),
		Networks:   networks,
		Planes:     planes.of(n),
		Manifests:  clusterManifests,
		Server:     s.cfg.Name,
		Address:    s.cfg.Address,
		Own:        s.own,
		Door:       s.service,
		Domain:     s.cfg.Domain,
		Plan:       s.cfg.Plan,
		KubeAPI:    s.reach(s.cfg.Listen.Kubernetes),
		RoomOf:     func(account string) int64 { return s.limitsOf(byName, account).DatabaseBytes },
		FreeRoom:   s.freeRoom(d),
		Workspaces: workspaces.of(n),
		Machines:   machines.of(n),
		Nodes:      nodes.of(n),
		Registerer: s.metrics,
	}))
}

// limitsOf are an account's limits, as far as it has any of its own.
func (s *server) limitsOf(accounts *store.Cache[*resource.Account], name string) resource.Limits {
	if a, ok := accounts.Get(name); ok {
		return a.Spec.Limits.Or(s.cfg.Limits)
	}
	return s.cfg.Limits
}

// What planes leave free on the disk: as much as the registry does, which is four times what etcd
// needs, or a twentieth of a small disk.
const (
	planesFloor      = 1 << 30
	planesFloorShare = 20
)

// freeRoom says what all datastores of a kind may still take. Those in etcd take its
// disk too.
func (s *server) freeRoom(d *database) func(context.Context, resource.Datastore) (int64, error) {
	return func(ctx context.Context, kind resource.Datastore) (int64, error) {
		dir := s.cfg.Paths.Data
		if kind == resource.Etcd {
			dir = s.cfg.Paths.Etcd()
		} else if _, err := os.Stat(s.cfg.Paths.Planes()); err == nil {
			dir = s.cfg.Paths.Planes()
		}
		var f unix.Statfs_t
		if err := unix.Statfs(dir, &f); err != nil {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		left := int64(f.Bavail)*f.Bsize - min(planesFloor, int64(f.Blocks)*f.Bsize/planesFloorShare)
		if kind != resource.Etcd {
			return left, nil
		}
		ctx, cancel := context.WithTimeout(ctx, healthEvery/2)
		defer cancel()
		database, err := d.etcd.Left(ctx)
		return min(left, database), err
	}
}

// workspaceItems are the workspaces for the status, each with the first thing
// that it waits for.
func workspaceItems(workspaces *store.Cache[*resource.Workspace]) (out []status.Item) {
	for _, w := range workspaces.List("") {
		i := status.Item{Kind: "workspace", Name: w.Key(), State: string(w.Status.Phase)}
		for _, c := range w.Status.Conditions {
			if c.Status != resource.True && c.Message != "" {
				i.Detail = c.Message
				break
			}
		}
		out = append(out, i)
	}
	return out
}

// clusterManifests renders what a workspace's cluster gets at birth. Two DNS
// servers once there are two machines to put them on.
func clusterManifests(w *resource.Workspace, plan wire.Plan) ([]byte, error) {
	return manifests.Cluster(manifests.Values{
		DNSAddress:  plan.DNS.String(),
		DNSReplicas: min(2, max(1, w.Spec.Machines)),
		DNSImage:    PayloadRegistry + "/coredns:1",
		Domain:      "cluster.local",
	})
}

// addTasks adds what shows people the work under way.
func (s *server) addTasks(from part[*store.Store]) part[*task.Tasks] {
	n := &needs{}
	return add(s.graph, "tasks", n, task.New(task.Config{
		Store:      from.of(n),
		Log:        s.part("tasks"),
		Registerer: s.metrics,
	}))
}

// addApps adds who deploys apps into the workspaces' clusters.
func (s *server) addApps(
	from part[*store.Store],
	controller part[*workspace.Controller],
	images part[*registry.Registry],
	all cacheOf[*resource.App],
	workspaces cacheOf[*resource.Workspace],
) {
	var upstreams []string
	for _, u := range s.cfg.RegistryUpstreams {
		upstreams = append(upstreams, u.Name)
	}
	n := &needs{}
	add(s.graph, "deployer", n, apps.New(apps.Config{
		Log:        s.part("deployer"),
		Store:      from.of(n),
		Apps:       all.of(n),
		Workspaces: workspaces.of(n),
		Clusters:   controller.of(n),
		Images: &apps.Sources{
			Registry:      s.registryNames(),
			Own:           images.of(n),
			Builtin:       PayloadRegistry,
			BuiltinDigest: s.payloadImage,
			Upstreams:     upstreams,
		},
		Domain:        s.cfg.Domain,
		Registry:      s.registryName(),
		RegistryNames: s.registryNames(),
		Registerer:    s.metrics,
	}))
}
