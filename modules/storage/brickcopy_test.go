package storage

import (
	"errors"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// looked is what the host that leads reports once it has asked how a volume is.
func looked(v *resource.Volume) {
	serve(v)
	for i := range v.Status.Bricks {
		b := &v.Status.Bricks[i]
		b.Heal, b.Looked, b.Process = 0, v.Status.Look, 100+i
	}
}

// TestSharedCopies: a snapshot of a shared volume is one of a brick on a host with room, made between two looks at which all
// had the same, else it is worth nothing. A volume from it has its first copy there, and is lost with that until others have all.
func TestSharedCopies(t *testing.T) {
	w := newWorld(t)
	w.shared()
	ctx, volumes, snapshots := t.Context(), store.Of[resource.Volume](w.db), store.Of[resource.Snapshot](w.db)
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib})
	w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
	w.see(v, looked)
	v = w.await(v.Key(), "it is ready", phase(resource.Ready))
	snapshot := func(name string) (*resource.Snapshot, error) {
		s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", name),
			Spec: resource.SnapshotSpec{Volume: v.Name, VolumeUID: v.UID, Class: v.Spec.Class, SizeBytes: gib}}
		return s, w.Snapshot(ctx, s, func(more ...store.Op) error { return w.db.Commit(ctx, append(more, snapshots.CreateOp(s))...) })
	}
	refused := func(what string, err error, says string) {
		t.Helper()
		var no *access.Refusal
		if !errors.As(err, &no) || !strings.Contains(no.Text, says) {
			t.Errorf("%s: %v, want a refusal with %q", what, err, says)
		}
	}
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[1].Heal = 3 })
	_, err := snapshot("early")
	refused("of one that heals", err, "while a copy of it is away")
	w.see(v, looked)
	drivers := func(names ...string) {
		w.node(0, func(n *resource.Node) { n.Status.Drivers = names })
		n, err := store.Of[resource.Node](w.db).Get(ctx, w.nodes[0].Name)
		if err != nil {
			t.Fatal(err)
		}
		awaitNode(t, w, n)
	}
	drivers(wire.StorageDriver)
	_, err = snapshot("early")
	refused("with an old host", err, "has to upgrade all")
	drivers(wire.StorageDriver, wire.CopyDriver)

	take := func(name string, between func(v *resource.Volume)) (s *resource.Snapshot) {
		t.Helper()
		s, err := snapshot(name)
		if err != nil || s.Status.Node != "n3" || v.Brick(s.Status.Copy.Brick).Node != "n3" || s.Status.Copy.Due() {
			t.Fatalf("it is %+v, %v", s, err)
		}
		due := func(s *resource.Snapshot) bool { return s.Status.Copy.Due() }
		w.is("a look is wanted", s.Key(), func(s *resource.Snapshot) bool { return s.Status.Copy.Look > 0 })
		w.see(v, looked)
		w.is("its host is told", s.Key(), due)
		w.snapshotReported(s.Key(), func(s *resource.Snapshot) { s.Status.SizeBytes = gib })
		w.is("another look is wanted", s.Key(), func(s *resource.Snapshot) bool { return s.Status.Copy.Look > 0 })
		w.see(v, func(v *resource.Volume) { looked(v); between(v) })
		w.is("it is settled", s.Key(), func(now *resource.Snapshot) bool {
			s = now
			return s.Status.Phase == resource.Ready || s.Status.Phase == resource.Failed
		})
		w.see(v, looked)
		return s
	}
	for name, between := range map[string]func(*resource.Volume){
		"missed":    func(v *resource.Volume) { v.Status.Bricks[2].Heal = 1 },
		"restarted": func(v *resource.Volume) { v.Status.Bricks[0].Process++ },
	} {
		s := take(name, between)
		c := s.Status.Conditions.Get(resource.SnapshotReady)
		if s.Status.Phase != resource.Failed || s.Usable() || !c.Final || !strings.Contains(c.Message, "may lack what was written") {
			t.Errorf("%s: it is %+v", name, s.Status)
		}
	}
	s := take("good", func(*resource.Volume) {})
	if !s.Usable() || !s.Status.Conditions.Is(resource.SnapshotReady) {
		t.Fatalf("it is %+v", s.Status)
	}

	copied := func(name string, from resource.VolumeSource) *resource.Volume {
		t.Helper()
		c := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name),
			Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: gib, Source: &from}}
		if err := w.Copy(ctx, c, func(more ...store.Op) error { return w.db.Commit(ctx, append(more, volumes.CreateOp(c))...) }); err != nil {
			t.Fatal(err)
		}
		b := c.Status.Bricks
		if len(b) != 3 || b[0].Node != "n3" || b[0].Filling || !b[1].Filling || !b[2].Filling {
			t.Fatalf("it is on %+v", b)
		}
		return c
	}
	c := copied("back", resource.VolumeSource{Snapshot: "good", UID: s.UID})
	w.see(c, func(v *resource.Volume) {
		looked(v)
		v.Status.Bricks[2].Online = false
	})
	now := w.await(c.Key(), "it can be used", func(v *resource.Volume) bool { return v.Status.Conditions.Is(resource.VolumeReady) })
	if r := now.Status.Conditions.Get(resource.VolumeReplicated); r == nil || r.Reason != "Filling" || now.Status.SizeBytes != gib || now.Whole() {
		t.Errorf("it is %+v", now.Status)
	}
	w.see(c, func(v *resource.Volume) { v.Status.Bricks[0].Online = false })
	w.await(c.Key(), "without the first it can't", func(v *resource.Volume) bool { return !v.Status.Conditions.Is(resource.VolumeReady) })

	twin := copied("twin", resource.VolumeSource{Volume: "data", UID: v.UID})
	wanted := func(v *resource.Volume) bool { return v.Status.Copy.Look > 0 }
	w.await(twin.Key(), "a look is wanted", wanted)
	w.see(v, looked)
	w.await(twin.Key(), "its host is told", func(v *resource.Volume) bool { return v.Status.Copy.Due() })
	w.see(twin, func(v *resource.Volume) { v.Status.Bricks[0].Ready = true })
	w.await(twin.Key(), "another look is wanted", wanted)
	w.see(v, looked)
	w.await(twin.Key(), "it is whole", func(v *resource.Volume) bool { return v.Status.Copy.Whole() })
	w.see(twin, func(v *resource.Volume) {
		looked(v)
		for i := range v.Status.Bricks {
			v.Status.Bricks[i].Filling = false
		}
	})
	w.await(twin.Key(), "it is ready", phase(resource.Ready))

	// The host of the first copy is given up: what another has of it isn't all.
	w.node(2, func(n *resource.Node) { n.Spec.Lost = true })
	_, err = store.Of[resource.Node](w.db).MarkDeleted(ctx, "n3")
	if err = errors.Join(err, store.Of[resource.Node](w.db).Delete(ctx, &resource.Node{Meta: resource.Meta{Name: "n3"}})); err != nil {
		t.Fatal(err)
	}
	w.await(c.Key(), "it is lost", phase(resource.Failed))
	w.await(twin.Key(), "it isn't", phase(resource.Degraded))
}
