package storage

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// A copy of a shared volume is one of one of its bricks, made by that one's host as copies of local volumes are. What was
// synced is in all bricks that were there; so it is looked, before and afterwards, whether all are, and have the same. What
// that doesn't see: a client that lost this one brick alone, wrote to the others, and all of that healed between the looks.

const (
	// retryLook is how often copies are looked at that wait, besides when their volume changes.
	retryLook = 5 * time.Second
	// makeAnother is what a person is to do who has asked for a copy that failed. For a cluster it is done: it asks again.
	makeAnother = ": delete it, and make another"
	// seenOnly is BrickCopy.Seen of a volume with one brick, which has all that there is.
	seenOnly = "only"
)

// tellCopies has what is made of a shared volume looked at, which has changed.
func (c *Controller) tellCopies(key string) {
	v, ok := c.cfg.Volumes.Get(key)
	if !ok || v.Status.Look == 0 {
		return
	}
	for _, s := range c.cfg.Snapshots.List(v.WorkspaceKey()) {
		if s.Spec.VolumeUID == v.UID && !s.Status.Copy.Whole() {
			c.snaps.Add(s.Key())
		}
	}
	for _, o := range c.cfg.Volumes.List(v.WorkspaceKey()) {
		if uidOf(o.Spec.Source) == v.UID && !o.Status.Copy.Whole() {
			c.loop.Add(o.Key())
		}
	}
}

// beginCopy is a copy of this brick of a volume.
func beginCopy(v *resource.Volume, brick string) *resource.BrickCopy {
	if len(v.Status.Bricks) == 1 {
		return &resource.BrickCopy{Brick: brick, Seen: seenOnly, Checked: true}
	}
	return &resource.BrickCopy{Brick: brick}
}

// advance takes the next step for a copy of a shared volume: next is what it is then, what it waits for, or why it can't become
// anything any more. made: its host has made it.
func (c *Controller) advance(
	ctx context.Context, key, uid string, now resource.BrickCopy, made bool,
) (next resource.BrickCopy, waits, fails string, err error) {
	volumes := store.Of[resource.Volume](c.cfg.Store)
	v, err := volumes.Get(ctx, key)
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return now, "", "", err
	case err != nil || v.UID != uid || v.Going():
		return now, "", "the volume was deleted before its copy was made, and looked at", nil
	case v.Brick(now.Brick) == nil:
		return now, "", "the copy of the volume that this was made of is in another place by now" + makeAnother, nil
	case now.Seen != "" && !made:
		return now, "its host is making it", "", nil
	case now.Look == 0:
		_, err := volumes.Modify(ctx, key, func(v *resource.Volume) error {
			v.Status.Look++
			now.Look = v.Status.Look
			return nil
		})
		return now, "it is looked at whether all copies of the volume have the same", "", err
	}
	processes, looked := v.Processes(now.Look)
	switch {
	case !looked:
		return now, "it is looked at whether all copies of the volume have the same", "", nil
	case now.Seen == "" && !v.Whole():
		return now, "it is made once all copies of the volume are there, and have the same", "", nil
	case now.Seen == "":
		now.Seen, now.Look = processes, 0
	case !v.Whole() || now.Seen != processes:
		return now, "", "a copy of the volume went, or missed something, while this was made, so it may lack what was written" +
			makeAnother, nil
	default:
		now.Checked = true
	}
	return now, "", "", nil
}

// copySnapshot takes a snapshot of a shared volume further. again is above 0 until it is done.
func (c *Controller) copySnapshot(ctx context.Context, s *resource.Snapshot) (again time.Duration, err error) {
	key := s.WorkspaceKey() + "/" + s.Spec.Volume
	next, waits, fails, err := c.advance(ctx, key, s.Spec.VolumeUID, *s.Status.Copy, s.Made())
	if err != nil {
		return 0, err
	}
	return retryLook, store.Of[resource.Snapshot](c.cfg.Store).Observe(ctx, s, func(now *resource.Snapshot) {
		if now.Status.Copy == nil || *now.Status.Copy != *s.Status.Copy {
			return
		}
		now.Status.Copy = &next
		ready := resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "Copying", Message: waits}
		switch {
		case fails != "":
			ready.Reason, ready.Message, ready.Final = "NotWhole", fails, true
			now.Status.Phase, now.Status.ObservedGeneration = resource.Failed, now.Generation
		case next.Checked:
			ready.Status, ready.Reason = resource.True, "Ready"
		case waits == "" || now.Status.Copy.Seen != "" && !now.Made():
			return // its host says how far it is
		}
		now.Status.Conditions.Set(ready)
	})
}

