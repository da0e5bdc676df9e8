package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestRenew: hosts start anew what serves bricks by a former version, one after the other, while all volumes are whole; a
// host with the only copy of one does not.
func TestRenew(t *testing.T) {
	p := start(t)
	nodes, volumes := store.Of[resource.Node](p.store), store.Of[resource.Volume](p.store)
	m := &Monitor{Log: slog.New(slog.DiscardHandler), Store: p.store, Nodes: p.cfg.Nodes, now: p.now}
	later := time.Duration(0)
	m.now = func() time.Time { return time.Now().Add(later) }
	hosts := map[string]*host{}
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
	one := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "one"), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
	drivers := map[string][]string{"n1": {wire.CopyDriver}, "n2": {wire.CopyDriver}, "n3": {wire.CopyDriver}}
	report := func(name string, old bool) *resource.Node {
		t.Helper()
		if err := hosts[name].call(t.Context(), wire.ReportPath, wire.Report{Address: netip.MustParseAddr("127.0.0.1"), StorageOld: old, Drivers: drivers[name]}, nil); err != nil {
			t.Fatal(err)
		}
		n, err := nodes.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		// Or the next report is taken for what was said before.
		wait.True(t, wait.Patience, "the cache has it", func() bool {
			now, ok := p.cfg.Nodes.Get(name)
			return ok && now.Revision >= n.Revision
		})
		return n
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		hosts[name] = p.join(t, name)
		n := report(name, true)
		if c := n.Status.Conditions.Get(resource.NodeStorageCurrent); c == nil || c.Reason != "Old" {
			t.Errorf("%s says %+v", name, n.Status.Conditions)
		}
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: "b-" + name, Node: name, NodeUID: n.UID, Online: true, Heal: 1})
	}
	one.Status.Bricks = []resource.VolumeBrick{v.Status.Bricks[0]}
	one.Status.Bricks[0].Heal = 0
	// One that is being made has a copy on n2, and is not asked about.
	fresh := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "fresh"), Spec: v.Spec}
	fresh.Status.Bricks = []resource.VolumeBrick{v.Status.Bricks[1]}
	fresh.Status.Bricks[0].Online = false
	for _, v := range []*resource.Volume{v, one} {
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True, Reason: "Served"})
	}
	for _, v := range []*resource.Volume{v, one, fresh} {
		if err := volumes.Create(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	// look has the monitor look, in a while, and says who is told to.
	look := func() (told string) {
		t.Helper()
		later += renewLook
		all, _, err := nodes.List(t.Context(), "", "", 0)
		if err == nil {
			err = m.renew(t.Context(), all)
		}
		if err == nil {
			all, _, err = nodes.List(t.Context(), "", "", 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			if !n.Status.StorageRenew.IsZero() {
				told += n.Name
			}
		}
		return told
	}
	step := func(want, when string) {
		t.Helper()
		if got := look(); got != want {
			t.Errorf("%s %q is told to, want %q", when, got, want)
		}
	}
	step("", "while something is to be healed")
	if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
		for i := range v.Status.Bricks {
			v.Status.Bricks[i].Heal = 0
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	step("n2", "once all are whole")
	step("n2", "while it does so")
	wait.For(t, wait.Patience, "n2 is told", func(context.Context) error {
		n, err := nodes.Modify(t.Context(), "n2", func(n *resource.Node) error {
			n.Status.StorageMember = true // as one that has bricks
			return nil
		})
		if err != nil {
			return err
		}
		if s := p.stateOf(n).Storage; s == nil || !s.Renew {
			return fmt.Errorf("it is %+v", s)
		}
		return nil
	})
	if c := report("n2", true).Status.Conditions.Get(resource.NodeStorageCurrent); c == nil || c.Reason != "Renewing" {
		t.Errorf("meanwhile it says %+v", c)
	}
	if c := report("n2", false).Status.Conditions.Get(resource.NodeStorageCurrent); c != nil {
		t.Errorf("then it says %+v", c)
	}
	step("", "once it has")
	step("", "before it is known what it missed")
	later += renewPause
	step("n3", "later")
	report("n3", false)
	step("", "once that has")
	later += renewPause
	step("", "with the only copy of a volume")

	// What is not done is taken back, and others come first.
	report("n2", true)
	report("n3", true)
	change := func(change func(*resource.Volume)) {
		t.Helper()
		if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error { change(v); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	step("n2", "of a former version again")
	later += renewFor
	step("", "when it does not get it done")
	later += renewPause
	step("n3", "instead")
	change(func(v *resource.Volume) { v.Status.Bricks[2].Online, v.Status.Bricks[0].Heal = false, -1 })
	step("n3", "while its own copy is away")
	change(func(v *resource.Volume) { v.Status.Bricks[1].Online = false })
	step("", "when another copy is away too")
	later += renewPause
	step("", "while copies are away")
	change(func(v *resource.Volume) {
		v.Status.Bricks[0].Heal, v.Status.Bricks[1].Online, v.Status.Bricks[2].Online = 0, true, true
	})
	step("n2", "whole again")
	silent := func(is resource.ConditionStatus) {
		t.Helper()
		if _, err := nodes.Modify(t.Context(), "n2", func(n *resource.Node) error {
			n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: is})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	silent(resource.False)
	step("", "when it falls silent")
	later += renewPause
	step("", "while a copy's host is silent")
	silent(resource.True)
	drivers["n2"], drivers["n3"] = nil, nil
	report("n2", true)
	report("n3", true)
	step("", "of a version that knows nothing of it")
	// A host that has nothing of a volume that isn't whole does not wait for that.
	change(func(v *resource.Volume) { v.Status.Bricks = v.Status.Bricks[:2]; v.Status.Bricks[0].Heal = 1 })
	drivers["n3"] = []string{wire.CopyDriver}
	report("n3", true)
	step("n3", "with nothing of the one that is to be healed")
}
