package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestScrub: the host that was chosen is told to compare a volume's copies, and it alone is believed about what it found.
func TestScrub(t *testing.T) {
	p := start(t)
	nodes, volumes := store.Of[resource.Node](p.store), store.Of[resource.Volume](p.store)
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	v.Status.Scrub = &resource.VolumeScrub{Wanted: 3, Done: 2, Brick: "b1"}
	hosts := []*host{p.join(t, "n0"), p.join(t, "n1"), p.join(t, "n2")}
	var is []*resource.Node
	for i := range hosts {
		n, err := nodes.Get(t.Context(), fmt.Sprint("n", i))
		if err != nil {
			t.Fatal(err)
		}
		is = append(is, n)
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: fmt.Sprint("b", i), Node: n.Name, NodeUID: n.UID})
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), volumes.CreateOp(v)); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "n1 is told", func(context.Context) error {
		want := []wire.Scrub{{Key: v.Key(), UID: v.UID, NetworkID: "00abcd", Brick: "b1", Number: 3}}
		if s := p.stateOf(is[1]); s.Storage == nil || !slices.Equal(s.Storage.Scrubs, want) {
			return fmt.Errorf("%+v", s.Storage)
		}
		return nil
	})
	if s := p.stateOf(is[0]); s.Storage == nil || s.Storage.Scrubs != nil {
		t.Errorf("n0 is told %+v", s.Storage)
	}
	say := func(i int, rep wire.ScrubReport) *resource.Volume {
		t.Helper()
		rep.Key, rep.UID = v.Key(), v.UID
		text, err := json.Marshal(rep)
		if err == nil {
			err = hosts[i].call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: wire.ScrubItem, Report: text}}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	end := wire.ScrubReport{Number: 3, Done: true, Bytes: 1 << 20, Files: 7, Mended: map[string]int64{"b2": 2, "other": 9}, Damaged: 1,
		Names: []string{"a\x1b/b"}}
	old := end
	old.Number = 2
	for _, now := range []*resource.Volume{say(0, end), say(1, old)} {
		if s := now.Status.Scrub; !s.Runs() || s.Files != 0 {
			t.Errorf("who was not asked is believed: %+v", s)
		}
	}
	if s := say(1, wire.ScrubReport{Number: 3, Bytes: 5}).Status.Scrub; !s.Runs() || s.Bytes != 5 {
		t.Errorf("on its way it is %+v", s)
	}
	for range 2 { // the second time it is known
		now := say(1, end)
		s, c := now.Status.Scrub, now.Status.Conditions.Get(resource.VolumeIntact)
		if s.Runs() || s.Files != 7 || s.Mended != 2 || s.Damaged != 1 || s.Checked.IsZero() || now.Status.Bricks[2].Mended != 2 {
			t.Errorf("done it is %+v, %+v", s, now.Status.Bricks)
		}
		if c == nil || c.Status != resource.False || !strings.HasSuffix(c.Message, ": a /b") {
			t.Errorf("a tenant is told %+v", c)
		}
		if c := intact(&resource.VolumeScrub{Left: 2}); c.Status != resource.Unknown || c.Reason == "" {
			t.Errorf("of what was not compared a tenant is told %+v", c)
		}
		if all := Flips([]*resource.Volume{now}, time.Now()); len(all) != 1 || all[is[2].UID] == nil {
			t.Errorf("operators are told %v", all)
		}
		if all := Flips([]*resource.Volume{now}, time.Now().Add(FlipsFor)); len(all) != 0 {
			t.Errorf("long after operators are told %v", all)
		}
	}
}
