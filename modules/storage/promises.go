package storage

import (
	"context"
	"fmt"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// promises are what hosts have been promised to.
type promises struct {
	machines               []*resource.Machine
	volumes                []*resource.Volume
	snapshots              []*resource.Snapshot
	toMachines             map[string]resource.Size // by node's name
	toVolumes, toSnapshots map[resource.PoolAt]int64
}

// promises asks the store, for caches may be behind what the lock let others write. The caller is
// alone.
func (c *Controller) promises(ctx context.Context) (p promises, err error) {
	if p.machines, _, err = store.Of[resource.Machine](c.cfg.Store).List(ctx, "", "", 0); err != nil {
		return p, err
	}
	if p.volumes, err = c.cfg.Store.OnHosts(ctx); err != nil {
		return p, err
	}
	if p.snapshots, _, err = store.Of[resource.Snapshot](c.cfg.Store).List(ctx, "", "", 0); err != nil {
		return p, err
	}
	p.toSnapshots = resource.PromisedToSnapshots(p.snapshots)
	p.toMachines, p.toVolumes = resource.Promised(p.machines), resource.PromisedToVolumes(p.volumes)
	return p, nil
}

// free says how much of a node's pool nobody was promised. A host's own folder shares the host's disk with machines.
func (p promises) free(n *resource.Node, pool string) int64 {
	at := resource.PoolAt{Node: n.UID, Pool: pool}
	taken := p.toVolumes[at] + p.toSnapshots[at]
	if pool == "" {
		return n.Status.Capacity.DiskBytes - p.toMachines[n.Name].DiskBytes - taken
	}
	if has := n.Pool(pool); has != nil {
		return has.CapacityBytes - taken
	}
	return 0
}

// best is the node's pool with the most room of those that take in new volumes, one that ails only if no other has room; none
// has none.
func (p promises) best(n *resource.Node) (pool string, free int64) {
	ails := false
	for _, has := range n.Status.Pools {
		room := p.free(n, has.UID)
		if !n.TakesIn(has.UID) || room <= 0 {
			continue
		}
		if free == 0 || ails && !has.Ails() || ails == has.Ails() && room > free {
			pool, free, ails = has.UID, room, has.Ails()
		}
	}
	return pool, free
}

// poolsOf are the pools in which hosts have room.
func (p promises) poolsOf(hosts []*resource.Node) (pools []string) {
	for _, n := range hosts {
		pool, _ := p.best(n)
		pools = append(pools, pool)
	}
	return pools
}

// without is have without a volume that is placed already, for whom a host of one thing more of it is looked for.
func (p promises) without(v *resource.Volume) promises {
	p.volumes = slices.DeleteFunc(slices.Clone(p.volumes), func(o *resource.Volume) bool { return o.UID == v.UID })
	return p
}

// load is what a host has of volumes.
type load struct {
	all, own int // volumes and copies on it: of everybody, and of a workspace
	sees     int // machines of the workspace there
	// mounted is own, and what those machines see of shared volumes besides: each has a client run for each.
	mounted int
}

func (p promises) load(n *resource.Node, workspace string) (l load) {
	for _, m := range p.machines {
		if m.Spec.Node == n.Name && m.WorkspaceKey() == workspace && !m.Deleting() {
			l.sees++
		}
	}
	for _, v := range p.volumes {
		here, own := v.IsOn(n.UID), v.WorkspaceKey() == workspace
		if here {
			l.all++
		}
		if here && own {
			l.own++
		}
		switch {
		case own && v.Spec.Class == resource.SharedVolume && placed(v) && l.sees > 0:
			l.mounted += l.sees
		case here && own:
			l.mounted++
		}
	}
	return l
}

// crowded says why a node can't have one volume more of a workspace, whatever its size; "" if it can. What its machines there
// see of shared volumes counts for the workspace, and for nobody else.
func (p promises) crowded(n *resource.Node, workspace string) string {
	l := p.load(n, workspace)
	return l.crowded(l.mounted, 1)
}

// crowded is that, where a workspace has so many of what is counted of it, for some more.
func (l load) crowded(has, more int) string {
	switch {
	case has+more > resource.MaxWorkspaceVolumesOnHost:
		return fmt.Sprintf("the host that could have it has %d volumes of this workspace, shared ones once for each of its machines "+
			"there, and no more than %d are possible: delete some, also from the trash, or add machines on other hosts",
			has, resource.MaxWorkspaceVolumesOnHost)
	case l.all >= resource.MaxVolumesOnHost:
		return "the host that could have it has as many volumes as are possible: ask the operator for another host"
	}
	return ""
}

// snapped is crowded for a snapshot.
func (p promises) snapped(n *resource.Node, workspace string) string {
	all, own := 0, 0
	for _, s := range p.snapshots {
		if s.Status.NodeUID == n.UID {
			all++
			if s.WorkspaceKey() == workspace {
				own++
			}
		}
	}
	switch {
	case own >= resource.MaxWorkspaceSnapshotsOnHost:
		return fmt.Sprintf("its host has %d snapshots of this workspace, and no more are possible: delete some", own)
	case all >= resource.MaxSnapshotsOnHost:
		return "its host has as many snapshots as are possible: delete some, or ask the operator for another host"
	}
	return ""
}

// seen says why the hosts of a workspace's machines, which all see its shared volumes, can't have one more; "" if they can. How
// many others are on them doesn't matter for that.
func (p promises) seen(nodes []*resource.Node, workspace string) string {
	hosts := map[string]bool{}
	for _, m := range p.machines {
		if m.WorkspaceKey() == workspace && !m.Deleting() {
			hosts[m.Spec.Node] = true
		}
	}
	for _, n := range nodes {
		if !hosts[n.Name] {
			continue
		}
		l := p.load(n, workspace)
		l.all = 0
		if why := l.crowded(l.mounted, l.sees); why != "" {
			return "all of the workspace's machines see it, and " + why
		}
	}
	return ""
}

// room says how much of a node's disks one more copy of a workspace's shared volume can have. What its machines see there is the
// same wherever the copies are, so it doesn't count.
func (p promises) room(workspace string) func(*resource.Node) int64 {
	return func(n *resource.Node) int64 {
		if l := p.load(n, workspace); l.crowded(l.own, 1) != "" {
			return 0
		}
		_, free := p.best(n)
		return free
	}
}
