package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/embed/plane"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/resource"
)

// What can go wrong with a machine while it runs. Each is looked at every
// healthEvery and shown by `multipaas status` until it is over.
var (
	diskLow = problem.Problem{Code: "disk-low", Title: "The disk is nearly full", Severity: problem.High,
		Text:   "Below 1 GiB the registry takes no images, and etcd may stop taking writes.",
		Remedy: "Make room on the data directory's disk, or give it a larger one."}
	datastoreUnwell = problem.Problem{Code: "datastore-unwell", Title: "The datastore does not work as it should", Severity: problem.High,
		Text: "Nothing new can be asked of the platform; what runs goes on."}
	datastoreFull = problem.Problem{Code: "workspace-datastore-full", Title: "The datastore of a workspace is full, or nearly", Severity: problem.Medium,
		Text:   "When it is full, its cluster takes nothing new until objects are deleted; what runs goes on.",
		Remedy: "Find out with the tenant what fills it: kubectl get --raw /metrics shows apiserver_resource_objects. The limit is workspaces.datastore_limit."}
	planeDies = problem.Problem{Code: "plane-dies", Title: "The plane of a workspace ends again and again", Severity: problem.High,
		Text:   "Its pods run on, but nothing can be asked of it.",
		Remedy: "Look at what it says; if its memory or its disk is short, make room."}
	planeDamaged = problem.Problem{Code: "plane-database-damaged", Title: "The database of a workspace's plane is damaged", Severity: problem.High,
		Text:   "Its pods run on, but nothing can be asked of it.",
		Remedy: "Put a backup of state.db in its place, without state.db-wal and state.db-shm, and look at the disk; without a backup the workspace has to be made anew."}
	addressTaken = problem.Problem{Code: "address-taken", Title: "Another host uses the address of this one", Severity: problem.High,
		Text:   "Connections to this host break off, or reach the other one; what runs here goes on. This host keeps its address and tells its neighbours so.",
		Remedy: "Find the host with that hardware address (the switch knows at which port it is) and give it another address."}
	addressUnwatched = problem.Problem{Code: "address-unwatched", Title: "Nobody would notice if another host took the address of this one", Severity: problem.Low,
		After: time.Minute, Remedy: "Run multipaas as root, with CAP_NET_RAW, on the interface that has its address."}
	pathNarrow = problem.Problem{Code: "path-narrow", Title: "The network to another host carries less than its interface sends", Severity: problem.Medium,
		Text:   "The workspaces' networks use smaller packets until it is mended; what else these hosts say to each other may stall for seconds.",
		Remedy: "Find the switch or the interface with a smaller MTU on the way and set it to that of the hosts, or set the hosts' interfaces to what the path carries."}
	nodeSilent = problem.Problem{Code: "node-silent", Title: "A node does not report", Severity: problem.High,
		Text:   "Its machines may still run, but nothing can be changed about them.",
		Remedy: "Check the host, its network and its multipaas service; if it is lost for good: mp nodes remove NODE --lost"}
)

const (
	healthEvery = 15 * time.Second
	minFreeDisk = 2 << 30 // twice the registry's floor: time to act before it is reached
)

// watchHealth is the part that looks at everything checks say.
func (b *base) watchHealth(checks ...func(ctx context.Context)) lifecycle.Func {
	return func(ctx context.Context, ready func()) error {
		ready()
		tick := time.NewTicker(healthEvery)
		defer tick.Stop()
		for {
			for _, check := range checks {
				check(ctx)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

// watchAddress is the part that looks whether another host has taken this
// one's address.
func (b *base) watchAddress() *network.AddressWatch {
	report := func(p problem.Problem) func(error) {
		return func(err error) { b.problems.Update(p, "address "+b.cfg.Address.String(), err) }
	}
	return network.NewAddressWatch(network.AddressConfig{Address: b.cfg.Address, Taken: report(addressTaken), Unwatched: report(addressUnwatched)})
}

// watchPaths is the part that looks whether full packets reach the other hosts.
func (b *base) watchPaths(n *network.Network) lifecycle.Func {
	return n.WatchPaths(network.PathConfig{Narrow: func(peer netip.Addr, err error) {
		b.problems.Update(pathNarrow, "path to "+peer.String(), err)
	}})
}

// checkDisk looks at the data directory, and at those in it that may be on
// disks of their own.
func (b *base) checkDisk(context.Context) {
	paths := b.cfg.Paths
	for _, dir := range []string{paths.Data, paths.Etcd(), paths.Planes(), paths.Registry(), paths.Machines()} {
		var f unix.Statfs_t
		err := unix.Statfs(dir, &f)
		if errors.Is(err, fs.ErrNotExist) && dir != paths.Data {
			continue
		}
		if free := int64(f.Bavail) * f.Bsize; err == nil && free < minFreeDisk {
			err = fmt.Errorf("%.1f GiB are free on %s", float64(free)/(1<<30), dir)
		}
		b.problems.Update(diskLow, dir, err)
	}
}

func (s *server) checkDatastore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, healthEvery/2)
	defer cancel()
	if err := s.etcd.GuardDisk(ctx); err != nil && ctx.Err() == nil {
		s.part("health").Error("guard etcd's disk", "error", err)
	}
	if err := s.etcd.Health(ctx); context.Cause(ctx) != context.Canceled {
		s.problems.Update(datastoreUnwell, "", err)
	}
}

func (s *server) checkPlanes(context.Context) {
	s.planes.mu.Lock()
	defer s.planes.mu.Unlock()
	running := map[string]bool{}
	for _, r := range s.planes.running {
		object := "workspace " + r.workspace
		running[object] = true
		used, limit, err := r.Room()
		if err == nil && used > limit/10*9 {
			err = fmt.Errorf("%d of %d MiB", used>>20, limit>>20)
		}
		s.problems.Update(datastoreFull, object, err)

		at, err := r.Died()
		if r.Restarts() < 2 || time.Since(at) > 4*healthEvery {
			err = nil // once is no pattern, and this one runs again
		}
		dies, damaged := err, error(nil)
		if errors.Is(err, plane.ErrDamaged) {
			dies, damaged = nil, err
		}
		s.problems.Update(planeDies, object, dies)
		s.problems.Update(planeDamaged, object, damaged)
	}
	for _, p := range []problem.Problem{datastoreFull, planeDies, planeDamaged} {
		s.clearOthers(p, running)
	}
}

// clearOthers clears a problem of objects that are there no more.
func (s *server) clearOthers(p problem.Problem, there map[string]bool) {
	for _, r := range s.problems.List() {
		if r.Code == p.Code && !there[r.Object] {
			s.problems.Clear(p, r.Object)
		}
	}
}

func (s *server) checkNodes(context.Context) {
	known := map[string]bool{}
	for _, n := range s.nodes.List("") {
		known["node "+n.Name] = true
		var err error
		if n.Status.Phase == resource.Degraded {
			err = fmt.Errorf("no report since %s", n.Status.HeartbeatAt.Format(time.RFC3339))
		}
		s.problems.Update(nodeSilent, "node "+n.Name, err)
	}
	s.clearOthers(nodeSilent, known)
}
