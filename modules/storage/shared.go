package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// fullCopies is how many copies are needed so that one of them can be away: two that lose each
// other could not say which is right.
const fullCopies = 3

// copies are the hosts of a shared volume's bricks, in order.
type copies struct {
	hosts   []*resource.Node
	pools   []string // UIDs of the hosts', in this order
	arbiter bool     // the last one's
}

// note writes down that a volume's bricks are there.
func (at copies) note(v *resource.Volume) {
	v.Status.Phase = resource.Creating
	for i, n := range at.hosts {
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: store.NewUID(), Node: n.Name, NodeUID: n.UID,
			Pool: at.pools[i], Arbiter: at.arbiter && i == len(at.hosts)-1})
	}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumePlaced, Status: resource.True, Reason: "Placed"})
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Creating",
		Message: "its hosts are making its copies"})
}

// spots are the places of its bricks.
func (at copies) spots() (all []spot) {
	for i, n := range at.hosts {
		all = append(all, spot{host: n, pool: at.pools[i]})
	}
	return all
}

// assign chooses the place or places of a volume, one of these places for a local one, if any are given, and
// writes them down in it. The caller is alone. The error is a *shortError if none has room.
func (c *Controller) assign(ctx context.Context, v *resource.Volume, places []string) (at []spot, err error) {
	if v.Spec.Class == resource.SharedVolume {
		all, err := c.chooseShared(ctx, v)
		if err != nil {
			return nil, err
		}
		all.note(v)
		return all.spots(), nil
	}
	one, err := c.choose(ctx, v, places)
	if err != nil {
		return nil, err
	}
	one.note(v)
	return []spot{one}, nil
}

// chooseShared picks the hosts of a shared volume's copies, which may be any of the platform's.
// The caller is alone. The error is a *shortError if there are not enough.
func (c *Controller) chooseShared(ctx context.Context, v *resource.Volume) (at copies, err error) {
	have, err := c.promises(ctx)
	if err != nil {
		return at, err
	}
	if !slices.ContainsFunc(have.machines, func(m *resource.Machine) bool {
		return m.WorkspaceKey() == v.WorkspaceKey() && !m.Deleting()
	}) {
		return at, &shortError{noMachine}
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return at, err
	}
	if why := have.seen(nodes, v.WorkspaceKey()); why != "" {
		return at, &shortError{why}
	}
	need := bricksOf(v.Spec, nodes) // it waits for those that are to be upgraded: how many copies it has is for good
	nodes = able(v, nodes)
	switch {
	case len(nodes) > 0:
	case v.Spec.Encrypted:
		return at, &shortError{noEncryption}
	case v.Importing():
		return at, &shortError{"no host takes a file for a shared volume yet: the operator has to upgrade them first"}
	}
	at.arbiter = v.Spec.Arbiter
	at.hosts = spread(nodes, have.room(v.WorkspaceKey()), need, nil)
	if len(at.hosts) < len(need) {
		return at, noHosts(need, len(at.hosts))
	}
	at.pools = have.poolsOf(at.hosts)
	return at, nil
}

func noHosts(need []int64, have int) error {
	return &shortError{fmt.Sprintf("%s for its copies, and %d can have one now: wait, ask for a smaller one, "+
		"for one copy (replicas: 1), or the operator for more disk", hostsWith(need), have)}
}

func hostsWith(need []int64) string {
	if len(need) == 1 {
		return fmt.Sprintf("a host with %s free is needed", resource.Bytes.Text(need[0]))
	}
	return fmt.Sprintf("%d hosts with %s free each are needed", len(need), resource.Bytes.Text(need[0]))
}

// bricksOf is how large each brick of a volume has to be. How many there are by themselves goes by how
// many hosts the platform has for it, also if one of them is silent now: a volume would have one
// copy for good because of that.
func bricksOf(spec resource.VolumeSpec, nodes []*resource.Node) (need []int64) {
	n := spec.Replicas
	if n == 0 && spec.Arbiter {
		n = fullCopies - 1
	}
	if n == 0 {
		n = 1
		able := slices.DeleteFunc(slices.Clone(nodes), func(n *resource.Node) bool {
			return !n.Shares() || spec.Encrypted && !n.Encrypts()
		})
		if len(able) >= fullCopies {
			n = fullCopies
		}
	}
	for range n {
		need = append(need, resource.BrickBytes(spec.SizeBytes, false))
	}
	if spec.Arbiter {
		need = append(need, resource.BrickBytes(spec.SizeBytes, true))
	}
	return need
}

