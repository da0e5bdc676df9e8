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
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/storage"
)

// Every healthEvery it is looked whether the machine is well; `multipaas status`
// shows each problem until it is over. What can go wrong with a part stands in
// its package.
const (
	healthEvery = 15 * time.Second
	minFreeDisk = 2 << 30 // twice the registry's floor: time to act before it is reached
	// minFreeFiles: an image unpacked has some thousand, and there are several at once.
	minFreeFiles = 20_000
)

var diskLow = problem.Problem{
	Code:     "disk-low",
	Title:    "The disk is nearly full",
	Severity: problem.High,
	Text:     "Below 1 GiB the registry takes no images, and etcd may stop taking writes.",
	Remedy:   "Make room on the data directory's disk, or give it a larger one.",
}

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

// checkDisk looks at the data directory, and at those in it that may be on
// disks of their own.
func (b *base) checkDisk(context.Context) {
	paths := b.cfg.Paths
	for _, dir := range []string{paths.Data, paths.Etcd(), paths.Planes(), paths.Registry(), paths.Machines(), paths.Volumes()} {
		var f unix.Statfs_t
		err := unix.Statfs(dir, &f)
		if errors.Is(err, fs.ErrNotExist) && dir != paths.Data {
			continue
		}
		if free := int64(f.Bavail) * f.Bsize; err == nil && free < minFreeDisk {
			err = fmt.Errorf("%.1f GiB are free on %s", float64(free)/(1<<30), dir)
		} else if err == nil && f.Files > 0 && f.Ffree < minFreeFiles {
			err = fmt.Errorf("the disk of %s can hold %d more files only", dir, f.Ffree)
		}
		b.problems.Update(diskLow, dir, err)
	}
}

// addHealth adds who looks whether the server is well.
func (s *server) addHealth(
	d *database, users part[*identity.Identity], planes part[*planes], nodes cacheOf[*resource.Node], claims cacheOf[*resource.VNI],
	trash cacheOf[*resource.Trash], volumes cacheOf[*resource.Volume], storage part[*storage.Controller],
) {
	n := &needs{}
	add(s.graph, "health", n, s.watchHealth(s.checkDisk, s.checkDatabase(d),
		s.checkNodes(nodes.of(n), claims.of(n), trash.of(n), volumes.of(n)),
		planes.value.check, s.checkFirstAdmin(users.of(n)), s.checkVolumeKeys(storage.of(n))))
}

// addWatches adds who knows this host's other addresses, who looks whether another host
// has taken its own, and whether full packets reach the other hosts.
func (b *base) addWatches(n *network.Network) {
	b.own = network.NewOwnAddresses(b.cfg.Address, b.part("addresses"))
	add(b.graph, "addresses", &needs{}, b.own)
	report := func(p problem.Problem) func(error) {
		return func(err error) { b.problems.Update(p, "address "+b.cfg.Address.String(), err) }
	}
	add(b.graph, "address", &needs{}, network.NewAddressWatch(network.AddressConfig{
		Address:   b.cfg.Address,
		Taken:     report(network.AddressTaken),
		Unwatched: report(network.AddressUnwatched),
	}))
	add(b.graph, "paths", &needs{}, lifecycle.Func(n.WatchPaths(network.PathConfig{Narrow: func(peer netip.Addr, err error) {
		b.problems.Update(network.PathNarrow, "path to "+peer.String(), err)
	}})))
}
