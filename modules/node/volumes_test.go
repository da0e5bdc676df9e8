package node

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// say reports items of this host, in one page.
func (h *host) say(t *testing.T, reports ...any) error {
	t.Helper()
	var page wire.Items
	for _, rep := range reports {
		text, ok := rep.(json.RawMessage)
		if !ok {
			var err error
			if text, err = json.Marshal(rep); err != nil {
				t.Fatal(err)
			}
		}
		page.Items = append(page.Items, wire.Item{Kind: wire.VolumeItem, Report: text})
	}
	return h.call(t.Context(), wire.ItemsPath, page, nil)
}

// told reports a volume, or a snapshot, and returns what is stored then.
func told[P resource.Object](t *testing.T, h *host, rep wire.VolumeReport, kind store.Kind[P], key string) P {
	t.Helper()
	if err := h.say(t, rep); err != nil {
		t.Fatal(err)
	}
	now, err := kind.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// tells waits until a node is told of these volumes, and of no others.
func (p *platform) tells(t *testing.T, node *resource.Node, want ...wire.Volume) {
	t.Helper()
	wait.For(t, wait.Patience, "the hub knows of it", func(context.Context) error {
		if got := p.stateOf(node).Volumes; fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%s is told %+v, want %+v", node.Name, got, want)
		}
		return nil
	})
}

// TestVolumes: a node is told of the volumes on it and of no others, and believed about
// those alone.
func TestVolumes(t *testing.T) {
	p := start(t)
	mine, other := p.join(t, "n1"), p.join(t, "n2")
	volumes, machines := store.Of[resource.Volume](p.store), store.Of[resource.Machine](p.store)
	node, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}
	m.Spec.Node = "n1"
	away := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-2")}
	away.Spec.Node = "n2"
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), machines.CreateOp(m), machines.CreateOp(away)); err != nil {
		t.Fatal(err)
	}
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: 1 << 30}}
	v.Status.Node, v.Status.NodeUID, v.Status.FirstUID = "n1", node.UID, 1<<28
	former := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "former")}
	former.Status.Node, former.Status.NodeUID = "n1", "of another node of that name"
	if err := p.store.Commit(t.Context(), volumes.CreateOp(v), volumes.CreateOp(former)); err != nil {
		t.Fatal(err)
	}
	want := wire.Volume{Key: v.Key(), UID: v.UID, NetworkID: "00abcd", Class: "local", SizeBytes: 1 << 30, FirstUID: 1 << 28,
		Attachments: []wire.VolumeAttachment{{MachineUID: m.UID}}}
	p.tells(t, node, want)
	n2, err := store.Of[resource.Node](p.store).Get(t.Context(), "n2")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.stateOf(n2).Volumes; got != nil {
		t.Errorf("n2 is told %+v", got)
	}

	good := wire.VolumeReport{Key: v.Key(), UID: v.UID, Ready: true, SizeBytes: 1 << 50, UsedBytes: 5, Attached: []string{m.UID}, Failed: map[string]string{m.UID: "no\x1b[31m"}, Removed: true}
	report := func(h *host, rep wire.VolumeReport) *resource.Volume { return told(t, h, rep, volumes, v.Key()) }
	lie := good
	lie.UID = "another"
	for name, got := range map[string]*resource.Volume{"another node": report(other, good), "of another UID": report(mine, lie)} {
		if got.Status.Conditions != nil || got.Status.SizeBytes != 0 {
			t.Errorf("%s is believed: %+v", name, got.Status)
		}
	}
	s := report(mine, good).Status
	if !s.Conditions.Is(resource.VolumeReady) || s.SizeBytes != 1<<30 || s.UsedBytes != 5 || len(s.Attachments) != 1 || !s.Attachments[0].Attached || s.Attachments[0].Message != "no [31m" {
		t.Errorf("after a report it is %+v", s)
	}
	if s.Conditions.Is(resource.VolumeRemoved) {
		t.Error("a volume that shall stay is removed, for its host says so")
	}
	if err := mine.call(t.Context(), wire.LeavePath, struct{}{}, nil); err == nil || !strings.Contains(err.Error(), "acme/web/shop/data") {
		t.Errorf("it leaves with a volume: %v", err)
	}
	// It may be copied first: its controller says when it goes.
	if _, err := volumes.MarkDeleted(t.Context(), v.Key()); err != nil {
		t.Fatal(err)
	}
	if got := p.stateOf(node).Volumes; len(got) != 1 || got[0].Remove {
		t.Errorf("n1 is told %+v", got)
	}
	_, err = volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error { v.Status.Phase = resource.Deleting; return nil })
	if err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "it shall be removed", func(context.Context) error {
		if got := p.stateOf(node).Volumes; len(got) != 1 || !got[0].Remove || !got[0].Made || got[0].Attachments != nil {
			return fmt.Errorf("n1 is told %+v", got)
		}
		return nil
	})
	if s := report(mine, good).Status; !s.Conditions.Is(resource.VolumeRemoved) {
		t.Errorf("it was removed: %+v", s)
	}
	// One that is none is in the way of none.
	good.UsedBytes = 7
	// Kinds of a newer agent are in nobody's way.
	if err := mine.call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: "dream", Report: []byte("7")}}}, nil); err != nil {
		t.Error(err)
	}
	if err := mine.say(t, json.RawMessage("[]"), good); err == nil || !strings.Contains(err.Error(), "not understood") {
		t.Errorf("an item that is none: %v", err)
	}
	if now, err := volumes.Get(t.Context(), v.Key()); err != nil || now.Status.UsedBytes != 7 {
		t.Errorf("what comes after it is not taken down: %+v, %v", now.Status, err)
	}
	var shown atomic.Int64
	var placed atomic.Bool
	p.cfg.Nodes.OnChange(func(string) {
		if n, ok := p.cfg.Nodes.Get("n1"); ok && n.Status.Address == n1Address {
			placed.Store(true)
		}
	})
	// As agents from before say it. What is used wakes no agent.
	before := func(used int64) {
		t.Helper()
		good.UsedBytes = used
		if err := mine.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address, Volumes: []wire.VolumeReport{good}, Pools: make([]resource.Pool, 99)}, nil); err != nil {
			t.Fatal(err)
		}
		wait.True(t, wait.Patience, "what is used is known, to the hub first", func() bool { return shown.Load() == used })
	}
	p.cfg.Volumes.OnChange(func(key string) {
		if v, ok := p.cfg.Volumes.Get(key); ok && key == good.Key {
			shown.Store(v.Status.UsedBytes)
		}
	})
	before(1 << 28)
	wait.True(t, wait.Patience, "it is known where the node is", placed.Load)
	woken := p.waitChange()
	before(1 << 29)
	select {
	case <-woken:
		t.Error("what is used wakes agents")
	default:
	}
	now, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil || len(now.Status.Pools) != 1 {
		t.Errorf("pools %+v, %v", now.Status.Pools, err)
	}
}

