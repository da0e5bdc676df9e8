package storage

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestMove: a volume goes to another host when all is as each step wants it, has room on both meanwhile, and is on
// one in the end, whatever becomes of the other.
func TestMove(t *testing.T) {
	w := newWorld(t)
	volumes := store.Of[resource.Volume](w.db)
	for i := range w.nodes {
		w.node(i, func(n *resource.Node) { n.Status.Drivers = []string{wire.MoveDriver} })
	}
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace(w.ws.Key(), "data"), Spec: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: gib}}
	if err := volumes.Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	v = w.await(v.Key(), "ready", func(v *resource.Volume) bool { return v.Status.Phase == resource.Ready })
	w.stop(true) // from here on the test says what hosts see
	from, to := w.nodes[0], w.nodes[1]
	if v.Status.Node == to.Name {
		from, to = to, from
	}
	move := func(place string) error {
		t.Helper()
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		now.Spec.Place = place
		return w.Move(t.Context(), now, func(ops ...store.Op) error {
			return w.db.Commit(t.Context(), append(ops, volumes.UpdateOp(now))...)
		})
	}
	refused := func(place, why string) {
		t.Helper()
		var no *access.Refusal
		if err := move(place); !errors.As(err, &no) || !strings.Contains(no.Text, why) {
			t.Errorf("%v, want a refusal with %q", err, why)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// see has hosts say something, and stage awaits what comes of it.
	see := func(look func(m *resource.VolumeMove, s *resource.VolumeStatus)) {
		t.Helper()
		_, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
			look(v.Status.Moving, &v.Status)
			return nil
		})
		must(err)
	}
	stage := func(want resource.MoveStage, node *resource.Node) *resource.Volume {
		t.Helper()
		return w.await(v.Key(), string(want)+" on "+node.Name, func(v *resource.Volume) bool {
			m := v.Status.Moving
			return v.Status.NodeUID == node.UID && (m == nil && want == "" || m != nil && m.Stage == want)
		})
	}
	ready := resource.Condition{Type: resource.VolumeReady, Status: resource.True, Reason: "Ready"}
	there := wire.Place(w.ws.UID, to.UID)

	refused(wire.Place(w.ws.UID, from.UID), "it is there")
	refused(wire.Place(w.ws.UID, w.nodes[2].UID), "") // no machine of its workspace is there
	refused("", "it is not on its way")
	must(move(there))
	v = stage(resource.MoveCopying, from)
	if m := v.Status.Moving; m.NodeUID != to.UID || v.Status.Phase != resource.Updating || v.Status.Conditions.Is(resource.VolumeReady) || v.Status.Home() != to.UID {
		t.Errorf("begun it is %+v, %+v", v.Status, m)
	}
	if p := resource.PromisedToVolumes([]*resource.Volume{v}); p[resource.PoolAt{Node: from.UID}] != gib || p[resource.PoolAt{Node: to.UID}] != gib || !v.IsOn(from.UID) || !v.IsOn(to.UID) {
		t.Errorf("promised are %v", p)
	}
	refused(wire.Place(w.ws.UID, from.UID), "on its way already")
	if err := w.roomToGrow(t.Context(), v, gib); err == nil {
		t.Error("it may grow on its way")
	}
	var short *shortError
	if _, err := w.volumeOrigin(t.Context(), w.ws.Key(), v.Name, v.UID, gib); !errors.As(err, &short) {
		t.Errorf("it may be copied on its way: %v", err)
	}

	// Given up, it stays, once the other host has nothing of it and the cluster knows.
	must(move(""))
	stage(resource.MoveRemoving, from)
	see(func(m *resource.VolumeMove, s *resource.VolumeStatus) { m.Removed = true })
	see(func(m *resource.VolumeMove, s *resource.VolumeStatus) { m.Followed = true })
	v = stage("", from)
	see(func(_ *resource.VolumeMove, s *resource.VolumeStatus) { s.Conditions.Set(ready) })
	w.await(v.Key(), "ready", func(v *resource.Volume) bool {
		return v.Status.Phase == resource.Ready && v.Status.ObservedGeneration == v.Generation
	})

	must(move(there))
	stage(resource.MoveCopying, from)
	see(func(m *resource.VolumeMove, _ *resource.VolumeStatus) { m.Copied = true }) // while machines may write to it
	see(func(m *resource.VolumeMove, _ *resource.VolumeStatus) { m.Followed = true })
	stage(resource.MoveCopying, from)
	see(func(m *resource.VolumeMove, _ *resource.VolumeStatus) { m.Away = true })
	v = stage(resource.MoveSwitched, to)
	if m := v.Status.Moving; m.NodeUID != from.UID || m.Removed || v.Status.Conditions.Is(resource.VolumeReady) {
		t.Errorf("switched it is %+v", m)
	}
	see(func(_ *resource.VolumeMove, s *resource.VolumeStatus) { s.Conditions.Set(ready) })
	v = stage(resource.MoveRemoving, to)
	if v.Status.ObservedGeneration == v.Generation {
		t.Error("it is done while the former host has it")
	}
	see(func(m *resource.VolumeMove, _ *resource.VolumeStatus) { m.Removed = true })
	v = stage("", to)
	w.await(v.Key(), "ready", func(v *resource.Volume) bool {
		return v.Status.Phase == resource.Ready && v.Status.ObservedGeneration == v.Generation
	})

	// Deleted on its way it goes into the trash, and only what the other host has is taken away.
	must(move(wire.Place(w.ws.UID, from.UID)))
	v = stage(resource.MoveCopying, to)
	if trash := v.ToTrash(w.ws, time.Now()); trash.Status.Moving == nil || trash.Status.Moving.Stage != resource.MoveRemoving || trash.Status.NodeUID != to.UID || v.Status.Moving.Stage != resource.MoveCopying {
		t.Errorf("in the trash it is %+v", trash.Status)
	}
	// If the one that it was on is lost, all of it that was copied is the volume; less is nothing.
	for _, copied := range []bool{true, false} {
		lost := *v
		m := *v.Status.Moving
		m.Copied = copied
		lost.Status.Moving, lost.Status.Conditions = &m, slices.Clone(v.Status.Conditions)
		stepMove(&lost, nil, from)
		want, on, phase := resource.MoveSwitched, from.UID, resource.Updating
		if !copied {
			want, on, phase = resource.MoveCopying, to.UID, resource.Failed // the other one may have an older copy
		}
		if s := lost.Status; s.Moving.Stage != want || s.NodeUID != on || s.Phase != phase {
			t.Errorf("copied %v, and its host is lost: it is %+v, %+v", copied, s, s.Moving)
		}
	}
	// The host that it was to go to is given up.
	must(store.Of[resource.Node](w.db).Delete(t.Context(), &resource.Node{Meta: resource.Meta{Name: from.Name}}))
	stage(resource.MoveRemoving, to)
	see(func(m *resource.VolumeMove, _ *resource.VolumeStatus) { m.Followed = true })
	stage("", to)
}
