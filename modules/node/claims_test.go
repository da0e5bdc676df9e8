package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestClaimsOutliveWorkspaces: the number of a workspace that is gone, and with it its
// users, is free once all who had a machine of it say that nothing is left, and not
// while the disk of one that was given up may come back.
func TestClaimsOutliveWorkspaces(t *testing.T) {
	p, ctx := start(t), t.Context()
	claims, machines := store.Of[resource.VNI](p.store), store.Of[resource.Machine](p.store)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hosts, uids := map[string]*host{}, map[string]string{}
	nodes := map[string]string{}
	for i, name := range []string{"n1", "n2", "n3"} {
		hosts[name] = p.join(t, name)
		must(hosts[name].call(ctx, wire.ReportPath, wire.Report{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})}, nil))
		n, err := store.Of[resource.Node](p.store).Get(ctx, name)
		must(err)
		uids[name], nodes[n.UID] = n.UID, name
	}
	w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	w.Status.VNI, w.Status.UserRange, w.Status.ID = 1<<20, 5000, "100000"
	must(store.Of[resource.Workspace](p.store).Create(ctx, w))
	for _, name := range w.Status.Claims() {
		must(claims.Create(ctx, &resource.VNI{Meta: resource.Meta{Name: name}, Workspace: w.Key(), UID: w.UID, Network: w.Status.ID, Nodes: maps.Clone(nodes), Servers: []string{"s1"}}))
	}
	for i, name := range []string{"n1", "n2", "n3"} {
		m := &resource.Machine{InWorkspace: resource.NewInWorkspace(w.Key(), fmt.Sprintf("shop-%d", i+1))}
		m.Spec.Node, m.Spec.Index = name, i+1
		must(machines.Create(ctx, m))
	}
	monitor := &Monitor{Log: slog.New(slog.DiscardHandler), Store: p.store, Nodes: p.cfg.Nodes, Machines: p.cfg.Machines, Claims: p.cfg.Claims, Trash: p.cfg.Trash, now: time.Now}
	// look is what the monitor does, once the caches have what the store has.
	look := func() {
		t.Helper()
		wait.For(t, wait.Patience, "the caches", func(ctx context.Context) error {
			for _, name := range w.Status.Claims() {
				now, err := claims.Get(ctx, name)
				seen, ok := p.cfg.Claims.Get(name)
				if ok != (err == nil) || ok && seen.Revision != now.Revision {
					return fmt.Errorf("claim %s is behind", name)
				}
			}
			nodes, _, err := store.Of[resource.Node](p.store).List(ctx, "", "", 0)
			if err != nil || len(nodes) != len(p.cfg.Nodes.List("")) {
				return fmt.Errorf("nodes are behind: %v", err)
			}
			all, _, err := machines.List(ctx, "", "", 0)
			if err != nil || len(all) != len(p.cfg.Machines.List("")) {
				return fmt.Errorf("machines are behind: %v", err)
			}
			for _, m := range all {
				if seen, ok := p.cfg.Machines.Get(m.Key()); !ok || seen.Revision != m.Revision {
					return fmt.Errorf("%s is behind", m.Name)
				}
			}
			return nil
		})
		for _, n := range p.cfg.Nodes.List("") {
			must(monitor.look(ctx, n, time.Now()))
		}
		must(monitor.free(ctx))
	}
	// want says who is left in both claims.
	want := func(when string, there bool, nodes, lost []string) {
		t.Helper()
		look()
		for _, name := range w.Status.Claims() {
			v, err := claims.Get(ctx, name)
			if !there {
				if !errors.Is(err, store.ErrNotFound) {
					t.Errorf("%s claim %s is there: %+v, %v", when, name, v, err)
				}
				continue
			}
			must(err)
			if got := slices.Sorted(maps.Values(v.Nodes)); !slices.Equal(got, nodes) {
				t.Errorf("%s claim %s waits for %v, want %v", when, name, got, nodes)
			}
			if got := slices.Sorted(maps.Values(v.Lost)); !slices.Equal(got, lost) {
				t.Errorf("%s claim %s waits for disks of %v, want %v", when, name, got, lost)
			}
		}
	}
	report := func(node string, holds ...string) {
		t.Helper()
		must(hosts[node].call(ctx, wire.ReportPath, wire.Report{Address: netip.AddrFrom4([4]byte{192, 0, 2, 10 + node[1] - '0'}), Holds: holds}, nil))
	}
	all := []string{"n1", "n2", "n3"}
	report("n1", []string{}...)
	want("while the workspace is there", true, all, nil)

	// n3 burns down.
	_, err := store.Of[resource.Node](p.store).Modify(ctx, "n3", func(n *resource.Node) error {
		n.Spec.Lost, n.DeletedAt = true, new(time.Now())
		return nil
	})
	must(err)
	wait.For(t, wait.Patience, "n3 is given up", func(ctx context.Context) error {
		look()
		m, err := machines.Get(ctx, w.Key()+"/shop-3")
		if err == nil && !m.Status.Conditions.Is(resource.MachineRemoved) {
			err = errors.New("its machine is not")
		}
		return err
	})
	want("when n3 is given up", true, all, []string{"n3"})

	// The workspace goes, as its controller has it.
	gone, _, err := machines.List(ctx, "", "", 0)
	must(err)
	for _, m := range gone {
		must(machines.Delete(ctx, m))
	}
	for _, name := range w.Status.Claims() {
		_, err := claims.Modify(ctx, name, func(v *resource.VNI) error { v.Retired, v.Servers = true, nil; return nil })
		must(err)
	}
	must(store.Of[resource.Workspace](p.store).Delete(ctx, w))
	wait.For(t, wait.Patience, "n3 is no node", func(ctx context.Context) error {
		look()
		_, err := store.Of[resource.Node](p.store).Get(ctx, "n3")
		if !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("n3: %v", err)
		}
		return nil
	})
	want("without a report", true, []string{"n1", "n2"}, []string{"n3"})
	for _, name := range w.Status.Claims() {
		if v, err := claims.Get(ctx, name); err != nil || v.RetiredAt.IsZero() {
			t.Errorf("claim %s that an older version retired has no time: %v", name, err)
		}
	}
	report("n1", wire.HoldsUnknown)
	report("n1", w.Status.ID, "00002a")
	must(hosts["n1"].call(ctx, wire.ReportPath, wire.Report{Address: n1Address}, nil)) // an agent that does not say
	want("with something on n1", true, []string{"n1", "n2"}, []string{"n3"})
	report("n1", "00002a")
	want("when n1 holds nothing", true, []string{"n2"}, []string{"n3"})

	// n2 leaves: its machine's end was confirmed.
	must(hosts["n2"].call(ctx, wire.LeavePath, struct{}{}, nil))
	wait.For(t, wait.Patience, "n2 is no node", func(ctx context.Context) error {
		look()
		_, err := store.Of[resource.Node](p.store).Get(ctx, "n2")
		if !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("n2: %v", err)
		}
		return nil
	})
	want("when n2 has left", true, nil, []string{"n3"})

	// Who was not given up can't say that he is wiped; n3 can, when it is.
	if err := hosts["n1"].call(ctx, wire.WipedPath, struct{}{}, nil); err == nil {
		t.Error("a node says that it is wiped")
	}
	must(hosts["n2"].call(ctx, wire.WipedPath, struct{}{}, nil))
	want("when another is wiped", true, nil, []string{"n3"})
	must(hosts["n3"].call(ctx, wire.WipedPath, struct{}{}, nil))
	wait.For(t, wait.Patience, "the claims are free", func(ctx context.Context) error {
		look()
		if left := p.cfg.Claims.List(""); len(left) > 0 {
			return fmt.Errorf("claims %+v", left)
		}
		return nil
	})
	want("when n3 is wiped", false, nil, nil)
}