// TestSnapshots: a node is told of the snapshots on it, and believed as far as of volumes.
func TestSnapshots(t *testing.T) {
	p := start(t)
	mine, other := p.join(t, "n1"), p.join(t, "n2")
	node, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	snapshots := store.Of[resource.Snapshot](p.store)
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"),
		Spec: resource.SnapshotSpec{Volume: "data", VolumeUID: "of", SizeBytes: 1 << 30}}
	s.Status.Node, s.Status.NodeUID = "n1", node.UID
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), snapshots.CreateOp(s)); err != nil {
		t.Fatal(err)
	}
	want := wire.Volume{Key: s.Key(), UID: s.UID, NetworkID: "00abcd", Class: "local", SizeBytes: 1 << 30, Source: "of", Snapshot: true}
	p.tells(t, node, want)
	rep := wire.VolumeReport{Key: s.Key(), UID: s.UID, Ready: true, SizeBytes: 1 << 50, UsedBytes: 5, Removed: true}
	report := func(h *host) resource.SnapshotStatus { return told(t, h, rep, snapshots, s.Key()).Status }
	if got := report(other); got.SizeBytes != 0 || got.Conditions != nil {
		t.Errorf("another node is believed: %+v", got)
	}
	got := report(mine)
	if !got.Conditions.Is(resource.SnapshotReady) || got.SizeBytes != 1<<30 || got.UsedBytes != 5 || got.ReadyAt == nil ||
		got.Conditions.Is(resource.SnapshotRemoved) {
		t.Errorf("after a report it is %+v", got)
	}
	if err := mine.call(t.Context(), wire.LeavePath, struct{}{}, nil); err == nil || !strings.Contains(err.Error(), "acme/web/shop/data") {
		t.Errorf("it leaves with a snapshot: %v", err)
	}
	_, err = snapshots.Modify(t.Context(), s.Key(), func(s *resource.Snapshot) error {
		s.DeletedAt, s.Status.Phase = new(time.Now().UTC()), resource.Deleting
		s.Status.SizeBytes = 2 << 30 // as of a volume that had grown before it was made
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want.Made, want.Remove, want.SizeBytes = true, true, 2<<30
	p.tells(t, node, want)
	if got := report(mine); !got.Conditions.Is(resource.SnapshotRemoved) {
		t.Errorf("it was removed: %+v", got)
	}
}
