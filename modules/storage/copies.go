package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// origin is a volume or a snapshot that a copy is made of, which is on the same host.
type origin struct {
	node, nodeUID, pool string
	firstUID            uint32
	still               store.Op // writes nothing, and fails if it is going when the commit happens

	shared bool                // of class shared
	copy   *resource.BrickCopy // of a shared volume; nil of a snapshot
}

// volumeOrigin finds a volume to copy. The error is a *shortError if it can't be copied now.
func (c *Controller) volumeOrigin(ctx context.Context, workspace, name, uid string, size int64) (origin, error) {
	volumes := store.Of[resource.Volume](c.cfg.Store)
	v, err := volumes.Get(ctx, workspace+"/"+name)
	if err == nil && v.Status.Moving != nil {
		err = &shortError{name + " is on its way to another host"}
	} else if err == nil {
		err = cmp.Or(checkOrigin(name, uid, v.UID, v.Made(), v.Deleting()),
			checkSize(name, size, max(v.Spec.SizeBytes, v.Status.SizeBytes)))
	} else if errors.Is(err, store.ErrNotFound) {
		err = checkOrigin(name, uid, "", false, false)
	}
	if err != nil {
		return origin{}, err
	}
	still := volumes.ModifyOp(v.Key(), func(now *resource.Volume) error {
		if now.Status.Moving != nil {
			return &shortError{name + " is on its way to another host"}
		}
		return stillThere(checkOrigin(name, uid, now.UID, true, now.Deleting()))
	})
	if v.Spec.Class == resource.SharedVolume {
		from, err := c.brickOrigin(ctx, v)
		from.still = still
		return from, err
	}
	at := v.Status
	return origin{node: at.Node, nodeUID: at.NodeUID, pool: at.Pool, firstUID: at.FirstUID, still: still}, nil
}

// snapshotOrigin is volumeOrigin of a snapshot.
func (c *Controller) snapshotOrigin(ctx context.Context, workspace, name, uid string, size int64) (origin, error) {
	snapshots := store.Of[resource.Snapshot](c.cfg.Store)
	s, err := snapshots.Get(ctx, workspace+"/"+name)
	if err == nil {
		err = cmp.Or(checkOrigin(name, uid, s.UID, s.Usable(), s.Deleting()), checkSize(name, size, s.Asks().VolumeBytes))
	} else if errors.Is(err, store.ErrNotFound) {
		err = checkOrigin(name, uid, "", false, false)
	}
	if err != nil {
		return origin{}, err
	}
	still := snapshots.ModifyOp(s.Key(), func(now *resource.Snapshot) error {
		return stillThere(checkOrigin(name, uid, now.UID, true, now.Deleting()))
	})
	return origin{node: s.Status.Node, nodeUID: s.Status.NodeUID, pool: s.Status.Pool, firstUID: s.Status.FirstUID, still: still,
		shared: s.Spec.Class == resource.SharedVolume}, nil
}

func (c *Controller) originOf(ctx context.Context, v *resource.Volume) (origin, error) {
	if from := v.Spec.Source; from.Snapshot != "" {
		return c.snapshotOrigin(ctx, v.WorkspaceKey(), from.Snapshot, from.UID, v.Spec.SizeBytes)
	}
	return c.volumeOrigin(ctx, v.WorkspaceKey(), v.Spec.Source.Volume, v.Spec.Source.UID, v.Spec.SizeBytes)
}

func checkOrigin(name, want, uid string, made, deleting bool) error {
	switch {
	case uid != want:
		return &shortError{fmt.Sprintf("%s is not there any more", name)}
	case deleting:
		return &shortError{fmt.Sprintf("%s is being deleted", name)}
	case !made:
		return &shortError{fmt.Sprintf("%s is not made yet", name)}
	}
	return nil
}

// checkSize says whether a copy may have as much as what it is made from: it is as large on the
// host. The caller is alone, so what it is made from grows only afterwards, when it is refused.
func checkSize(name string, size, least int64) error {
	if size < least {
		return &shortError{fmt.Sprintf("%s has %s by now: a copy of it can't be smaller", name, resource.Bytes.Text(least))}
	}
	return nil
}

func stillThere(err error) error {
	if err == nil {
		return store.ErrSkip
	}
	return err
}

// limit says why a host can't have one thing more of a workspace: promises.crowded for volumes, promises.snapped for snapshots.
type limit func(have promises, host *resource.Node, workspace string) string