// zoneOf is what fails with a host.
func zoneOf(n *resource.Node) string { return cmp.Or(n.Spec.Zone, "host "+n.Name) }

// spread picks a host for each brick of such a size, none of those that are taken: of those with room one
// in a zone that has none yet, if there is one, then one with a disk that doesn't ail, and then the one with the most room. It
// returns those that it has found.
func spread(
	nodes []*resource.Node, free func(*resource.Node) int64, need []int64, taken []*resource.Node,
) (hosts []*resource.Node) {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *resource.Node) bool {
		has, _ := n.HasPool()
		return !has || !n.Shares() || n.Spec.Unschedulable || n.Status.Phase != resource.Ready
	})
	room := map[string]int64{} // asked once for each host, for it looks at all volumes
	for _, n := range nodes {
		room[n.UID] = free(n)
	}
	used := map[string]int{}
	for _, n := range taken {
		used[zoneOf(n)]++
	}
	for _, bytes := range need {
		fit := slices.DeleteFunc(slices.Clone(nodes), func(n *resource.Node) bool {
			return room[n.UID] < bytes ||
				slices.ContainsFunc(slices.Concat(taken, hosts), func(t *resource.Node) bool { return t.UID == n.UID })
		})
		if len(fit) == 0 {
			return hosts
		}
		best := slices.MinFunc(fit, func(a, b *resource.Node) int {
			return cmp.Or(cmp.Compare(used[zoneOf(a)], used[zoneOf(b)]), cmp.Compare(ails(a), ails(b)),
				cmp.Compare(room[b.UID], room[a.UID]), cmp.Compare(a.Name, b.Name))
		})
		used[zoneOf(best)]++
		hosts = append(hosts, best)
	}
	return hosts
}

// ails is 1 for a node all of whose pools that take in new volumes ail, else 0.
func ails(n *resource.Node) int {
	if slices.ContainsFunc(n.Status.Pools, func(p resource.Pool) bool { return n.TakesIn(p.UID) && !p.Ails() }) {
		return 0
	}
	return 1
}

