package storage

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// trashLook is how long what is in the trash is left alone at most: clocks are set.
const trashLook = time.Hour

// reconcileTrash takes the next step for a volume in the trash: it is put away, kept until its
// time is over, and then taken away as any other is.
func (c *Controller) reconcileTrash(ctx context.Context, key string) (again time.Duration, err error) {
	trash := store.Of[resource.Trash](c.cfg.Store)
	t, err := trash.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	shared := t.Spec.Was.Class == resource.SharedVolume
	switch {
	case t.Deleting() && shared:
		return removeShared(ctx, c, trash, t, t.Was())
	case t.Deleting():
		return end(ctx, c, trash, t, t.Was().WorkspaceKey())
	}
	if t.Status.Moving != nil {
		if _, err := endMove(ctx, c, trash, t); err != nil {
			return 0, err
		}
	}
	left := time.Until(t.Spec.Until)
	if left <= 0 {
		_, err := trash.Modify(ctx, key, func(now *resource.Trash) error {
			if now.UID != t.UID || now.Deleting() {
				return store.ErrSkip
			}
			now.DeletedAt = new(time.Now().UTC())
			return nil
		})
		if errors.Is(err, store.ErrNotFound) {
			return 0, nil // it came back a moment ago
		}
		return 0, err
	}
	var lost, disk, silent bool
	if shared {
		hosts, err := c.hostsOf(ctx, t.Was())
		if err != nil {
			return 0, err
		}
		reporting := 0
		for _, b := range t.Status.Bricks {
			if n := hosts[b.UID]; n != nil && !n.Silent() {
				reporting++
			}
		}
		_, source := lostOf(t.Was(), hosts)
		lost, silent = !source, reporting <= len(t.Status.Bricks)/2
	} else {
		host, err := c.nodeOf(ctx, t.Status.Node, t.Status.NodeUID)
		if err != nil {
			return 0, err
		}
		disk = host != nil && host.LostPool(t.Status.Pool)
		lost, silent = host == nil || disk, host != nil && host.Silent()
	}
	return min(left, trashLook), trash.Observe(ctx, t, func(now *resource.Trash) { settleTrash(now, lost, disk, silent) })
}

// Restore calls commit, which writes that a volume comes back from the trash to another workspace than it was of, unless
// its hosts have as many of that as they can: an *access.Refusal.
func (c *Controller) Restore(ctx context.Context, v *resource.Volume, commit func() error) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	have, err := c.promises(ctx)
	if err != nil {
		return err
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	// It is on its hosts as it is; of all volumes there are no more than before.
	have = have.without(v)
	why := ""
	for _, n := range nodes {
		if v.IsOn(n.UID) {
			why = cmp.Or(why, have.crowded(n, v.WorkspaceKey()))
		}
	}
	if v.Spec.Class == resource.SharedVolume {
		why = cmp.Or(why, have.seen(nodes, v.WorkspaceKey()))
	}
	if why != "" {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be there: " + why + "."}
	}
	return commit()
}

// settleTrash computes the phase from what was seen. lost: no host has what it holds any more; disk: since
// that was given up; silent: those that do don't report, or too few of them.
func settleTrash(t *resource.Trash, lost, disk, silent bool) {
	s := &t.Status
	s.ObservedGeneration = t.Generation
	shared := t.Spec.Was.Class == resource.SharedVolume
	not := resource.Condition{Type: resource.VolumeKept, Status: resource.False}
	switch {
	case lost:
		not.Reason, not.Final = "HostRemoved", true
		not.Message = "the host that it was on is not part of the platform any more, and what it held is lost with it"
		if disk {
			not.Reason, not.Message = diskLost, diskLostText
		}
		if shared {
			not.Message = "every host or disk with a copy of it was given up, and what it held is lost with them"
		}
		s.Conditions.Set(not)
		s.Phase = resource.Failed
	case silent && shared:
		// What was put away stays so: one copy alone serves nobody, and the others don't.
		s.Phase = resource.Degraded
	case silent:
		not.Reason, not.Message = "HostSilent", "the host that it is on does not report: it can be had back once that does"
		s.Conditions.Set(not)
		s.Phase = resource.Degraded
	case s.Conditions.Is(resource.VolumeKept):
		s.Phase = resource.Kept
	default:
		s.Phase = resource.Updating
	}
}
