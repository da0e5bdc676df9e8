package node

import (
	"context"
	"errors"
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
