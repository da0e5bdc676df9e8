package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

func (a *API) snapshotOperations() {
	snapshots := &collection[resource.Snapshot, *resource.Snapshot]{
		api:     a,
		noun:    "snapshot",
		path:    workspacesPath + "/{workspace}/snapshots",
		example: "before",
		fresh: func(place, name string) *resource.Snapshot {
			return &resource.Snapshot{
				InWorkspace: resource.NewInWorkspace(place, name),
				Status:      resource.SnapshotStatus{State: resource.State{Phase: resource.Pending}},
			}
		},
		adopt: func(now, body *resource.Snapshot) {
			now.Spec.Volume, now.Spec.Until = body.Spec.Volume, body.Spec.Until
		},
		check: func(ctx context.Context, now, was *resource.Snapshot) error {
			if was != nil {
				return invalid("body.spec.volume", "can't be changed: the snapshot is of "+was.Spec.Volume,
					"Make another snapshot.")
			}
			v, err := a.copied(ctx, "body.spec.volume", now.WorkspaceKey(), now.Spec.Volume)
			if err != nil {
				return err
			}
			now.Spec.VolumeUID, now.Spec.Class = v.UID, v.Spec.Class
			now.Spec.SizeBytes, now.Spec.Encrypted, now.Spec.Block = v.Spec.SizeBytes, v.Spec.Encrypted, v.Spec.Block
			return nil
		},
		within: func(ctx context.Context, now, _ *resource.Snapshot, commit func(...store.Op) error) error {
			return a.cfg.Volumes.Snapshot(ctx, now, commit)
		},
		show: func(ctx context.Context, all ...*resource.Snapshot) error {
			if !a.seesHosts(ctx) {
				for _, s := range all {
					s.Status.Node, s.Status.NodeUID, s.Status.Pool, s.Status.Copy = "", "", "", nil
				}
			}
			return nil
		},
	}
	snapshots.list("The snapshots of a workspace's volumes")
	snapshots.get("One snapshot")
	snapshots.put("Make a snapshot of a volume: what it holds at a moment from now, as after a power cut")
	snapshots.remove("Delete a snapshot")
	a.exportOperation(snapshots)
}

// copied is a volume that shall be copied.
func (a *API) copied(ctx context.Context, field, workspace, name string) (*resource.Volume, error) {
	v, err := store.Of[resource.Volume](a.store).Get(ctx, workspace+"/"+name)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrInvalidKey):
		return nil, invalid(field, fmt.Sprintf("there is no volume %q in the workspace", short(name)),
			"`mp volumes list` shows what there is.")
	case err != nil:
		return nil, err
	case v.Deleting():
		return nil, deleting("volume", name)
	case !v.Made():
		return nil, conflict("not-ready", fmt.Sprintf("The volume %s is not made yet.", name),
			"Wait until it is Ready; `mp volumes show "+name+"` says more.")
	}
	return v, nil
}

// findSource finds what a new volume is made from, and takes from it what is left out.
func (a *API) findSource(ctx context.Context, now *resource.Volume) error {
	from, class, size, encrypted, block := now.Spec.Source, "", int64(0), false, false
	switch {
	case (from.Snapshot == "") == (from.Volume == ""):
		return invalid("body.spec.source", "names not one thing", "Name a snapshot or a volume.")
	case from.Volume != "":
		v, err := a.copied(ctx, "body.spec.source.volume", now.WorkspaceKey(), from.Volume)
		if err != nil {
			return err
		}
		from.UID, class, size = v.UID, v.Spec.Class, v.Spec.SizeBytes
		encrypted, block = v.Spec.Encrypted, v.Spec.Block
	default:
		s, err := store.Of[resource.Snapshot](a.store).Get(ctx, now.WorkspaceKey()+"/"+from.Snapshot)
		switch {
		case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrInvalidKey):
			return invalid("body.spec.source.snapshot", fmt.Sprintf("there is no snapshot %q in the workspace", short(from.Snapshot)),
				"`mp snapshots list` shows what there is.")
		case err != nil:
			return err
		case s.Deleting():
			return deleting("snapshot", from.Snapshot)
		case !s.Usable():
			return conflict("not-ready", fmt.Sprintf("The snapshot %s is not made yet.", from.Snapshot),
				"Wait until it is Ready; `mp snapshots show "+from.Snapshot+"` says more.")
		}
		from.UID, class, size = s.UID, s.Spec.Class, s.Asks().VolumeBytes
		encrypted, block = s.Spec.Encrypted, s.Spec.Block
	}
	class = cmp.Or(class, resource.LocalVolume)
	if now.Spec.Class = cmp.Or(now.Spec.Class, class); now.Spec.Class != class {
		return invalid("body.spec.class", "what it is made from is "+class+", and a copy is as that is", "Leave it out.")
	}
	if now.Spec.Encrypted && !encrypted {
		return invalid("body.spec.encrypted", "what it is made from is not encrypted, and a copy is as that is",
			"Leave it out, or make an empty volume and copy the data by a pod.")
	}
	if now.Spec.Block && !block {
		return invalid("body.spec.block", "what it is made from has a file system, and a copy is as that is", "Leave it out.")
	}
	now.Spec.Encrypted, now.Spec.Block = encrypted, block
	if now.Spec.SizeBytes == 0 {
		now.Spec.SizeBytes = size
	}
	if now.Spec.SizeBytes < size {
		return invalid("body.spec.sizeBytes", fmt.Sprintf("%s is less than what it is made from has, %s",
			resource.Bytes.Text(now.Spec.SizeBytes), resource.Bytes.Text(size)), "Ask for as much at least, or leave it out.")
	}
	return nil
}