// TestClaimsThatNobodyGivesBackAreSaid: who keeps one for a day is named, with since when.
func TestClaimsThatNobodyGivesBackAreSaid(t *testing.T) {
	now := time.Date(2030, 1, 10, 12, 0, 0, 0, time.UTC)
	claim := func(name string, age time.Duration, nodes ...string) *resource.VNI {
		v := &resource.VNI{Meta: resource.Meta{Name: name, CreatedAt: now.Add(-1000 * time.Hour)}, Workspace: "acme/web/w" + name, Retired: true, RetiredAt: now.Add(-age), Nodes: map[string]string{}}
		for _, n := range nodes {
			v.Nodes["uid-"+n] = n
		}
		return v
	}
	used, before := claim("4", 100*time.Hour, "n1", "n4"), claim("5", 0, "n5")
	used.Retired, before.RetiredAt = false, time.Time{}
	got := Overdue([]*resource.VNI{claim("1", 25*time.Hour, "n1", "n2"), claim("2", 26*time.Hour, "n1"), claim("3", 23*time.Hour, "n2", "n3"), used, before, claim("6", 99*time.Hour)}, nil, now)
	want := map[string]string{
		"uid-n1": "numbers kept for it: 2, the first is 2 of workspace acme/web/w2, gone since 2030-01-09T10:00:00Z",
		"uid-n2": "numbers kept for it: 1, the first is 1 of workspace acme/web/w1, gone since 2030-01-09T11:00:00Z",
	}
	if len(got) != len(want) {
		t.Errorf("%v, want %v", got, want)
	}
	for uid, text := range want {
		if got[uid] == nil || got[uid].Error() != text {
			t.Errorf("%s: %v, want %s", uid, got[uid], text)
		}
	}
}

