package storage

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

// TestLostPool: of a disk that is given up, whose host lives, copies of shared volumes are made anew, and what local ones
// held is lost for good.
func TestLostPool(t *testing.T) {
	w := newWorld(t)
	w.shared()
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib})
	w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
	w.see(v, func(v *resource.Volume) { serve(v); v.Status.Bricks[2].Pool = "p1" })
	was := w.await(v.Key(), "it is ready", phase(resource.Ready)).Status.Bricks[2]
	for i, n := range w.nodes {
		if n.UID == was.NodeUID {
			w.node(i, func(n *resource.Node) { n.Spec.Pools = []resource.NodePool{{UID: "p1", Removing: true, Lost: true}} })
		}
	}
	now := w.await(v.Key(), "it has another copy", func(v *resource.Volume) bool { return v.Status.Bricks[2].UID != was.UID })
	if b := now.Status.Bricks[2]; b.Replaces != was.UID || b.NodeUID != was.NodeUID || b.Pool != "" {
		t.Errorf("%+v in the place of %+v", b, was) // the host has room in its own folder
	}
	if left := now.Status.Leaving; len(left) != 1 || left[0].UID != was.UID {
		t.Errorf("what its host has of the old one is not taken away: %+v", left)
	}
	w.see(v, serve)
	now = w.await(v.Key(), "it is whole", phase(resource.Ready))
	if len(now.Status.Leaving) != 1 {
		t.Error("the old one is forgotten before its host has let go of it")
	}

	n := &resource.Node{Meta: resource.Meta{UID: "u1"}, Spec: resource.NodeSpec{Pools: []resource.NodePool{{UID: "p1", Lost: true}}}}
	local := &resource.Volume{Spec: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: gib}}
	local.Status.Pool, local.Status.SizeBytes = "p1", gib
	local.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.True})
	settle(local, n)
	if c := local.Status.Conditions.Get(resource.VolumeReady); !c.Final || !strings.Contains(c.Message, "the disk") || local.Status.Phase != resource.Failed {
		t.Errorf("it is %+v", local.Status)
	}
}
