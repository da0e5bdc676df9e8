package storage

import (
	"context"
	"errors"
	"time"

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
	if t.Deleting() {
		return end(ctx, c, trash, t, t.Was().WorkspaceKey())
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
	host, err := c.nodeOf(ctx, t.Status.Node, t.Status.NodeUID)
	if err != nil {
		return 0, err
	}
	return min(left, trashLook), trash.Observe(ctx, t, func(now *resource.Trash) { settleTrash(now, host) })
}

// settleTrash computes the phase from what was seen.
func settleTrash(t *resource.Trash, host *resource.Node) {
	s := &t.Status
	s.ObservedGeneration = t.Generation
	switch {
	case host == nil:
		s.Conditions.Set(resource.Condition{Type: resource.VolumeKept, Status: resource.False, Reason: "HostRemoved", Final: true,
			Message: "the host that it was on is not part of the platform any more, and what it held is lost with it"})
		s.Phase = resource.Failed
	case host.Status.Phase == resource.Degraded:
		s.Conditions.Set(resource.Condition{Type: resource.VolumeKept, Status: resource.False, Reason: "HostSilent",
			Message: "the host that it is on does not report: it can be had back once that does"})
		s.Phase = resource.Degraded
	case s.Conditions.Is(resource.VolumeKept):
		s.Phase = resource.Kept
	default:
		s.Phase = resource.Updating
	}
}
