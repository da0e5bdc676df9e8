package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestTrash: a node is told to keep what of its volumes is in the trash, and believed about no other; of a
// volume and the trash that it went to, what was written last is so.
func TestTrash(t *testing.T) {
	p := start(t)
	mine, other := p.join(t, "n1"), p.join(t, "n2")
	trash := store.Of[resource.Trash](p.store)
	node, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: 1 << 30}}
	v.Status.Node, v.Status.NodeUID, v.Status.FirstUID, v.Status.SizeBytes = "n1", node.UID, 1<<28, 1<<30
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), store.Of[resource.Volume](p.store).CreateOp(v)); err != nil {
		t.Fatal(err)
	}
	in := v.ToTrash(ws, time.Now())
	if err := p.store.Commit(t.Context(), p.store.TrashOps(v, in)...); err != nil {
		t.Fatal(err)
	}
	want := wire.Volume{Key: in.Key(), UID: v.UID, NetworkID: "00abcd", Class: "local", SizeBytes: 1 << 30, FirstUID: 1 << 28, Made: true, Keep: true}
	p.tells(t, node, want)
	if err := mine.call(t.Context(), wire.LeavePath, struct{}{}, nil); err == nil || !strings.Contains(err.Error(), "acme/web/shop/data") {
		t.Errorf("it leaves with trash: %v", err)
	}
	report := func(h *host, rep wire.VolumeReport) resource.Conditions {
		return told(t, h, rep, trash, in.Key()).Status.Conditions
	}
	rep := wire.VolumeReport{Key: in.Key(), UID: v.UID, Ready: true, Removed: true}
	if got := report(other, rep); got.Is(resource.VolumeKept) || got.Get(resource.VolumeKept).Message != resource.PutAway {
		t.Errorf("another node is believed: %+v", got)
	}
	if got := report(mine, rep); !got.Is(resource.VolumeKept) || got.Is(resource.VolumeRemoved) {
		t.Errorf("kept, it is %+v", got)
	}
	// Nobody gets the number of its users, and nobody is asked for it.
	claim := &resource.VNI{Meta: resource.Meta{Name: "4097"}, Network: "00abcd", Retired: true, RetiredAt: time.Now().Add(-100 * time.Hour)}
	if err := store.Of[resource.VNI](p.store).Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	m := &Monitor{Log: p.cfg.Log, Store: p.store, Nodes: p.cfg.Nodes, Claims: p.cfg.Claims, Trash: p.cfg.Trash, now: time.Now}
	freed := func() bool {
		t.Helper()
		if err := m.free(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := store.Of[resource.VNI](p.store).Get(t.Context(), "4097")
		return err != nil
	}
	wait.For(t, wait.Patience, "the claim is known", func(context.Context) error {
		if _, ok := p.cfg.Claims.Get("4097"); !ok {
			return errors.New("it is not")
		}
		return nil
	})
	if freed() {
		t.Error("the number is free")
	}
	claim.Nodes = map[string]string{node.UID: "n1"}
	if got := Overdue([]*resource.VNI{claim}, []*resource.Trash{in}, time.Now()); len(got) != 0 {
		t.Errorf("it is overdue: %v", got)
	}

	if _, err := trash.Modify(t.Context(), in.Key(), func(now *resource.Trash) error {
		now.DeletedAt, now.Status.Phase = new(time.Now().UTC()), resource.Deleting
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want.Keep, want.Remove = false, true
	p.tells(t, node, want)
	if got := report(mine, rep); !got.Is(resource.VolumeRemoved) {
		t.Errorf("removed, it is %+v", got)
	}
	now, err := trash.Get(t.Context(), in.Key())
	if err != nil {
		t.Fatal(err)
	}
	if err := trash.Delete(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	p.tells(t, node)
	wait.For(t, wait.Patience, "the number is free", func(context.Context) error {
		if !freed() {
			return errors.New("it is kept")
		}
		return nil
	})
}

// TestTrashOfShared: hosts keep the bricks of a shared volume that is in the trash, and nobody has it; its lead is believed once it
// has stopped it, and its bricks go only when GlusterFS has forgotten it.
func TestTrashOfShared(t *testing.T) {
	p := start(t)
	mine := p.join(t, "n1")
	nodes, trash := store.Of[resource.Node](p.store), store.Of[resource.Trash](p.store)
	node, err := nodes.Modify(t.Context(), "n1", func(n *resource.Node) error { n.Status.Address, n.Status.Phase = n1Address, resource.Ready; return nil })
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "share"), Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 1 << 30}}
	v.UID, v.Status.SizeBytes = store.NewUID(), 1<<30
	v.Status.Bricks = []resource.VolumeBrick{{UID: "b1", Node: "n1", NodeUID: node.UID, SizeBytes: 1 << 30, Ready: true, Online: true}}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	in := v.ToTrash(ws, time.Now()) // of a workspace that is gone
	if err := trash.Create(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	told := func(remove, stop, brick bool) {
		t.Helper()
		wait.For(t, wait.Patience, "the hub knows of it", func(context.Context) error {
			s := p.stateOf(node).Storage
			if s == nil || s.Cluster == nil || len(s.Bricks) != 1 || s.Bricks[0].Remove != brick || !s.Bricks[0].Made || s.Bricks[0].Key != in.Key() ||
				s.Bricks[0].NetworkID != "00abcd" || len(s.Cluster.Volumes) > 0 == brick {
				return fmt.Errorf("n1 is told %+v", s)
			}
			if brick {
				return nil
			}
			if c := s.Cluster.Volumes[0]; c.Remove != remove || c.Stop != stop || !c.Made || fmt.Sprint(c.Hosts) != fmt.Sprint([]string{node.UID}) {
				return fmt.Errorf("of the cluster n1 is told %+v", c)
			}
			return nil
		})
	}
	say := func(kind string, rep any) resource.VolumeStatus {
		t.Helper()
		text, err := json.Marshal(rep)
		if err == nil {
			err = mine.call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: kind, Report: text}}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		now, err := trash.Get(t.Context(), in.Key())
		if err != nil {
			t.Fatal(err)
		}
		return now.Status
	}
	told(false, true, false)
	rep := wire.ClusterReport{Key: in.Key(), UID: v.UID, Ready: true}
	if got := say(wire.ClusterItem, rep); got.Conditions.Is(resource.VolumeKept) {
		t.Errorf("before it is stopped it is %+v", got)
	}
	rep.Stopped = true
	if got := say(wire.ClusterItem, rep); !got.Conditions.Is(resource.VolumeKept) || got.Bricks[0].Online {
		t.Errorf("stopped it is %+v", got)
	}
	if got := say(wire.BrickItem, wire.BrickReport{Key: in.Key(), UID: "b1", Ready: true, UsedBytes: 7, Removed: true}); got.Bricks[0].Removed || got.UsedBytes != 7 {
		t.Errorf("its brick is %+v", got.Bricks)
	}
	if _, err := trash.Modify(t.Context(), in.Key(), func(now *resource.Trash) error {
		now.DeletedAt, now.Status.Phase = new(time.Now().UTC()), resource.Deleting
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	told(true, true, false)
	if got := say(wire.ClusterItem, wire.ClusterReport{Key: in.Key(), UID: v.UID, Removed: true}); !got.Conditions.Is(resource.VolumeUnserved) {
		t.Errorf("forgotten it is %+v", got)
	}
	told(false, false, true)
	if got := say(wire.BrickItem, wire.BrickReport{Key: in.Key(), UID: "b1", Removed: true}); !got.Bricks[0].Removed {
		t.Errorf("its brick is %+v", got.Bricks)
	}
}
