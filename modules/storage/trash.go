package storage

import (
	"cmp"
	"context"
	"errors"
	"slices"
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
	have.volumes = slices.DeleteFunc(have.volumes, func(o *resource.Volume) bool { return o.UID == v.UID })
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
