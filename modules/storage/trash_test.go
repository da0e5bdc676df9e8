package storage

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestTrash: what is in the trash has its room on its host until that has taken it away, when its time
// is over or somebody asks for it, and no sooner.
func TestTrash(t *testing.T) {
	w := newWorld(t)
	ctx, trash := t.Context(), store.Of[resource.Trash](w.db)
	// put makes a volume and puts it into the trash until then.
	put := func(name string, until time.Time) *resource.Trash {
		t.Helper()
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib}}
		v.UID = store.NewUID()
		v.Status.Node, v.Status.NodeUID, v.Status.SizeBytes = "n1", w.nodes[0].UID, gib
		in := v.ToTrash(w.ws, time.Now())
		in.Spec.Until = until
		if err := trash.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	await := func(what, key string, ok func(*resource.Trash) bool) {
		t.Helper()
		wait.For(t, wait.Patience, what, func(ctx context.Context) error {
			now, err := trash.Get(ctx, key)
			if errors.Is(err, store.ErrNotFound) {
				now, err = nil, nil
			}
			if err != nil || !ok(now) {
				return fmt.Errorf("it is %+v, %v", now, err)
			}
			return nil
		})
	}
	report := func(key, condition string) {
		t.Helper()
		if _, err := trash.Modify(ctx, key, func(now *resource.Trash) error {
			now.Status.Conditions.Set(resource.Condition{Type: condition, Status: resource.True})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	kept, over := put("kept", time.Now().Add(time.Hour)), put("over", time.Now().Add(-time.Second))
	going := func(now *resource.Trash) bool {
		return now != nil && now.Deleting() && now.Status.Phase == resource.Deleting
	}
	await("its time is over", over.Key(), going)
	report(kept.Key(), resource.VolumeKept)
	await("it is kept", kept.Key(), func(now *resource.Trash) bool { return now.Status.Phase == resource.Kept && !now.Deleting() })
	all, err := w.db.OnHosts(ctx)
	if promised := resource.PromisedToVolumes(all); err != nil || len(all) != 2 || all[0].Key() != "acme/web/shop/kept" {
		t.Errorf("on hosts are %v, %v, promised %v", all, err, promised)
	}
	if used, err := w.quota.Used(ctx, &resource.Account{Meta: resource.Meta{Name: "acme"}}); err != nil || used.Volumes != 2 || used.VolumeBytes != 2*gib {
		t.Errorf("the account has %+v, %v", used, err)
	}
	done := errors.New("done")
	if err := w.Restore(ctx, kept.Restored("acme/web/other", "back"), func() error { return done }); !errors.Is(err, done) {
		t.Errorf("restored: %v", err)
	}
	report(over.Key(), resource.VolumeRemoved)
	gone := func(now *resource.Trash) bool { return now == nil }
	await("it is gone", over.Key(), gone)

	// A host that is silent is waited for, and that is said; of one that is gone there is nothing to wait for.
	nodes := store.Of[resource.Node](w.db)
	if _, err := nodes.Modify(ctx, "n1", func(n *resource.Node) error { n.Status.Phase = resource.Degraded; return nil }); err != nil {
		t.Fatal(err)
	}
	await("its host is silent", kept.Key(), func(now *resource.Trash) bool { return now.Status.Phase == resource.Degraded })
	if _, err := trash.MarkDeleted(ctx, kept.Key()); err != nil {
		t.Fatal(err)
	}
	await("the host is waited for", kept.Key(), func(now *resource.Trash) bool {
		c := now.Status.Conditions.Get(resource.VolumeRemoved)
		return going(now) && c != nil && c.Reason == "HostSilent"
	})
	n1, err := nodes.Get(ctx, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(ctx, n1); err != nil {
		t.Fatal(err)
	}
	await("it went with its host", kept.Key(), gone)
}

// TestTrashOfShared: a shared volume in the trash goes from GlusterFS first, then from its hosts; it is lost with all of them.
func TestTrashOfShared(t *testing.T) {
	w := newWorld(t)
	ctx, trash := t.Context(), store.Of[resource.Trash](w.db)
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "share"), Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: gib}}
	v.UID, v.Status.SizeBytes = store.NewUID(), gib
	v.Status.Bricks = []resource.VolumeBrick{{UID: "b1", Node: "n1", NodeUID: w.nodes[0].UID}, {UID: "b2", Node: "n2", NodeUID: w.nodes[1].UID}}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	in := v.ToTrash(w.ws, time.Now())
	if err := trash.Create(ctx, in); err != nil {
		t.Fatal(err)
	}
	await := func(what string, ok func(*resource.Trash) bool) {
		t.Helper()
		wait.For(t, wait.Patience, what, func(ctx context.Context) error {
			now, err := trash.Get(ctx, in.Key())
			if errors.Is(err, store.ErrNotFound) {
				now, err = nil, nil
			}
			if err != nil || !ok(now) {
				return fmt.Errorf("it is %+v, %v", now, err)
			}
			return nil
		})
	}
	change := func(how func(*resource.Trash)) {
		t.Helper()
		if _, err := trash.Modify(ctx, in.Key(), func(now *resource.Trash) error { how(now); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	kept := resource.Condition{Type: resource.VolumeKept, Status: resource.True}
	change(func(now *resource.Trash) { now.Status.Conditions.Set(kept) })
	await("it is kept", func(now *resource.Trash) bool { return now.Status.Phase == resource.Kept })
	for i, phase := range []resource.Phase{resource.Degraded, resource.Degraded, resource.Ready, resource.Ready} {
		w.node(i%2, func(n *resource.Node) { n.Status.Phase = phase })
	}
	await("its hosts are back", func(now *resource.Trash) bool {
		return now.Status.Phase == resource.Kept && now.Status.Conditions.Is(resource.VolumeKept)
	})
	if _, err := trash.MarkDeleted(ctx, in.Key()); err != nil {
		t.Fatal(err)
	}
	await("GlusterFS is to forget it", func(now *resource.Trash) bool { return now.Status.Phase == resource.Deleting })
	change(func(now *resource.Trash) {
		now.Status.Conditions.Set(resource.Condition{Type: resource.VolumeUnserved, Status: resource.True})
		now.Status.Bricks[0].Removed = true
	})
	await("one host has it still", func(now *resource.Trash) bool { return now != nil && now.Status.Bricks[0].Removed })
	change(func(now *resource.Trash) { now.Status.Bricks[1].Removed = true })
	await("it is gone", func(now *resource.Trash) bool { return now == nil })

	for what, c := range map[string]struct {
		lost, disk, silent bool
		phase              resource.Phase
	}{"lost": {true, false, true, resource.Failed}, "its disk is": {true, true, false, resource.Failed},
		"silent": {false, false, true, resource.Degraded}, "there": {false, false, false, resource.Updating}} {
		now := *in
		if settleTrash(&now, c.lost, c.disk, c.silent); now.Status.Phase != c.phase {
			t.Errorf("%s: %s", what, now.Status.Phase)
		}
	}
}
