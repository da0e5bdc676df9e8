package storage

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/multipaas/multipaas/modules/internal/quota"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// CreateSnapshot makes a snapshot of a volume, or finds the one that an earlier call has made, and waits
// until its host has it. Its id is its UID.
func (e *endpoint) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, refuse(codes.InvalidArgument, "a name is missing")
	}
	if err := onlyKnown(req.GetParameters()); err != nil {
		return nil, err
	}
	s, err := e.recordSnapshot(ctx, nameOf(req.GetName()), req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	s, err = follow(ctx, store.Of[resource.Snapshot](e.cfg.Store), "snapshot", s, func(now *resource.Snapshot) (bool, string) {
		c := now.Status.Conditions.Get(resource.SnapshotReady)
		if c == nil {
			return false, "its host has not reported it yet"
		}
		return c.Status == resource.True, c.Message
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(s)}, nil
}

// recordSnapshot finds a snapshot by its name, or makes one of a volume under the account's limits.
func (e *endpoint) recordSnapshot(ctx context.Context, name, of string) (*resource.Snapshot, error) {
	snapshots := store.Of[resource.Snapshot](e.cfg.Store)
	if of == "" {
		return nil, refuse(codes.InvalidArgument, "the volume's id is missing")
	}
	for {
		s, err := snapshots.Get(ctx, e.workspace+"/"+name)
		switch {
		case err == nil && s.Deleting():
			return nil, refuse(codes.Aborted, "snapshot %s is being deleted", name)
		case err == nil && s.Spec.VolumeUID != of:
			return nil, refuse(codes.AlreadyExists, "snapshot %s is there, and of volume %s", name, s.Spec.Volume)
		case err == nil:
			return s, nil
		case !errors.Is(err, store.ErrNotFound):
			return nil, internal(err)
		}
		v, err := e.find(ctx, of)
		if err != nil {
			return nil, err
		}
		fresh := &resource.Snapshot{InWorkspace: resource.NewInWorkspace(e.workspace, name),
			Spec: resource.SnapshotSpec{Volume: v.Name, VolumeUID: v.UID, Class: v.Spec.Class, SizeBytes: v.Spec.SizeBytes,
				Encrypted: v.Spec.Encrypted, Block: v.Spec.Block, Provisioned: true}}
		err = e.makeSnapshot(ctx, fresh)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
			continue // see record
		}
		return fresh, err
	}
}

func (e *endpoint) makeSnapshot(ctx context.Context, fresh *resource.Snapshot) error {
	// Twice, see make.
	if _, _, err := e.quota.Grant(ctx, quota.AccountOf(fresh), fresh.Asks()); err != nil {
		return refusal(err)
	}
	done, err := e.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, granted, err := e.quota.Grant(ctx, quota.AccountOf(fresh), fresh.Asks())
	if err != nil {
		return refusal(err)
	}
	from, err := e.volumeOrigin(ctx, e.workspace, fresh.Spec.Volume, fresh.Spec.VolumeUID, fresh.Spec.SizeBytes)
	if err != nil {
		return short(err)
	}
	at, ops, err := e.beside(ctx, from, fresh.Spec.SizeBytes, e.workspace, promises.snapped)
	if err != nil {
		return short(err)
	}
	noteSnapshot(from, at, fresh)
	key, err := e.copyKey(ctx, e.workspace, fresh.Spec.Encrypted, fresh.Spec.VolumeUID, &fresh.Meta)
	if err != nil {
		return short(err)
	}
	err = e.cfg.Store.Commit(ctx, append(ops, key, granted, e.open(), store.Of[resource.Snapshot](e.cfg.Store).CreateOp(fresh))...)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
		return err
	}
	return short(refusal(err))
}

// short is the error of somebody who finds no place, as CSI tells it.
func short(err error) error {
	var no *shortError
	if errors.As(err, &no) {
		return refuse(codes.ResourceExhausted, "%s", no.Error())
	}
	if _, told := status.FromError(err); err == nil || told {
		return err
	}
	return internal(err)
}

