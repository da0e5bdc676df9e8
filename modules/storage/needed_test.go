package storage

import (
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// TestNeeded: a copy that failed is made again when its cluster asks again; a shared volume that is deleted meanwhile
// goes once the copy is made.
func TestNeeded(t *testing.T) {
	w := newWorld(t)
	w.shared()
	p, ctx := w.plane("acme/web/shop"), t.Context()
	volumes, snapshots := store.Of[resource.Volume](w.db), store.Of[resource.Snapshot](w.db)
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib})
	w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
	w.see(v, looked)
	v = w.await(v.Key(), "it is ready", phase(resource.Ready))
	const key = "acme/web/shop/snapshot-1"
	ask := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := p.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: v.UID})
			done <- err
		}()
		return done
	}
	// take has its host make it, up to the second look.
	take := func() {
		t.Helper()
		w.is("a look is wanted", key, func(s *resource.Snapshot) bool { return s != nil && s.Status.Copy.Look > 0 })
		w.see(v, looked)
		w.is("its host is told", key, func(s *resource.Snapshot) bool { return s.Status.Copy.Due() })
		w.snapshotReported(key, func(s *resource.Snapshot) { s.Status.SizeBytes = gib })
		w.is("another look is wanted", key, func(s *resource.Snapshot) bool { return s.Status.Copy.Look > 0 })
	}
	done := ask()
	take()
	w.see(v, func(v *resource.Volume) { looked(v); v.Status.Bricks[2].Heal = 1 })
	if err := <-done; status.Code(err) != codes.Internal || !strings.HasSuffix(status.Convert(err).Message(), "may lack what was written") {
		t.Errorf("it failed: %v", err)
	}
	w.is("what failed goes", key, func(s *resource.Snapshot) bool { return s.Status.Phase == resource.Deleting })
	w.snapshotReported(key, func(s *resource.Snapshot) {
		s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotRemoved, Status: resource.True})
	})
	w.is("it is gone", key, func(s *resource.Snapshot) bool { return s == nil })
	w.see(v, looked)

	done = ask()
	take()
	var no *access.Refusal
	if err := w.Needed(ctx, v); !errors.As(err, &no) || !strings.Contains(no.Text, "snapshot-1") {
		t.Errorf("it may go into the trash: %v", err)
	}
	if _, err := volumes.MarkDeleted(ctx, v.Key()); err != nil {
		t.Fatal(err)
	}
	now := w.await(v.Key(), "it waits", func(v *resource.Volume) bool { return v.Status.Conditions.Get(resource.VolumeRemoved) != nil })
	if c := now.Status.Conditions.Get(resource.VolumeRemoved); c.Message != "snapshot snapshot-1 is made from it first" || now.Going() {
		t.Errorf("it is %+v", now.Status)
	}
	w.see(v, looked)
	w.is("it is made", key, func(s *resource.Snapshot) bool { return s.Usable() })
	if s, err := snapshots.Get(ctx, key); err != nil || !s.Status.Conditions.Is(resource.SnapshotReady) {
		t.Errorf("it is %+v, %v", s, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.await(v.Key(), "it goes", (*resource.Volume).Going)
	if err := w.Needed(ctx, v); err != nil {
		t.Error(err)
	}
}