// placeShared chooses the hosts of a shared volume that nobody waits for. again is above 0
// while there are not enough.
func (c *Controller) placeShared(ctx context.Context, v *resource.Volume) (again time.Duration, err error) {
	if v.Status.Conditions.Get(resource.VolumePlaced) != nil && !c.retries.TryAccept() {
		return retryPlacing, nil // what it waits for stands there
	}
	var short *shortError
	if err := c.canSeal(ctx, v); errors.As(err, &short) {
		return retryPlacing, c.unplaced(ctx, v, short.Error())
	} else if err != nil {
		return 0, err
	}
	done, err := c.alone(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	at, err := c.chooseShared(ctx, v)
	if errors.As(err, &short) {
		return retryPlacing, c.unplaced(ctx, v, short.Error())
	}
	if err != nil {
		return 0, err
	}
	ops := append(c.stays(at.spots()...), c.newKey(v))
	ops = append(ops, store.Of[resource.Volume](c.cfg.Store).ModifyOp(v.Key(), func(now *resource.Volume) error {
		if now.UID != v.UID || now.Deleting() || len(now.Status.Bricks) > 0 {
			return store.ErrNotFound // see place
		}
		at.note(now)
		return nil
	}))
	return time.Second, c.settlePlace(ctx, ops) // the cache tells sooner
}

// reconcileShared takes the next step for a shared volume.
func (c *Controller) reconcileShared(ctx context.Context, v *resource.Volume) (again time.Duration, err error) {
	if v.Deleting() {
		return removeShared(ctx, c, store.Of[resource.Volume](c.cfg.Store), v, v)
	}
	if len(v.Status.Bricks) == 0 {
		return c.placeShared(ctx, v)
	}
	hosts, err := c.hostsOf(ctx, v)
	if err != nil {
		return 0, err
	}
	living, err := c.livingOf(ctx, v)
	if err != nil {
		return 0, err
	}
	if !v.Status.Copy.Whole() && v.Status.Phase == resource.Failed {
		if v.Spec.Provisioned {
			return 0, markDeleted(ctx, store.Of[resource.Volume](c.cfg.Store), v)
		}
		return 0, nil
	}
	if !v.Status.Copy.Whole() && hosts[v.Status.Bricks[0].UID] != nil {
		return c.copyVolume(ctx, v)
	}
	replaced, full, err := c.replaceLost(ctx, v, hosts)
	if err != nil || replaced {
		return time.Second, err // the cache tells sooner
	}
	leave, err := c.moveCopy(ctx, v, hosts)
	if err != nil {
		return 0, err
	}
	machines := map[string]bool{}
	for _, m := range c.cfg.Machines.List(v.WorkspaceKey()) {
		machines[m.UID] = m.Lives()
	}
	var scrub time.Duration
	err = store.Of[resource.Volume](c.cfg.Store).Observe(ctx, v, func(now *resource.Volume) {
		// Whose host has left is told by it no more.
		now.Status.Attachments = slices.DeleteFunc(now.Status.Attachments, func(a resource.VolumeAttachment) bool {
			return !machines[a.MachineUID]
		})
		if leave != nil {
			now.Status.Conditions.Set(*leave)
		}
		now.Status.Leaving = slices.DeleteFunc(now.Status.Leaving, func(b resource.VolumeBrick) bool { return living[b.UID] == nil })
		settleShared(now, hosts, full)
		scrub = settleScrub(now, hosts, time.Now())
	})
	if full || leave != nil {
		return retryPlacing, err
	}
	return scrub, err
}

// hostsOf are the nodes that have a volume's bricks, those that leave too, by the bricks' UIDs. Bricks have none whose
// host or disk was given up.
func (c *Controller) hostsOf(ctx context.Context, v *resource.Volume) (map[string]*resource.Node, error) {
	hosts, err := c.livingOf(ctx, v)
	for _, b := range v.AllBricks() {
		if n := hosts[b.UID]; n != nil && n.LostPool(b.Pool) {
			delete(hosts, b.UID)
		}
	}
	return hosts, err
}

// livingOf are the nodes that GlusterFS has for the hosts of a volume's bricks, those that leave too, by the bricks' UIDs.
// Those that were given up, or are none of the platform's any more, are left out. The store is asked: see host.
func (c *Controller) livingOf(ctx context.Context, v *resource.Volume) (map[string]*resource.Node, error) {
	hosts := map[string]*resource.Node{}
	for _, b := range v.AllBricks() {
		n, err := store.Of[resource.Node](c.cfg.Store).Get(ctx, b.Node)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil && n.UID == b.NodeUID && !n.Gone() {
			hosts[b.UID] = n
		}
	}
	return hosts, nil
}

// replaceLost has other hosts have the copies of hosts and disks that were given up, as long as one copy is
// left to make them of. full: none has room.
func (c *Controller) replaceLost(
	ctx context.Context, v *resource.Volume, hosts map[string]*resource.Node,
) (replaced, full bool, err error) {
	lost, source := lostOf(v, hosts)
	// Before GlusterFS has it, all of its copies are empty.
	held := v.Status.Conditions.Is(resource.VolumeServed) || v.Spec.Source != nil
	if lost == nil || held && !source || stuck(v, hosts) {
		return false, false, nil
	}
	if r := v.Status.Conditions.Get(resource.VolumeReplicated); r != nil && r.Status != resource.True && !c.retries.TryAccept() {
		return false, true, nil
	}
	done, err := c.alone(ctx)
	if err != nil {
		return false, false, err
	}
	defer done()
	have, err := c.promises(ctx)
	if err != nil {
		return false, false, err
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return false, false, err
	}
	living, err := c.livingOf(ctx, v)
	if err != nil {
		return false, false, err
	}
	var need []int64
	var taken []*resource.Node
	for _, b := range v.Status.Bricks {
		if n := hosts[b.UID]; n != nil {
			taken = append(taken, n)
		} else {
			need = append(need, resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter))
		}
	}
	at := copies{hosts: spread(able(v, nodes), have.without(v).room(v.WorkspaceKey()), need, taken)}
	if len(at.hosts) == 0 {
		return false, true, nil
	}
	at.pools = have.poolsOf(at.hosts)
	ops := append(c.stays(at.spots()...), store.Of[resource.Volume](c.cfg.Store).ModifyOp(v.Key(), func(now *resource.Volume) error {
		if now.UID != v.UID || now.Deleting() {
			return store.ErrSkip
		}
		for i, n := range at.hosts {
			if was := now.Brick(lost[i]); was != nil {
				if living[was.UID] != nil {
					// Its host lost the disk only, and takes away what it has of it yet.
					now.Status.Leaving = append(now.Status.Leaving, *was)
				}
				*was = resource.VolumeBrick{UID: store.NewUID(), Node: n.Name, NodeUID: n.UID, Pool: at.pools[i], Arbiter: was.Arbiter,
					Filling: was.Filling,
					// One that never came in its place is known to nobody.
					Replaces: cmp.Or(was.Replaces, was.UID)}
			}
		}
		return nil
	}))
	if err := c.settlePlace(ctx, ops); err != nil {
		return false, false, err
	}
	c.cfg.Log.Info("copies of a volume that are lost are made anew", "volume", v.Key(), "copies", len(at.hosts))
	return true, false, nil
}

