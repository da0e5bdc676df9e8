package node

import (
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

// TestConsent: consent to erase a disk goes once its host has used it, and not before; whom that is read from is not changed.
func TestConsent(t *testing.T) {
	n := &resource.Node{Spec: resource.NodeSpec{Pools: []resource.NodePool{{Name: "sdb", UID: "p1", Erase: "S1"}}}}
	cached := *n
	for _, c := range []struct {
		said resource.Pool
		want string
	}{
		{resource.Pool{UID: "other", Tried: true}, "S1"},
		{resource.Pool{UID: "p1", Message: "it is not there"}, "S1"}, // of before it heard of that
		{resource.Pool{UID: "p1", Message: "sdb is in use", Tried: true}, ""},
	} {
		if notePools(n, []resource.Pool{c.said}); n.Spec.Pools[0].Erase != c.want {
			t.Errorf("after %+v there is consent %q, want %q", c.said, n.Spec.Pools[0].Erase, c.want)
		}
	}
	if cached.Spec.Pools[0].Erase != "S1" {
		t.Error("the cache's was changed")
	}
}