// counting is a way to etcd that counts who asks.
type counting struct {
	clientv3.KV
	asked atomic.Int32
}

func (c *counting) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	c.asked.Add(1)
	return c.KV.Get(ctx, key, opts...)
}

func (c *counting) Txn(ctx context.Context) clientv3.Txn {
	c.asked.Add(1)
	return c.KV.Txn(ctx)
}

// TestClaimsThatAreKeptCostNothing: the datastore is asked about a node that the cache
// does not know, and no other; one whose name another has is gone.
func TestClaimsThatAreKeptCostNothing(t *testing.T) {
	etcd, ctx := storetest.Start(t), t.Context()
	client := clientv3.NewCtxClient(ctx)
	kv := &counting{KV: etcd.Client.KV}
	client.KV, client.Watcher, client.Lease = kv, etcd.Client.Watcher, etcd.Client.Lease
	db := store.New(client)
	nodes, claims := store.Of[resource.Node](db), store.Of[resource.VNI](db)
	known, late := &resource.Node{Meta: resource.Meta{Name: "n1"}}, &resource.Node{Meta: resource.Meta{Name: "n2"}}
	claim := &resource.VNI{Meta: resource.Meta{Name: "5000"}, Retired: true, RetiredAt: time.Now(), Nodes: map[string]string{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(db.Commit(ctx, nodes.CreateOp(known)))
	claim.Nodes[known.UID] = known.Name
	must(claims.Create(ctx, claim))
	m := &Monitor{Log: slog.New(slog.DiscardHandler), Store: db, Nodes: nodes.Cache(nil), Claims: claims.Cache(nil), Trash: store.Of[resource.Trash](db).Cache(nil), now: time.Now}
	stop := parttest.Run(t, m.Nodes.Run)
	parttest.Run(t, m.Claims.Run)
	before := kv.asked.Load()
	for range 10 {
		must(m.free(ctx))
	}
	if asked := kv.asked.Load() - before; asked != 0 {
		t.Errorf("looking at one claim ten times asks the datastore %d times", asked)
	}

	stop() // the cache stays behind
	must(nodes.Create(ctx, late))
	_, err := claims.Modify(ctx, claim.Name, func(v *resource.VNI) error {
		v.Nodes[late.UID], v.Nodes["gone"], v.Nodes["former"] = late.Name, "n9", late.Name
		return nil
	})
	must(err)
	wait.For(t, wait.Patience, "who is no node is out of the claim", func(context.Context) error {
		must(m.free(ctx))
		now, err := claims.Get(ctx, claim.Name)
		must(err)
		if now.Nodes[known.UID] == "" || now.Nodes[late.UID] == "" {
			t.Fatalf("a node that is there was taken out: %v", now.Nodes)
		}
		if len(now.Nodes) != 2 {
			return fmt.Errorf("it names %v", now.Nodes)
		}
		return nil
	})
}
