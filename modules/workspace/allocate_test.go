package workspace

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
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

// asleep is a plane that is asked for and never ready; attached are networks that are.
type asleep struct {
	Plane
	made chan string
}

func (a asleep) New(_ context.Context, w *resource.Workspace, _ *resource.WorkspaceKeys, _ wire.Plan) (Plane, error) {
	a.made <- w.Status.ID
	return a, nil
}
func (asleep) Remove(context.Context, string) error { return nil }
func (asleep) List() ([]string, error)              { return nil, nil }
func (asleep) SetMachines([]string) error           { return nil }
func (asleep) SetPodSecurity(string) error          { return nil }
func (asleep) SetShare(int64, string) error         { return nil }
func (asleep) Room() (used, limit int64, err error) { return 0, 0, nil }
func (asleep) Limit() int64                         { return 0 }
func (asleep) Run(ctx context.Context, _ func(), _ func(error)) error {
	<-ctx.Done()
	return nil
}

type attached struct {
	noNetworks
	networks chan wire.Network
}

func (a attached) Attach(_ context.Context, n wire.Network) error {
	select {
	case a.networks <- n:
	default:
	}
	return nil
}

// TestWorkspacesFromBeforeRunWithoutUsers: after an upgrade what ran runs again, also when
// the datastore is nearly full, or no number is free; no machine is placed without users.
func TestWorkspacesFromBeforeRunWithoutUsers(t *testing.T) {
	for name, free := range map[string]bool{"the datastore is full": true, "all numbers are taken": false} {
		t.Run(name, func(t *testing.T) {
			st, ctx := storetest.New(t), t.Context()
			claims, workspaces, machines := store.Of[resource.VNI](st), store.Of[resource.Workspace](st), store.Of[resource.Machine](st)
			w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
			w.Spec.Machines, w.Spec.MachineSize = 2, resource.Size{MilliCPU: 1000, MemoryBytes: 1 << 30, DiskBytes: 1 << 30}
			w.Status.VNI, w.Status.ID, w.Status.Server = lastVNI+7, "007017", "s1"
			ran := &resource.Machine{InWorkspace: resource.NewInWorkspace(w.Key(), "shop-1")}
			ran.Spec.Node, ran.Spec.Index, ran.Spec.Size = "n1", 1, w.Spec.MachineSize
			keys, err := newKeys(w.Key())
			if err != nil {
				t.Fatal(err)
			}
			node := &resource.Node{Meta: resource.Meta{Name: "n1"}}
			node.Status.Phase, node.Status.Drivers, node.Status.Capacity = resource.Ready, []string{"sandbox"}, resource.Size{MilliCPU: 8000, MemoryBytes: 8 << 30, DiskBytes: 8 << 30}
			other := &resource.VNI{Meta: resource.Meta{Name: "5000"}, Workspace: "acme/web/other", UID: "other"}
			if err := st.Commit(ctx, workspaces.CreateOp(w), machines.CreateOp(ran), store.Of[resource.WorkspaceKeys](st).CreateOp(keys),
				store.Of[resource.Node](st).CreateOp(node), claims.CreateOp(other)); err != nil {
				t.Fatal(err)
			}
			st.Tighten(free)

			planes, networks := asleep{made: make(chan string, 1)}, attached{networks: make(chan wire.Network, 1)}
			cfg := Config{Log: slog.New(slog.DiscardHandler), Store: st, Planes: planes, Networks: networks, Server: "s1", Plan: wire.DefaultPlan(),
				Workspaces: workspaces.Cache(nil), Machines: machines.Cache(nil), Nodes: store.Of[resource.Node](st).Cache(nil)}
			c := New(cfg)
			if !free {
				c.draw = func() uint32 { return 5000 }
			}
			for _, run := range []func(context.Context, func()) error{cfg.Workspaces.Run, cfg.Machines.Run, cfg.Nodes.Run, c.Run} {
				parttest.Run(t, run)
			}
			wait.True(t, wait.Patience, "its network and its plane are back", func() bool { return len(networks.networks) == 1 && len(planes.made) == 1 })
			wait.For(t, wait.Patience, "the pass has ended", func(ctx context.Context) error {
				now, err := workspaces.Get(ctx, w.Key())
				if err != nil {
					return err
				}
				placed := now.Status.Conditions.Get(resource.WorkspaceScheduled)
				if (usersOf(now) != 0) != free || placed == nil {
					return fmt.Errorf("users from %#x on, conditions %+v", usersOf(now), now.Status.Conditions)
				}
				if !free && !strings.Contains(placed.Message, "no users of the hosts are free") {
					return fmt.Errorf("it says %q", placed.Message)
				}
				return nil
			})
			if free {
				return // its second machine waits for room in the datastore
			}
			if all, _, err := machines.List(ctx, "", "", 0); err != nil || len(all) != 1 {
				t.Errorf("machines %v, %v; want the one that was there", all, err)
			}
			if _, err := c.create(ctx, w, []*resource.Machine{ran}, "n1"); err == nil {
				t.Error("a machine without users of its own is made")
			}
		})
	}
}
