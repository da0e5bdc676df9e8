package storage

import (
	"context"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// maxMoving is how many volumes have a copy filled at a time because a host is removed: that reads and writes all of them
// on three hosts, whose tenants shall notice little.
const maxMoving = 2

// moveCopy has another host have the copy that is on one which is being removed, once all copies of the volume are there
// and the same. What is in the old one is kept until the new one has it. leave says how far it is; nil: none has to go.
func (c *Controller) moveCopy(
	ctx context.Context, v *resource.Volume, hosts map[string]*resource.Node,
) (leave *resource.Condition, err error) {
	at := slices.IndexFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool {
		return hosts[b.UID] != nil && hosts[b.UID].Deleting()
	})
	waits := func(reason, message string) *resource.Condition {
		return &resource.Condition{Type: resource.VolumeCopiesStay, Status: resource.False, Reason: reason, Message: message}
	}
	const others = "a host with a copy of it is being removed: it goes to another once those of other volumes have"
	lost, _ := lostOf(v, hosts)
	switch was := v.Status.Conditions.Get(resource.VolumeCopiesStay); {
	case stuck(v, hosts):
		return waits("OperatorNeeded", "a host with a copy of it was given up while another copy was on the way to a new host, and "+
			"the old one of that may be the only one with everything: nothing is made or taken away by itself. The operator has to look, "+
			"and to give up the host that is being removed once that one is not needed"), nil
	case at < 0 && len(v.Status.Leaving) > 0:
		return waits("Moving", "a copy of it is being made in another place: its host is being removed, its disk is "+
			"lost, or has less room than others"), nil
	case at < 0 && was != nil:
		return &resource.Condition{Type: resource.VolumeCopiesStay, Status: resource.True, Reason: "Moved"}, nil
	case at < 0:
		return nil, nil
	case len(v.Status.Bricks) < fullCopies:
		return waits("OnlyCopy", "the host with its only copy is being removed: it has to be deleted, or the host given up"), nil
	case !v.Whole() || lost != nil || len(v.Status.Leaving) > 0:
		return waits("Waits", "a host with a copy of it is being removed: it goes to another once all of its copies are there"), nil
	case !c.moves.TryAccept():
		if was != nil && was.Status != resource.True {
			return was, nil
		}
		return waits("Waits", others), nil
	case filling(c.cfg.Volumes.List("")) >= maxMoving:
		return waits("Waits", others), nil
	}
	done, err := c.alone(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	have, err := c.promises(ctx)
	if err != nil {
		return nil, err
	}
	if filling(have.volumes) >= maxMoving { // the cache may be behind
		return waits("Waits", others), nil
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	old := v.Status.Bricks[at]
	var taken []*resource.Node
	for _, b := range v.Status.Bricks {
		if b.UID != old.UID && hosts[b.UID] != nil {
			taken = append(taken, hosts[b.UID])
		}
	}
	need := []int64{resource.BrickBytes(v.Spec.SizeBytes, old.Arbiter)}
	to := copies{hosts: spread(able(v, nodes), have.without(v).room(v.WorkspaceKey()), need, taken)}
	if len(to.hosts) == 0 {
		return waits(resource.NoCapacity, "its host is being removed, and no other host has room for a copy of it now"), nil
	}
	to.pools = have.poolsOf(to.hosts)
	host := to.hosts[0]
	ops := append(c.stays(to.spots()...), c.replaceOp(v, old, spot{host: host, pool: to.pools[0]}, store.NewUID()))
	if err := c.settlePlace(ctx, ops); err != nil {
		return nil, err
	}
	c.cfg.Log.Info("a copy of a volume goes to another host", "volume", v.Key(), "from", old.Node, "to", host.Name)
	return waits("Moving", "a copy of it is being made on another host, since its host is being removed"), nil
}

// replaceOp has a copy of a volume be in another place from now on, under a UID that is new; what is in the old one is kept
// until the new one has it. With store.ErrNotFound nothing of its commit is written: the volume is not as it was.
func (c *Controller) replaceOp(v *resource.Volume, old resource.VolumeBrick, to spot, uid string) store.Op {
	return store.Of[resource.Volume](c.cfg.Store).ModifyOp(v.Key(), func(now *resource.Volume) error {
		was := now.Brick(old.UID)
		if now.UID != v.UID || now.Deleting() || was == nil || !now.Whole() || len(now.Status.Leaving) > 0 {
			return store.ErrNotFound
		}
		now.Status.Leaving = append(now.Status.Leaving, *was)
		*was = resource.VolumeBrick{UID: uid, Node: to.host.Name, NodeUID: to.host.UID, Pool: to.pool, Arbiter: old.Arbiter,
			Replaces: old.UID}
		return nil
	})
}

// filling counts the volumes that have a copy filled because a host is removed, or for balance. In the trash none is.
func filling(volumes []*resource.Volume) (n int) {
	for _, v := range volumes {
		if len(v.Status.Leaving) > 0 && !v.Whole() && !v.Deleting() && v.Status.Conditions.Get(resource.VolumeKept) == nil {
			n++
		}
	}
	return n
}

// stuck says that a host with a copy of a volume was given up while the place of another was taken by one that may not have
// all yet: what leaves may be the only copy that does. A new one whose host was given up before GlusterFS had it is no loss.
func stuck(v *resource.Volume, hosts map[string]*resource.Node) bool {
	return slices.ContainsFunc(v.Status.Leaving, func(b resource.VolumeBrick) bool { return hosts[b.UID] != nil }) &&
		slices.ContainsFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool { return hosts[b.UID] == nil && b.Replaces == "" })
}
