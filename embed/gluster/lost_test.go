package gluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestLost: a volume of which nothing is left keeps no other from being deleted, once glusterd has forgotten it with the nodes
// that it was on; nor does one with a copy there whose place another is to take.
func TestLost(t *testing.T) {
	if !long {
		t.Skip("it takes half a minute")
	}
	c := newCluster(t, 4)
	a := c.nodes[0]
	l := NewLead(a.Client, a.address, a.name)
	var nodes []netip.Addr
	for _, n := range c.nodes {
		nodes = append(nodes, n.address)
	}
	wait.For(t, wait.Patience, "all are in the cluster", func(ctx context.Context) error {
		_, err := l.Gather(ctx, nodes)
		return err
	})
	gone := Wanted{Name: "gone", Hosts: []string{a.name}}
	for _, n := range c.nodes[1:] {
		gone.Bricks = append(gone.Bricks, WantedBrick{Brick: n.brick(t, "gone-"+n.name), Ready: true})
	}
	other := Wanted{Name: "other", Hosts: []string{a.name}, Bricks: []WantedBrick{{Brick: a.brick(t, "other"), Ready: true}}}
	half := Wanted{Name: "half", Hosts: []string{a.name}}
	for _, n := range c.nodes[:3] {
		half.Bricks = append(half.Bricks, WantedBrick{Brick: n.brick(t, "half-"+n.name), Ready: true})
	}
	for _, v := range []Wanted{gone, other, half} {
		wait.For(t, wait.Patience, v.Name+" is there", func(ctx context.Context) error {
			_, err := l.Bring(ctx, nodes, v)
			return err
		})
	}
	for _, n := range c.nodes[1:] {
		n.off()
	}
	wait.For(t, wait.Patience, "the others are missed", func(ctx context.Context) error {
		peers, err := a.Peers(ctx)
		if err == nil && slices.ContainsFunc(peers, func(p Peer) bool { return p.Connected }) {
			err = fmt.Errorf("%+v", peers)
		}
		return err
	})
	if err := l.Remove(t.Context(), other); !errors.Is(err, ErrAway) {
		t.Errorf("while they are away a volume goes: %v", err)
	}
	for i := range gone.Bricks {
		gone.Bricks[i].Lost = true
	}
	for range 2 {
		wait.For(t, wait.Patience, "it is forgotten", func(ctx context.Context) error { return l.Remove(ctx, gone) })
	}
	half.Bricks[1] = WantedBrick{Brick: Brick{Host: a.address, Path: "/bricks/new/volume/brick"}, Replaces: half.Bricks[1].Path, ReplacesLost: true}
	half.Bricks[2].Lost = true
	for _, v := range []Wanted{half, other} {
		if err := l.Remove(t.Context(), v); err != nil {
			t.Error(err)
		}
	}
	peers, err := a.Peers(t.Context())
	volumes, err2 := a.Volumes(t.Context())
	if err := errors.Join(err, err2); err != nil || len(peers) > 0 || len(volumes) > 0 {
		t.Errorf("left are %+v, %+v, %v", peers, volumes, err)
	}
}
