package workspace

import (
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

func TestUsersAreNobodyElses(t *testing.T) {
	of := func(vni uint32) uint32 {
		w := &resource.Workspace{}
		w.Status.VNI = vni
		return usersOf(w)
	}
	last := uint32(firstUID) - resource.MachineUIDs
	for vni := uint32(firstVNI); vni <= lastVNI; vni++ {
		first := of(vni)
		if first < last+resource.MachineUIDs || first+resource.MachineUIDs-1 > lastUID {
			t.Fatalf("network %d has users %#x and up, after %#x", vni, first, last)
		}
		last = first
	}
	for _, vni := range []uint32{0, firstVNI - 1, lastVNI + 1, 1<<24 - 1} {
		if got := of(vni); got != 0 {
			t.Errorf("network %d of a time without ranges has users %#x", vni, got)
		}
	}
}
