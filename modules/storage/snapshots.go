package storage

import (
	"context"
	"errors"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// retryNeeded is how often a look is taken at something that is deleted, but has to be copied first.
const retryNeeded = 2 * time.Second

// reconcileSnapshot takes the next step for one snapshot.
func (c *Controller) reconcileSnapshot(ctx context.Context, key string) (again time.Duration, err error) {
	s, err := store.Of[resource.Snapshot](c.cfg.Store).Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	host, err := c.nodeOf(ctx, s.Status.Node, s.Status.NodeUID)
	if err != nil {
		return 0, err
	}
	if s.Deleting() {
		return c.removeSnapshot(ctx, s, host)
	}
	if s.Spec.Until != nil {
		if again = time.Until(*s.Spec.Until); again <= 0 {
			return 0, markDeleted(ctx, store.Of[resource.Snapshot](c.cfg.Store), s)
		}
		again = min(again, trashLook)
	}
	if s.Spec.Provisioned && s.Status.Copy.Failed(s.Status.Conditions) {
		return 0, markDeleted(ctx, store.Of[resource.Snapshot](c.cfg.Store), s)
	}
	if !s.Status.Copy.Whole() && s.Status.Phase != resource.Failed && host != nil && !host.LostPool(s.Status.Pool) {
		return c.copySnapshot(ctx, s)
	}
	return again, store.Of[resource.Snapshot](c.cfg.Store).Observe(ctx, s, func(now *resource.Snapshot) {
		settleSnapshot(now, host)
	})
}

// markDeleted begins the deletion of something whose time is over, or of a copy that failed: a cluster that asked for one was
// told by then, asks again, and finds none. What failed for people is theirs to delete.
func markDeleted[P resource.Object](ctx context.Context, kind store.Kind[P], obj P) error {
	_, err := kind.Modify(ctx, obj.Key(), func(now P) error {
		if now.Metadata().UID != obj.Metadata().UID || now.Metadata().Deleting() {
			return store.ErrSkip
		}
		now.Metadata().DeletedAt = new(time.Now().UTC())
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// settleSnapshot computes the phase from what was seen.
func settleSnapshot(s *resource.Snapshot, host *resource.Node) {
	now := &s.Status
	switch {
	case !now.Copy.Whole() && now.Phase == resource.Failed:
		return
	case host == nil:
		now.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "HostRemoved", Final: true,
			Message: "the host that it was on is not part of the platform any more, and it is lost with that"})
		now.Phase, now.ObservedGeneration = resource.Failed, s.Generation
		return
	case host.LostPool(now.Pool):
		now.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: diskLost, Final: true,
			Message: diskLostText})
		now.Phase, now.ObservedGeneration = resource.Failed, s.Generation
		return
	case host.Silent():
		now.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "HostSilent",
			Message: "the host that it is on does not report: it comes back with that"})
	}
	switch {
	case now.Conditions.Is(resource.SnapshotReady):
		now.Phase, now.ObservedGeneration = resource.Ready, s.Generation
	case s.Made():
		now.Phase = resource.Degraded
	default:
		now.Phase = resource.Creating
	}
}

// removeSnapshot takes a snapshot away: its host first, the resource last.
func (c *Controller) removeSnapshot(
	ctx context.Context, s *resource.Snapshot, host *resource.Node,
) (again time.Duration, err error) {
	snapshots := store.Of[resource.Snapshot](c.cfg.Store)
	if host != nil && !s.Status.Conditions.Is(resource.SnapshotRemoved) {
		if s.Status.Phase == resource.Deleting {
			return 0, nil // its host reports
		}
		what, err := c.neededFor(ctx, s.WorkspaceKey(), s.UID)
		if err != nil {
			return 0, err
		}
		if what != "" {
			return retryNeeded, snapshots.Observe(ctx, s, func(now *resource.Snapshot) {
				waitFor(&now.Status.Conditions, resource.SnapshotRemoved, what)
			})
		}
	}
	if err := c.dropKey(ctx, s.WorkspaceKey(), s.UID); err != nil {
		return 0, err
	}
	if host != nil && !s.Status.Conditions.Is(resource.SnapshotRemoved) {
		return 0, snapshots.Observe(ctx, s, func(now *resource.Snapshot) { now.Status.Phase = resource.Deleting })
	}
	failpoint.Reach("storage/snapshot/removed")
	if err := snapshots.Delete(ctx, s); err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, err // a conflict too: it is looked at again
	}
	c.cfg.Log.Info("snapshot removed", "snapshot", s.Key(), "node", s.Status.Node, "hostGone", host == nil)
	return 0, nil
}

// waitFor says that something is deleted once another was made from it.
func waitFor(conditions *resource.Conditions, removed, what string) {
	conditions.Set(resource.Condition{Type: removed, Status: resource.False, Reason: "Needed",
		Message: what + " is made from it first"})
}
