package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestSharedCopies: a host is told of a copy of its brick once it was seen that all have the same, and it isn't ready before
// that was seen again. What is made of it is told as a volume of one brick, which others are to be filled from.
func TestSharedCopies(t *testing.T) {
	p := start(t)
	h, address := p.join(t, "n1"), netip.MustParseAddr("10.9.0.1")
	node, err := store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error {
		n.Status.Address, n.Status.Phase, n.Status.Drivers = address, resource.Ready, []string{wire.CopyDriver}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	volumes, snapshots := store.Of[resource.Volume](p.store), store.Of[resource.Snapshot](p.store)
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	brick := func(uid string, filling bool) resource.VolumeBrick {
		return resource.VolumeBrick{UID: uid, Node: "n1", NodeUID: node.UID, Filling: filling}
	}
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"),
		Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 1 << 30}}
	v.Status.Bricks, v.Status.Look = []resource.VolumeBrick{brick("a1", false), brick("a2", false), brick("a3", false)}, 7
	s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "then"),
		Spec: resource.SnapshotSpec{Volume: "data", Class: resource.SharedVolume, SizeBytes: 1 << 30}}
	s.Status.NodeUID, s.Status.Copy = node.UID, &resource.BrickCopy{Brick: "a2"}
	back := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "back"),
		Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 1 << 30, Source: &resource.VolumeSource{Volume: "data", UID: "u"}}}
	back.Status.Bricks = []resource.VolumeBrick{brick("b1", false), brick("b2", true), brick("b3", true)}
	back.Status.Copy = &resource.BrickCopy{Brick: "a2"}
	err = p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), volumes.CreateOp(v), volumes.CreateOp(back), snapshots.CreateOp(s))
	if err != nil {
		t.Fatal(err)
	}
	told := func(what string, ok func(s *wire.State, bricks map[string]wire.Brick) bool) (now *wire.State) {
		t.Helper()
		wait.For(t, wait.Patience, "it is told "+what, func(context.Context) error {
			now = p.stateOf(node)
			bricks := map[string]wire.Brick{}
			if now.Storage != nil {
				for _, b := range now.Storage.Bricks {
					bricks[b.UID] = b
				}
			}
			if now.Storage == nil || now.Storage.Cluster == nil || !ok(now, bricks) {
				return fmt.Errorf("it is told %+v, volumes %+v", now.Storage, now.Volumes)
			}
			return nil
		})
		return now
	}
	now := told("of no copy", func(s *wire.State, b map[string]wire.Brick) bool {
		_, first := b["b1"]
		return len(b) == 5 && !first && len(s.Volumes) == 0 && len(s.Storage.Cluster.Volumes) == 1
	})
	if cv := now.Storage.Cluster.Volumes[0]; cv.Look != 7 {
		t.Errorf("it is told %+v", cv)
	}
	due := func(c *resource.BrickCopy) { c.Seen = "all" }
	change := func(how func(*resource.BrickCopy)) {
		t.Helper()
		_, err := snapshots.Modify(t.Context(), s.Key(), func(s *resource.Snapshot) error { how(s.Status.Copy); return nil })
		if err == nil {
			_, err = volumes.Modify(t.Context(), back.Key(), func(v *resource.Volume) error { how(v.Status.Copy); return nil })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(due)
	told("of copies", func(s *wire.State, b map[string]wire.Brick) bool {
		return b["b1"].Source == "a2" && b["b2"].Source == "" && b["b2"].UID != "" && len(s.Storage.Cluster.Volumes) == 1 &&
			len(s.Volumes) == 1 && s.Volumes[0].Source == "a2" && s.Volumes[0].Snapshot
	})
	say := func(kind string, rep any) {
		t.Helper()
		text, err := json.Marshal(rep)
		if err == nil {
			err = h.call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: kind, Report: text}}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ready := wire.VolumeReport{Key: s.Key(), UID: s.UID, Ready: true, SizeBytes: 1 << 30}
	say(wire.VolumeItem, ready)
	if now, err := snapshots.Get(t.Context(), s.Key()); err != nil || !now.Made() || now.Usable() || now.Status.Conditions.Is(resource.SnapshotReady) {
		t.Errorf("before it was looked at again it is %+v, %v", now.Status, err)
	}
	change(func(c *resource.BrickCopy) { c.Checked = true })
	now = told("of the volume", func(s *wire.State, _ map[string]wire.Brick) bool { return len(s.Storage.Cluster.Volumes) == 2 })
	ready.UsedBytes = 1 << 20
	say(wire.VolumeItem, ready)
	if now, err := snapshots.Get(t.Context(), s.Key()); err != nil || !now.Usable() || !now.Status.Conditions.Is(resource.SnapshotReady) {
		t.Errorf("then it is %+v, %v", now.Status, err)
	}
	for _, cv := range now.Storage.Cluster.Volumes {
		if b := cv.Bricks; cv.UID == back.UID && (b[0].Filling || !b[1].Filling || !b[2].Filling) {
			t.Errorf("it is told %+v", cv)
		}
	}

	filling := func(what string, want int, bricks ...wire.ClusterBrickReport) {
		t.Helper()
		say(wire.ClusterItem, wire.ClusterReport{Key: back.Key(), UID: back.UID, Ready: true, Bricks: bricks})
		now, err := volumes.Get(t.Context(), back.Key())
		if err != nil {
			t.Fatal(err)
		}
		have := 0
		for _, b := range now.Status.Bricks {
			if b.Filling {
				have++
			}
		}
		if have != want {
			t.Errorf("%s: %d are to be filled, want %d", what, have, want)
		}
	}
	at := func(uid string, heal int64) wire.ClusterBrickReport {
		return wire.ClusterBrickReport{UID: uid, Online: true, Heal: heal, Looked: 3, Process: 9}
	}
	filling("one", 2, at("b1", 0))
	filling("unknown", 2, at("b1", -1), at("b2", -1))
	filling("healing", 2, at("b1", 5), at("b2", 0))
	filling("two", 1, at("b1", 0), at("b2", 0))
	filling("a third", 1, at("b1", 5), at("b2", 5), at("b3", 0))
	filling("all", 0, at("b1", 0), at("b2", 0), at("b3", 0))
	if now, err := volumes.Get(t.Context(), back.Key()); err != nil || now.Status.Bricks[2].Looked != 3 || now.Status.Bricks[2].Process != 9 {
		t.Errorf("it is %+v, %v", now.Status, err)
	}

	// What its host says it has started anew may have missed something: it is asked, and what was asked before counts no more.
	started := func(server string) *resource.Volume {
		t.Helper()
		err := p.takeBrick(t.Context(), node, wire.BrickReport{Key: back.Key(), UID: "b2", Ready: true, SizeBytes: 1 << 30, Server: server})
		now, err2 := volumes.Get(t.Context(), back.Key())
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return now
	}
	if now := started("one"); now.Status.Look != 0 || !now.Whole() {
		t.Errorf("first it is %+v", now.Status)
	}
	if now := started("two"); now.Status.Look != 1 || now.Whole() {
		t.Errorf("started anew it is %+v", now.Status)
	}
	for looked, whole := range []bool{false, true} {
		rep := wire.ClusterReport{Key: back.Key(), UID: back.UID, Ready: true}
		for _, uid := range []string{"b1", "b2", "b3"} {
			rep.Bricks = append(rep.Bricks, wire.ClusterBrickReport{UID: uid, Online: true, Looked: int64(looked)})
		}
		err := p.takeCluster(t.Context(), node, rep)
		if now, err2 := volumes.Get(t.Context(), back.Key()); errors.Join(err, err2) != nil || now.Whole() != whole {
			t.Errorf("after look %d it is %+v, %v", looked, now.Status, err)
		}
	}

	// What took the place of its first brick is made as any.
	_, err = volumes.Modify(t.Context(), back.Key(), func(v *resource.Volume) error {
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
		v.Status.Bricks[0] = resource.VolumeBrick{UID: "c1", Node: "n1", NodeUID: node.UID, Replaces: "b1"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	told("of another first brick", func(_ *wire.State, b map[string]wire.Brick) bool { return b["c1"].UID != "" && b["c1"].Source == "" })

	// What was away, or was served anew, has missed something, though all is as it was before.
	seen := func(bricks ...wire.ClusterBrickReport) string {
		t.Helper()
		err := p.takeCluster(t.Context(), node, wire.ClusterReport{Key: v.Key(), UID: v.UID, Ready: true, Bricks: bricks})
		if err != nil {
			t.Fatal(err)
		}
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		text, _ := now.Processes(0)
		return text
	}
	all := []wire.ClusterBrickReport{at("a1", 0), at("a2", 0), at("a3", 0)}
	before := seen(all...)
	if again := seen(all...); again != before {
		t.Errorf("nothing has changed, and %q is %q", before, again)
	}
	off := slices.Clone(all)
	off[1] = wire.ClusterBrickReport{UID: "a2"}
	seen(off...)
	came := seen(all...)
	if came == before {
		t.Errorf("a brick was away, and they are %q still", before)
	}
	seen(at("a1", 4), at("a2", 0), at("a3", 0))
	if healed := seen(all...); healed == came {
		t.Errorf("a brick had what others lack, and they are %q still", came)
	}

	// Of a copy that came out wrong nothing is kept.
	_, err = volumes.Modify(t.Context(), back.Key(), func(v *resource.Volume) error {
		v.Status.Copy.Checked = false
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Final: true})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	told("to remove what failed", func(_ *wire.State, b map[string]wire.Brick) bool {
		return b["b2"].Remove && b["c1"].Remove && !b["a1"].Remove
	})
}
