package api

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

// TestSilentPools: of a host that is silent no pool is given up, and no disk of it erased.
func TestSilentPools(t *testing.T) {
	n := &resource.Node{Meta: resource.Meta{Name: "n1"}, Spec: resource.NodeSpec{Pools: []resource.NodePool{{Name: "sdb", UID: "p1"}}}}
	n.Status.Pools = []resource.Pool{{UID: "p1", Made: true}}
	refused := func(what, text string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) || n.Spec.Pools[0].Lost || len(n.Spec.Pools) != 1 {
			t.Errorf("%s: %v; pools are %+v", what, err, n.Spec.Pools)
		}
	}
	n.Status.Phase = resource.Degraded
	refused("a healthy one", "does not report", (&API{}).removePool(t.Context(), n, "sdb", true))
	refused("another to be erased", "does not report", addPool(n, PoolBody{Name: "sdc", Device: "/dev/sdc", Erase: "/dev/sdc"}))
	n.Status.Phase = resource.Pending
	refused("a healthy one", "not lost", (&API{}).removePool(t.Context(), n, "sdb", true))
	n.Status.Pools[0].Message = "its disk is away"
	if err := (&API{}).removePool(t.Context(), n, "sdb", true); err != nil || !n.Spec.Pools[0].Lost {
		t.Errorf("one that is away: %v", err)
	}
}
