package appliance

import (
	"context"
	"errors"

	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/storage"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/workspace"
)

// addStorage adds who takes volumes through their life, and serves what planes ask for
// their claims.
func (s *server) addStorage(
	from part[*store.Store],
	volumes cacheOf[*resource.Volume],
	snapshots cacheOf[*resource.Snapshot],
	trash cacheOf[*resource.Trash],
	nodes cacheOf[*resource.Node],
	machines cacheOf[*resource.Machine],
	workspaces cacheOf[*resource.Workspace],
) part[*storage.Controller] {
	n := &needs{}
	return add(s.graph, "storage", n, storage.New(storage.Config{
		Log:        s.part("storage"),
		Store:      from.of(n),
		Limits:     s.cfg.Limits,
		Seal:       s.seal,
		Volumes:    volumes.of(n),
		Snapshots:  snapshots.of(n),
		Trash:      trash.of(n),
		Nodes:      nodes.of(n),
		Machines:   machines.of(n),
		Workspaces: workspaces.of(n),
		Registerer: s.metrics,
	}))
}

// checkVolumeKeys looks once whether the server has the file that the keys of encrypted volumes were sealed
// with: it is read at the start.
func (s *server) checkVolumeKeys(c *storage.Controller) func(context.Context) {
	looked := false
	return func(ctx context.Context) {
		if looked {
			return
		}
		err := c.CheckKeys(ctx)
		if looked = err == nil || errors.Is(err, seal.ErrOtherKey); looked {
			s.problems.Update(storage.OtherSeal, "", err)
		}
	}
}

// addFollower adds who tells clusters where volumes are that move.
func (s *server) addFollower(
	from part[*store.Store], volumes cacheOf[*resource.Volume], controller part[*workspace.Controller],
) {
	n := &needs{}
	add(s.graph, "storage-follower", n, &storage.Follower{
		Log:        s.part("storage"),
		Store:      from.of(n),
		Volumes:    volumes.of(n),
		Clusters:   controller.of(n),
		Registerer: s.metrics,
	})
}
