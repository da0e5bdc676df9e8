package storage

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestLeaving: a copy on a host that is removed goes to another host, while all of the others are there, and what was in it is
// kept until that one has it.
func TestLeaving(t *testing.T) {
	w := newWorld(t)
	w.shared()
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib})
	w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
	w.see(v, serve)
	was := w.await(v.Key(), "it is ready", phase(resource.Ready)).Status.Bricks[2]
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[0].Heal = 1 })
	if _, err := store.Of[resource.Node](w.db).MarkDeleted(t.Context(), was.Node); err != nil {
		t.Fatal(err)
	}
	for i := range w.nodes {
		if w.nodes[i].Name == was.Node {
			w.node(i, func(n *resource.Node) { n.Status.Phase = resource.Deleting })
		}
	}
	stays := func(reason string) func(*resource.Volume) bool {
		return func(v *resource.Volume) bool {
			c := v.Status.Conditions.Get(resource.VolumeCopiesStay)
			return c != nil && c.Reason == reason && v.Status.Bricks[2] == was
		}
	}
	w.await(v.Key(), "it is not moved while it heals", stays("Waits"))
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[0].Heal = 0 })
	now := w.await(v.Key(), "it waits for room", stays(resource.NoCapacity))
	n4 := &resource.Node{Meta: resource.Meta{Name: "n4"}, Status: w.nodes[0].Status}
	n4.Status.Address, n4.Status.Drivers = netip.MustParseAddr("10.0.0.4"), []string{wire.StorageDriver}
	nodes := store.Of[resource.Node](w.db)
	leaves, err := nodes.Get(t.Context(), was.Node)
	if err != nil {
		t.Fatal(err)
	}
	all := []*resource.Node{leaves}
	if now.MovesFrom(leaves, all) {
		t.Error("it moves although no other host could have it")
	}
	if err := nodes.Create(t.Context(), n4); err != nil {
		t.Fatal(err)
	}
	if all = append(all, n4); !now.MovesFrom(leaves, all) {
		t.Error("it doesn't move")
	}
	secret := *now
	if secret.Spec.Encrypted = true; secret.MovesFrom(leaves, all) {
		t.Error("it moves to a host that can't encrypt it")
	}
	now = w.await(v.Key(), "another host shall have it", func(v *resource.Volume) bool { return v.Status.Bricks[2].Node == "n4" })
	if b := now.Status.Bricks[2]; b.Replaces != was.UID || len(now.Status.Leaving) != 1 || now.Status.Leaving[0] != was || !now.IsOn(was.NodeUID) || now.Whole() {
		t.Errorf("it has %+v, leaving %+v", b, now.Status.Leaving)
	}
	kept, _, err := store.Of[resource.Volume](w.db).List(t.Context(), "", "", 0)
	if err != nil || resource.PromisedToVolumes(kept)[resource.PoolAt{Node: was.NodeUID}] != gib {
		t.Errorf("the old host is promised %v, %v", resource.PromisedToVolumes(kept), err)
	}
	w.see(v, serve)
	now = w.await(v.Key(), "it is whole", phase(resource.Ready))
	if c := now.Status.Conditions.Get(resource.VolumeCopiesStay); len(now.Status.Leaving) != 1 || !strings.Contains(c.Message, "being made") {
		t.Errorf("before the old copy is gone it is %+v", now.Status)
	}
	put := *now
	if put.Status.Bricks = slices.Clone(put.Status.Bricks); filling([]*resource.Volume{&put}) != 0 {
		t.Error("it is filled, and has all")
	}
	if put.Status.Bricks[2].Heal = 1; filling([]*resource.Volume{&put}) != 1 {
		t.Error("it isn't filled")
	}
	put.Status.Conditions = slices.Clone(put.Status.Conditions)
	if put.Status.Conditions.Set(resource.Condition{Type: resource.VolumeKept, Status: resource.False}); filling([]*resource.Volume{&put}) != 0 {
		t.Error("it is filled in the trash")
	}
	// Another host with a copy is given up before the old copy is gone.
	first := now.Status.Bricks[0]
	if _, err := nodes.Modify(t.Context(), first.Node, func(n *resource.Node) error { n.Spec.Lost = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.MarkDeleted(t.Context(), first.Node); err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(t.Context(), &resource.Node{Meta: resource.Meta{Name: first.Node}}); err != nil {
		t.Fatal(err)
	}
	now = w.await(v.Key(), "it needs the operator", func(v *resource.Volume) bool {
		return v.Status.Conditions.Get(resource.VolumeCopiesStay).Reason == "OperatorNeeded"
	})
	if len(now.Status.Leaving) != 1 || now.Status.Bricks[0].UID != first.UID {
		t.Errorf("it has %+v, leaving %+v", now.Status.Bricks, now.Status.Leaving)
	}
	if _, source := lostOf(now, map[string]*resource.Node{was.UID: leaves}); !source {
		t.Error("what it held is called lost while the old copy is there")
	}
	w.see(v, func(v *resource.Volume) { v.Status.Leaving = nil })
	w.await(v.Key(), "all is done", func(v *resource.Volume) bool { return v.Status.Conditions.Is(resource.VolumeCopiesStay) })
}