// snapshotOf is s as CSI shows it.
func snapshotOf(s *resource.Snapshot) *csi.Snapshot {
	at := s.CreatedAt
	if s.Status.ReadyAt != nil {
		at = *s.Status.ReadyAt
	}
	return &csi.Snapshot{SnapshotId: s.UID, SourceVolumeId: s.Spec.VolumeUID, SizeBytes: s.Asks().VolumeBytes,
		CreationTime: timestamppb.New(at), ReadyToUse: s.Status.Conditions.Is(resource.SnapshotReady)}
}

// snapshots are those of this workspace, by their names.
func (e *endpoint) snapshots(ctx context.Context) ([]*resource.Snapshot, error) {
	all, _, err := store.Of[resource.Snapshot](e.cfg.Store).List(ctx, e.workspace, "", 0)
	if err != nil {
		return nil, internal(err)
	}
	return all, nil
}

// DeleteSnapshot deletes a snapshot that was made by CreateSnapshot, and waits until it is gone. None there
// is no error. Those that people have made are not the cluster's to delete, see DeleteVolume.
func (e *endpoint) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, refuse(codes.InvalidArgument, "the snapshot's id is missing")
	}
	all, err := e.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(s *resource.Snapshot) bool { return s.UID == req.GetSnapshotId() })
	if i < 0 {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	stays := func(now *resource.Snapshot) error {
		if now.Spec.Provisioned {
			return nil
		}
		return refuse(codes.FailedPrecondition, "snapshot %s was not made by this cluster, and stays: have the "+
			"VolumeSnapshotContent keep it (deletionPolicy: Retain); who wants it gone types: mp snapshots delete %s", now.Name, now.Name)
	}
	return &csi.DeleteSnapshotResponse{},
		erase(ctx, store.Of[resource.Snapshot](e.cfg.Store), "snapshot", all[i], stays, resource.SnapshotRemoved)
}

// ListSnapshots lists the workspace's snapshots by their names: all, one, or those of one volume.
func (e *endpoint) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	after, most := req.GetStartingToken(), int(req.GetMaxEntries())
	if most < 0 {
		return nil, refuse(codes.InvalidArgument, "max_entries is below 0")
	}
	if after != "" && !strings.HasPrefix(after, e.workspace+"/") {
		return nil, refuse(codes.Aborted, "%q is no token of a page", after)
	}
	all, err := e.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	res := &csi.ListSnapshotsResponse{}
	last := ""
	for _, s := range all {
		if s.Key() <= after || req.GetSnapshotId() != "" && s.UID != req.GetSnapshotId() ||
			req.GetSourceVolumeId() != "" && s.Spec.VolumeUID != req.GetSourceVolumeId() {
			continue
		}
		if most > 0 && len(res.Entries) == most {
			res.NextToken = last
			break
		}
		res.Entries = append(res.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(s)})
		last = s.Key()
	}
	return res, nil
}

// sourceOf is what a new volume shall be made from, and of that the class, how much it has, and whether it is encrypted.
func (e *endpoint) sourceOf(
	ctx context.Context, from *csi.VolumeContentSource,
) (source *resource.VolumeSource, is resource.VolumeSpec, err error) {
	switch {
	case from.GetSnapshot() != nil:
		all, err := e.snapshots(ctx)
		for _, s := range all {
			if s.UID == from.GetSnapshot().GetSnapshotId() {
				return &resource.VolumeSource{Snapshot: s.Name, UID: s.UID}, resource.VolumeSpec{SizeBytes: s.Asks().VolumeBytes,
					Class: cmp.Or(s.Spec.Class, resource.LocalVolume), Encrypted: s.Spec.Encrypted, Block: s.Spec.Block}, nil
			}
		}
		if err == nil {
			err = refuse(codes.NotFound, "this workspace has no snapshot %q", from.GetSnapshot().GetSnapshotId())
		}
		return nil, is, err
	case from.GetVolume() != nil:
		v, err := e.find(ctx, from.GetVolume().GetVolumeId())
		if err != nil {
			return nil, is, err
		}
		return &resource.VolumeSource{Volume: v.Name, UID: v.UID}, v.Spec, nil
	}
	return nil, is, refuse(codes.InvalidArgument,
		"a volume is made from a snapshot or from another volume, and from nothing else")
}

