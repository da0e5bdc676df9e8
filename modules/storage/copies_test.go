package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/wait"
)

// snapshotReported is what the host of a snapshot would report.
func (w *world) snapshotReported(key string, report func(*resource.Snapshot)) {
	w.t.Helper()
	_, err := store.Of[resource.Snapshot](w.db).Modify(w.t.Context(), key, func(s *resource.Snapshot) error { report(s); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
}

// is waits until a stored snapshot is as ok says, nil if there is none.
func (w *world) is(what, key string, ok func(*resource.Snapshot) bool) {
	w.t.Helper()
	wait.For(w.t, wait.Patience, what, func(ctx context.Context) error {
		s, err := store.Of[resource.Snapshot](w.db).Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			s, err = nil, nil
		}
		if err != nil || !ok(s) {
			return fmt.Errorf("it is %+v, %v", s, err)
		}
		return nil
	})
}

// TestSnapshots: a snapshot is on its volume's host if that has room, which it takes; what is still
// copied is destroyed only afterwards; what is made from it stands by itself.
func TestSnapshots(t *testing.T) {
	w := newWorld(t)
	p, ctx := w.plane("acme/web/shop"), t.Context()
	if _, err := p.CreateVolume(ctx, claim("data", 4*gib)); err != nil { // n2 has 30 GiB, 5 of them a machine's
		t.Fatal(err)
	}
	volumes, snapshots := store.Of[resource.Volume](w.db), store.Of[resource.Snapshot](w.db)
	v, err := volumes.Get(ctx, "acme/web/shop/pvc-data")
	if err != nil {
		t.Fatal(err)
	}
	snapshot := func(name string, size int64) (*resource.Snapshot, error) {
		s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", name),
			Spec: resource.SnapshotSpec{Volume: v.Name, VolumeUID: v.UID, SizeBytes: size}}
		return s, w.Snapshot(ctx, s, func(more ...store.Op) error {
			return w.db.Commit(ctx, append(more, snapshots.CreateOp(s))...)
		})
	}
	refused := func(what string, err error, says string) {
		t.Helper()
		var no *access.Refusal
		if !errors.As(err, &no) || !strings.Contains(no.Text, says) {
			t.Errorf("%s: %v, want a refusal with %q", what, err, says)
		}
	}
	s, err := snapshot("before", 4*gib)
	if err != nil || s.Status.NodeUID != v.Status.NodeUID {
		t.Fatalf("it is %+v, %v", s, err)
	}
	_, err = snapshot("large", 18*gib)
	refused("without room", err, "has not 18Gi free")
	copied := func(name string) (*resource.Volume, error) {
		c := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name), Spec: resource.VolumeSpec{Class: "local", SizeBytes: 4 * gib,
			Source: &resource.VolumeSource{Snapshot: "before", UID: s.UID}}}
		return c, w.Copy(ctx, c, func(more ...store.Op) error { return w.db.Commit(ctx, append(more, volumes.CreateOp(c))...) })
	}
	_, err = copied("early")
	refused("from one that is not made", err, "before is not made yet")

	// Its volume goes: only once it is made.
	if _, err := volumes.MarkDeleted(ctx, v.Key()); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "the volume waits", func(ctx context.Context) error {
		now, err := volumes.Get(ctx, v.Key())
		if err != nil || now.Status.Phase == resource.Deleting || now.Status.Conditions.Get(resource.VolumeRemoved) == nil {
			return fmt.Errorf("it is %+v, %v", now, err)
		}
		return nil
	})
	_, err = snapshot("late", gib)
	refused("of a volume that goes", err, "is being deleted")
	w.snapshotReported(s.Key(), func(s *resource.Snapshot) {
		s.Status.SizeBytes = 4 * gib
		s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.True})
	})
	w.is("it is ready", s.Key(), func(s *resource.Snapshot) bool { return s.Status.Phase == resource.Ready })
	wait.For(t, wait.Patience, "the volume is gone", func(ctx context.Context) error {
		if _, err := volumes.Get(ctx, v.Key()); !errors.Is(err, store.ErrNotFound) {
			return errors.New("it is there")
		}
		return nil
	})

	w.stop(true)
	c, err := copied("restored")
	if err != nil || c.Status.NodeUID != s.Status.NodeUID || c.Status.FirstUID != 1<<28 {
		t.Fatalf("it is %+v, %v", c, err)
	}
	w.snapshotReported(s.Key(), func(s *resource.Snapshot) { s.Spec.Until = new(time.Now().Add(time.Hour)) })
	if now, err := snapshots.Get(ctx, s.Key()); err != nil || now.Deleting() {
		t.Errorf("before its time is over it is %+v, %v", now, err)
	}
	// As if somebody had deleted it then.
	w.snapshotReported(s.Key(), func(s *resource.Snapshot) { s.Spec.Until = new(time.Now()) })
	w.is("its time is over", s.Key(), (*resource.Snapshot).Deleting)
	w.is("it waits", s.Key(), func(s *resource.Snapshot) bool {
		return s.Status.Phase != resource.Deleting && s.Status.Conditions.Get(resource.SnapshotRemoved) != nil
	})
	w.stop(false)
	w.is("it goes", s.Key(), func(s *resource.Snapshot) bool { return s.Status.Phase == resource.Deleting })
	w.snapshotReported(s.Key(), func(s *resource.Snapshot) {
		s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotRemoved, Status: resource.True})
	})
	w.is("it is gone", s.Key(), func(s *resource.Snapshot) bool { return s == nil })
	if now, err := volumes.Get(ctx, c.Key()); err != nil || now.Deleting() {
		t.Errorf("what was made from it: %+v, %v", now, err)
	}
}