// beside is a place for so many bytes of a workspace on the host of what is copied, and what else is to be
// written with who takes it. The caller is alone. The error is a *shortError if there is none.
func (c *Controller) beside(
	ctx context.Context, from origin, size int64, workspace string, full limit,
) (at spot, ops []store.Op, err error) {
	host, err := c.nodeOf(ctx, from.node, from.nodeUID)
	if err != nil {
		return at, nil, err
	}
	have, err := c.promises(ctx)
	if err != nil {
		return at, nil, err
	}
	why := ""
	switch {
	case host == nil:
		why = "the host that has it is not part of the platform any more, and what it held is lost with it"
	case host.Deleting() || host.Status.Phase != resource.Ready:
		why = "the host that has it does not report: try it again later"
	case !slices.ContainsFunc(host.Status.Pools, func(p resource.Pool) bool { return p.Copies }):
		why = "the host that has it can't copy volumes yet: the operator has to upgrade it first"
	case full(have, host, workspace) != "":
		why = full(have, host, workspace)
	case !host.TakesIn(from.pool):
		why = "the disk that has it is away, or is being taken away: try it again later, or ask the operator"
	case have.free(host, from.pool) < size:
		why = fmt.Sprintf("a copy is where what it is made from is, and that host has not %s free for it: "+
			"delete what is not needed any more, also from the trash, or ask the operator for more disk", resource.Bytes.Text(size))
	default:
		at = spot{host, from.pool, from.firstUID}
		return at, append(c.stays(at), from.still), nil
	}
	return at, nil, &shortError{why}
}

// Snapshot calls commit, which stores a snapshot that is new, with what is to be written
// besides; now has been given its place, which is its volume's. An *access.Refusal says why it can't be.
func (c *Controller) Snapshot(ctx context.Context, now *resource.Snapshot, commit func(...store.Op) error) error {
	return c.besides(ctx, now.Spec.SizeBytes, now.WorkspaceKey(), promises.snapped,
		func() (origin, error) {
			return c.volumeOrigin(ctx, now.WorkspaceKey(), now.Spec.Volume, now.Spec.VolumeUID, now.Spec.SizeBytes)
		},
		func(from origin, at spot, ops []store.Op) error {
			noteSnapshot(from, at, now)
			key, err := c.copyKey(ctx, now.WorkspaceKey(), now.Spec.Encrypted, now.Spec.VolumeUID, &now.Meta)
			if err != nil {
				return err
			}
			return commit(append(ops, key)...)
		})
}

// Copy is Snapshot for a volume that is made from another, or from a snapshot.
func (c *Controller) Copy(ctx context.Context, now *resource.Volume, commit func(...store.Op) error) error {
	return c.besides(ctx, now.Spec.SizeBytes, now.WorkspaceKey(), promises.crowded,
		func() (origin, error) { return c.originOf(ctx, now) },
		func(from origin, at spot, ops []store.Op) error {
			more, err := c.noteCopy(ctx, from, at, now)
			if err != nil {
				return err
			}
			ops = append(ops, more...)
			key, err := c.copyKey(ctx, now.WorkspaceKey(), now.Spec.Encrypted, now.Spec.Source.UID, &now.Meta)
			if err != nil {
				return err
			}
			return commit(append(ops, key)...)
		})
}

func (c *Controller) besides(
	ctx context.Context, size int64, workspace string, full limit,
	find func() (origin, error), commit func(from origin, at spot, ops []store.Op) error,
) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	from, err := find()
	if err == nil {
		var at spot
		var ops []store.Op
		if at, ops, err = c.beside(ctx, from, size, workspace, full); err == nil {
			err = commit(from, at, ops)
		}
	}
	var short *shortError
	if errors.As(err, &short) {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be made: " + short.Error() + "."}
	}
	return err
}

func noteSnapshot(from origin, at spot, s *resource.Snapshot) {
	s.Status.Copy = from.copy
	s.Status.Node, s.Status.NodeUID, s.Status.Pool = at.host.Name, at.host.UID, at.pool
	s.Status.FirstUID, s.Status.Phase = at.firstUID, resource.Creating
	s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "Creating",
		Message: "its host is making it"})
}

// neededFor names what is still to be made from a volume or snapshot that was marked as deleted. What
// is begun afterwards fails, for it wants it not to be marked: so once there is nothing, nothing comes. All
// of the organization is looked at: what is made from a volume stays where it is when that comes back
// from the trash elsewhere.
func (c *Controller) neededFor(ctx context.Context, workspace, uid string) (what string, err error) {
	organization := path.Dir(workspace)
	volumes, _, err := store.Of[resource.Volume](c.cfg.Store).List(ctx, organization, "", 0)
	if err != nil {
		return "", err
	}
	for _, v := range volumes {
		if v.Spec.Source != nil && v.Spec.Source.UID == uid && !v.Made() && !v.Deleting() && v.Status.Phase != resource.Failed {
			return "volume " + v.Name, nil
		}
	}
	snapshots, _, err := store.Of[resource.Snapshot](c.cfg.Store).List(ctx, organization, "", 0)
	for _, s := range snapshots {
		if s.Spec.VolumeUID == uid && !s.Usable() && !s.Deleting() && s.Status.Phase != resource.Failed {
			return "snapshot " + s.Name, nil
		}
	}
	return "", err
}