// copyVolume is copySnapshot for a shared volume that is made from another.
func (c *Controller) copyVolume(ctx context.Context, v *resource.Volume) (again time.Duration, err error) {
	from := v.Spec.Source
	next, waits, fails, err := c.advance(ctx, v.WorkspaceKey()+"/"+from.Volume, from.UID, *v.Status.Copy, v.Status.Bricks[0].Ready)
	if err != nil {
		return 0, err
	}
	return retryLook, store.Of[resource.Volume](c.cfg.Store).Observe(ctx, v, func(now *resource.Volume) {
		if now.Status.Copy == nil || *now.Status.Copy != *v.Status.Copy {
			return
		}
		now.Status.Copy = &next
		ready := resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Copying", Message: waits}
		if fails != "" {
			ready.Reason, ready.Message, ready.Final = "NotWhole", fails, true
			now.Status.Phase, now.Status.ObservedGeneration = resource.Failed, now.Generation
		} else if b := now.Status.Bricks[0]; b.Message != "" && !b.Ready {
			ready.Message = b.Message // how far its host is
		}
		now.Status.Conditions.Set(ready)
	})
}

// Needed says with an *access.Refusal what is being made from a shared volume. In the trash it is stopped, and nothing can be.
func (c *Controller) Needed(ctx context.Context, v *resource.Volume) error {
	if v.Spec.Class != resource.SharedVolume {
		return nil
	}
	what, err := c.neededFor(ctx, v.WorkspaceKey(), v.UID)
	if err != nil || what == "" {
		return err
	}
	return &access.Refusal{Reason: access.ErrExists, Text: "The " + what + " is being made from it.",
		Remedy: "Wait until that is Ready, or delete it, then type the same again."}
}

// brickOrigin is the brick of a shared volume that a copy is best made of: on its host is the most room. The caller is
// alone. The error is a *shortError if there is none now.
func (c *Controller) brickOrigin(ctx context.Context, v *resource.Volume) (at origin, err error) {
	if len(v.Status.Bricks) > 1 && !v.Whole() || !v.Status.Conditions.Is(resource.VolumeServed) {
		return at, &shortError{v.Name + " can't be copied while a copy of it is away, or is given what it missed: " +
			"`mp volumes show " + v.Name + "` says more"}
	}
	if err := c.copiesShared(); err != nil {
		return at, err
	}
	have, err := c.promises(ctx)
	if err != nil {
		return at, err
	}
	var most int64 = -1
	for _, b := range v.Status.Bricks {
		n, err := c.nodeOf(ctx, b.Node, b.NodeUID)
		if err != nil {
			return at, err
		}
		if b.Arbiter || n == nil || n.Silent() || !n.TakesIn(b.Pool) || !b.Online {
			continue
		}
		if free := max(have.free(n, b.Pool), 0); free > most {
			most, at = free, origin{node: b.Node, nodeUID: b.NodeUID, pool: b.Pool, copy: beginCopy(v, b.UID), shared: true}
		}
	}
	if most < 0 {
		return at, &shortError{"no host with a copy of " + v.Name + " can make one now: try it again later"}
	}
	return at, nil
}

// copiesShared says that there is a host with shared volumes, which may lead all, and knows nothing of copies.
func (c *Controller) copiesShared() error {
	if slices.ContainsFunc(c.cfg.Nodes.List(""), func(n *resource.Node) bool { return n.Shares() && !n.CopiesShared() }) {
		return &shortError{"some hosts with shared volumes can't copy them yet: the operator has to upgrade all of them first"}
	}
	return nil
}

// noteCopy gives a volume that is made from something its place or places, of which the first is that of what it is made
// from; all other copies are filled from there. ops are to be committed with it. The caller is alone. The error is a
// *shortError if there are not enough hosts.
func (c *Controller) noteCopy(ctx context.Context, from origin, at spot, v *resource.Volume) (ops []store.Op, err error) {
	if !from.shared {
		at.note(v)
		return nil, nil
	}
	if err := c.copiesShared(); err != nil {
		return nil, err
	}
	have, err := c.promises(ctx)
	if err != nil {
		return nil, err
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	if why := have.seen(nodes, v.WorkspaceKey()); why != "" {
		return nil, &shortError{why}
	}
	nodes = able(v, nodes)
	need := bricksOf(v.Spec, nodes)
	to := copies{hosts: []*resource.Node{at.host}, arbiter: v.Spec.Arbiter}
	to.hosts = append(to.hosts, spread(nodes, have.room(v.WorkspaceKey()), need[1:], to.hosts)...)
	if len(to.hosts) < len(need) {
		return nil, noHosts(need, len(to.hosts))
	}
	to.pools = append([]string{at.pool}, have.poolsOf(to.hosts[1:])...)
	to.note(v)
	for i := range v.Status.Bricks {
		v.Status.Bricks[i].Filling = i > 0
	}
	v.Status.Copy = from.copy
	return c.stays(to.spots()[1:]...), nil
}