// lostOf are the UIDs of bricks whose hosts or disks were given up. source: a copy of the data is left, on a
// host that GlusterFS has in its place, or that is being removed.
func lostOf(v *resource.Volume, hosts map[string]*resource.Node) (lost []string, source bool) {
	for _, b := range v.Status.Bricks {
		if hosts[b.UID] == nil {
			lost = append(lost, b.UID)
		} else if !b.Arbiter && b.Replaces == "" && !b.Filling {
			source = true
		}
	}
	for _, b := range v.Status.Leaving { // GlusterFS has forgotten it, and what was in it is there
		source = source || hosts[b.UID] != nil && !b.Arbiter
	}
	return lost, source
}

// removeShared takes a shared volume away, in the trash or not: from GlusterFS first, so that nobody can use it, then its bricks,
// the resource last. What is being made from it is made first, as long as all its hosts are there for that. Hosts unmount it
// meanwhile; nobody waits for them, since who has it mounted loses it with its bricks. is obj as a volume.
func removeShared[T stored](
	ctx context.Context, c *Controller, kind store.Kind[T], obj T, is *resource.Volume,
) (again time.Duration, err error) {
	hosts, err := c.livingOf(ctx, is) // also of one without the disk something is mounted
	if err != nil {
		return 0, err
	}
	s := obj.Stored()
	lost := slices.ContainsFunc(s.Bricks, func(b resource.VolumeBrick) bool { return hosts[b.UID] == nil })
	if s.Phase != resource.Deleting && !lost {
		what, err := c.neededFor(ctx, is.WorkspaceKey(), is.UID)
		if err != nil {
			return 0, err
		}
		if what != "" {
			return retryNeeded, kind.Observe(ctx, obj, func(now T) { waitFor(&now.Stored().Conditions, resource.VolumeRemoved, what) })
		}
	}
	left := slices.ContainsFunc(slices.Concat(s.Bricks, s.Leaving), func(b resource.VolumeBrick) bool {
		return hosts[b.UID] != nil && !b.Removed
	})
	forgotten := s.Conditions.Is(resource.VolumeUnserved)
	if !forgotten && len(s.Bricks) > 0 {
		// Nobody could forget it where no host of the platform has a part in shared volumes any more.
		member := func(n *resource.Node) bool { return n.Status.StorageMember && !n.Gone() }
		forgotten = !left && !slices.ContainsFunc(c.cfg.Nodes.List(""), member)
	}
	if len(s.Bricks) > 0 && (left || !forgotten) {
		if s.Phase == resource.Deleting {
			return 0, nil // hosts report
		}
		if err := c.dropKey(ctx, is.WorkspaceKey(), is.UID); err != nil {
			return 0, err
		}
		// The hub has its hosts take it away from now on, and they report.
		return 0, kind.Observe(ctx, obj, func(now T) {
			now.Stored().Phase = resource.Deleting
			if now.Stored().Conditions.Get(resource.VolumeRemoved) != nil { // it waited
				now.Stored().Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.False, Reason: "Removing",
					Message: "its hosts take it away"})
			}
		})
	}
	return 0, forget(ctx, c, kind, obj, is.WorkspaceKey())
}