// snapshotHosts do for snapshots what hosts do for volumes.
func (w *world) snapshotHosts(ctx context.Context, ready func()) error {
	ready()
	for e := range store.Of[resource.Snapshot](w.db).Watch(ctx, "") {
		if e.Object == nil {
			continue
		}
		_, err := store.Of[resource.Snapshot](w.db).Modify(ctx, e.Key, func(s *resource.Snapshot) error {
			switch {
			case s.Deleting() && s.Status.Phase != resource.Deleting:
				return store.ErrSkip
			case s.Deleting():
				s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotRemoved, Status: resource.True})
			default:
				s.Status.SizeBytes = s.Spec.SizeBytes
				s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotReady, Status: resource.True})
			}
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
			w.t.Error(err)
		}
	}
	return nil
}

// TestPlaneSnapshots: what a plane asks for snapshots, and for volumes that are made from them or from others.
func TestPlaneSnapshots(t *testing.T) {
	w := newWorld(t)
	parttest.Run(t, w.snapshotHosts)
	p, foreign, ctx := w.plane("acme/web/shop"), w.plane("evil/web/shop"), t.Context()
	place := wire.Place(w.ws.UID, w.nodes[0].UID)
	made, err := p.CreateVolume(ctx, claim("data", 2*gib, place))
	if err != nil {
		t.Fatal(err)
	}
	of := made.Volume.VolumeId
	ask := &csi.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: of}
	first, err := p.CreateSnapshot(ctx, ask)
	if err != nil || !first.Snapshot.ReadyToUse || first.Snapshot.SizeBytes != 2*gib || first.Snapshot.SourceVolumeId != of {
		t.Fatalf("made: %v, %v", first, err)
	}
	id := first.Snapshot.SnapshotId
	if again, err := p.CreateSnapshot(ctx, ask); err != nil || again.Snapshot.SnapshotId != id {
		t.Errorf("asked again: %v, %v", again, err)
	}
	_, err = foreign.CreateSnapshot(ctx, ask)
	want(t, "of another's volume", err, codes.NotFound, "no volume")
	second, err := p.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-2", SourceVolumeId: of})
	if err != nil {
		t.Fatal(err)
	}

	page, err := p.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: 1})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Snapshot.SnapshotId != id {
		t.Fatalf("a page: %v, %v", page, err)
	}
	page, err = p.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: 1, StartingToken: page.NextToken})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Snapshot.SnapshotId != second.Snapshot.SnapshotId || page.NextToken != "" {
		t.Errorf("the next: %v, %v", page, err)
	}
	if list, err := foreign.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: id}); err != nil || len(list.Entries) != 0 {
		t.Errorf("another's: %v, %v", list, err)
	}

	restore := func(name string, size int64, places ...string) *csi.CreateVolumeRequest {
		r := claim(name, size, places...)
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
		return r
	}
	_, err = p.CreateVolume(ctx, restore("small", gib))
	want(t, "a smaller one", err, codes.OutOfRange, "less than what it is made from has")
	_, err = foreign.CreateVolume(ctx, restore("theirs", 2*gib))
	want(t, "from another's", err, codes.NotFound, "no snapshot")
	_, err = p.CreateVolume(ctx, restore("data", 2*gib))
	want(t, "under a name that is another's", err, codes.AlreadyExists, "made from something else")
	back, err := p.CreateVolume(ctx, restore("back", 3*gib, wire.Place(w.ws.UID, w.nodes[1].UID))) // the pod follows
	if err != nil || back.Volume.ContentSource.GetSnapshot().GetSnapshotId() != id || back.Volume.AccessibleTopology[0].Segments[PlaceKey] != place {
		t.Fatalf("restored: %v, %v", back, err)
	}
	twin := claim("twin", 3*gib)
	twin.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: back.Volume.VolumeId}}}
	if got, err := p.CreateVolume(ctx, twin); err != nil || got.Volume.ContentSource.GetVolume().GetVolumeId() != back.Volume.VolumeId {
		t.Errorf("cloned: %v, %v", got, err)
	}

	if _, err := foreign.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := p.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: second.Snapshot.SnapshotId}); err != nil {
			t.Fatal(err)
		}
	}
	w.snapshotReported("acme/web/shop/snapshot-1", func(s *resource.Snapshot) { s.Spec.Provisioned = false })
	_, err = p.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	want(t, "a person's", err, codes.FailedPrecondition, "mp snapshots delete snapshot-1")
}
