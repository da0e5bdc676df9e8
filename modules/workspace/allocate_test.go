package workspace

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
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

// TestUsersForWorkspacesFromBefore: a workspace that was made when networks had any
// number gets a range of users by a claim of its own, and the machines placed since have it.
func TestUsersForWorkspacesFromBefore(t *testing.T) {
	st, ctx := storetest.New(t), t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	claims, workspaces, nodes := store.Of[resource.VNI](st), store.Of[resource.Workspace](st), store.Of[resource.Node](st)
	w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	w.Status.VNI, w.Status.ID, w.Status.Server = lastVNI+7, "007017", "s1"
	old := &resource.VNI{Meta: resource.Meta{Name: w.Status.Claims()[0]}}
	for _, name := range []string{"n1", "n2"} {
		must(nodes.Create(ctx, &resource.Node{Meta: resource.Meta{Name: name}}))
	}
	must(workspaces.Create(ctx, w))
	old.Workspace, old.UID = w.Key(), w.UID
	must(claims.Create(ctx, old))
	c := &Controller{cfg: Config{Store: st, Log: slog.New(slog.DiscardHandler), Server: "s1", Plan: wire.DefaultPlan(), Nodes: nodes.Cache(nil)}}
	parttest.Run(t, c.cfg.Nodes.Run)

	must(c.giveUsers(ctx, w))
	w, err := workspaces.Get(ctx, w.Key())
	must(err)
	if usersOf(w) < firstUID || w.Status.VNI != lastVNI+7 || w.Status.ID != "007017" || len(w.Status.Claims()) != 2 {
		t.Fatalf("it has users from %#x on by %v, and is network %d, %s", usersOf(w), w.Status.Claims(), w.Status.VNI, w.Status.ID)
	}
	first := &resource.Machine{InWorkspace: resource.NewInWorkspace(w.Key(), "shop-1")}
	first.Spec.Node, first.Spec.Index = "n1", 1
	must(c.hold(ctx, w, []*resource.Machine{first}))
	second, err := c.create(ctx, w, []*resource.Machine{first}, "n2")
	must(err)
	if second.Spec.FirstUID != usersOf(w) {
		t.Errorf("a machine placed now has users from %#x on, want %#x", second.Spec.FirstUID, usersOf(w))
	}
	for _, name := range w.Status.Claims() {
		v, err := claims.Get(ctx, name)
		must(err)
		if got := slices.Sorted(maps.Values(v.Nodes)); !slices.Equal(got, []string{"n1", "n2"}) || !slices.Equal(v.Servers, []string{"s1"}) || v.Network != w.Status.ID || v.UID != w.UID {
			t.Errorf("claim %s is %+v", name, v)
		}
	}
	// Another node of that name has another UID.
	n2, err := nodes.Get(ctx, "n2")
	must(err)
	must(nodes.Delete(ctx, n2))
	must(nodes.Create(ctx, &resource.Node{Meta: resource.Meta{Name: "n2"}}))
	if err := st.Commit(ctx, c.stays(n2)); err == nil {
		t.Error("a machine is placed on another node of that name than the claim names")
	}

	// Gone, the claims are left, and another server's is its own to leave.
	_, err = claims.Modify(ctx, old.Name, func(v *resource.VNI) error { v.Servers = append(v.Servers, "s2"); return nil })
	must(err)
	ops, err := c.onClaims(ctx, w, func(v *resource.VNI) bool { v.Retired = true; return true })
	must(err)
	must(st.Commit(ctx, ops...))
	must(c.letGo(ctx))
	for name, want := range map[string][]string{old.Name: {"s2"}, w.Status.Claims()[1]: nil} {
		if v, err := claims.Get(ctx, name); err != nil || !slices.Equal(v.Servers, want) || v.Free() {
			t.Errorf("claim %s is %+v, %v", name, v, err)
		}
	}
}