func uidOf(s *resource.VolumeSource) string {
	if s == nil {
		return ""
	}
	return s.UID
}

// assignCopy gives a volume that is made from something its place, which is that one's. The caller is alone; ops
// are to be committed with it. Which node was chosen for its first pod does not count, against what CSI
// says: a scheduler that is refused chooses the same one again, for ever (tried), while one that finds
// the volume elsewhere lets its pod go there.
func (e *endpoint) assignCopy(ctx context.Context, v *resource.Volume) (ops []store.Op, err error) {
	from, err := e.originOf(ctx, v)
	if err != nil {
		return nil, err
	}
	if !from.shared && !slices.ContainsFunc(e.cfg.Machines.List(e.workspace), func(m *resource.Machine) bool {
		return m.Spec.Node == from.node && !m.Deleting()
	}) {
		return nil, &shortError{"what it is made from is on a host on which the workspace has no machine now: no pod could use it"}
	}
	at, ops, err := e.beside(ctx, from, v.Spec.SizeBytes, e.workspace, promises.crowded)
	if err != nil {
		return nil, err
	}
	more, err := e.noteCopy(ctx, from, at, v)
	if err != nil {
		return nil, err
	}
	ops = append(ops, more...)
	key, err := e.copyKey(ctx, e.workspace, v.Spec.Encrypted, v.Spec.Source.UID, &v.Meta)
	return append(ops, key), err
}

// erase marks what a cluster wants gone as deleted, unless stays says why it isn't the cluster's to delete, and waits until
// it is gone. removed is the condition that says what for.
func erase[P resource.Stateful](
	ctx context.Context, kind store.Kind[P], noun string, obj P, stays func(P) error, removed string,
) error {
	_, err := kind.Modify(ctx, obj.Key(), func(now P) error {
		if now.Metadata().UID != obj.Metadata().UID {
			return store.ErrNotFound
		}
		if now.Metadata().Deleting() {
			return store.ErrSkip
		}
		now.Metadata().DeletedAt = new(time.Now().UTC())
		return stays(now)
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return refusal(err)
	}
	_, err = follow(ctx, kind, noun, obj, func(now P) (bool, string) {
		if c := now.State().Conditions.Get(removed); c != nil && c.Message != "" {
			return false, c.Message
		}
		return false, "its host takes it away"
	})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// follow waits until done says so of an object as it is stored. Nearly at the end of ctx it
// answers what for. NOT_FOUND: it is gone.
func follow[P resource.Stateful](
	ctx context.Context, kind store.Kind[P], noun string, obj P, done func(P) (ok bool, why string),
) (none P, err error) {
	why, gone := "", false
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	if end, ok := ctx.Deadline(); ok {
		wait, cancel = context.WithDeadline(wait, end.Add(-answerBefore))
		defer cancel()
	}
	name := obj.Metadata().Name
	for event := range kind.WatchKey(wait, obj.Key()) {
		switch event.Type {
		case store.Put:
			if gone = event.Object.Metadata().UID != obj.Metadata().UID; gone {
				break
			}
			var ok bool
			if ok, why = done(event.Object); ok {
				return event.Object, nil
			}
			if c := event.Object.State().Conditions.Get(resource.VolumeReady); c != nil && c.Final {
				return none, refuse(codes.Internal, "%s %s: %s", noun, name, strings.TrimSuffix(c.Message, makeAnother))
			}
		case store.Deleted:
			gone = true
		case store.Synced:
			gone = gone || why == "" // nothing was told of it
		}
		if gone {
			return none, refuse(codes.NotFound, "%s %s is not there any more", noun, name)
		}
	}
	return none, refuse(codes.DeadlineExceeded, "%s %s: %s; it is tried again", noun, name, why)
}
