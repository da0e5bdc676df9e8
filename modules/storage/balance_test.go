package storage

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// plans is a platform of which only what plans look at is there.
type plans struct {
	promises
	nodes []*resource.Node
}

func (p *plans) host(name, zone string, size int64) *resource.Node {
	n := &resource.Node{Meta: resource.Meta{Name: name, UID: name}, Spec: resource.NodeSpec{Zone: zone}}
	n.Status.Phase, n.Status.Capacity.DiskBytes = resource.Ready, size
	n.Status.Address, n.Status.Drivers = netip.MustParseAddr("10.0.0.1"), []string{wire.StorageDriver}
	n.Status.Pools = []resource.Pool{{Name: "default"}}
	p.nodes = append(p.nodes, n)
	return n
}

func (p *plans) volume(name string, size int64, on ...string) *resource.Volume {
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name)}
	v.UID, v.Spec = name, resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: size}
	v.Status.SizeBytes = size
	for i, n := range on {
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: fmt.Sprint(name, i), Node: n, NodeUID: n, Online: true})
	}
	for _, c := range []string{resource.VolumeServed, resource.VolumeReady} {
		v.Status.Conditions.Set(resource.Condition{Type: c, Status: resource.True})
	}
	p.volumes = append(p.volumes, v)
	return v
}

func (p *plans) plan(may func(*resource.Volume) bool) (texts []string) {
	p.toVolumes, p.toSnapshots = resource.PromisedToVolumes(p.volumes), resource.PromisedToSnapshots(p.snapshots)
	for _, m := range p.newLedger(p.nodes, may).plan(maxPlan) {
		texts = append(texts, fmt.Sprintf("%s %s>%s", m.Volume[len("acme/web/shop/"):], strings.TrimSuffix(m.From, "/default"), strings.TrimSuffix(m.To, "/default")))
	}
	return texts
}

// TestBalancePlan: copies go from the fullest to the emptiest disk until they are about equally full, and nothing goes back.
func TestBalancePlan(t *testing.T) {
	three := []string{"a", "b", "c"}
	fill := func(p *plans, n int) {
		for _, h := range three {
			p.host(h, "", 100*gib)
		}
		for i := range n {
			p.volume(fmt.Sprint("v", i), 10*gib, three...)
		}
	}
	for name, c := range map[string]struct {
		make func(p *plans)
		want string
	}{
		"equal":        {func(p *plans) { fill(p, 4) }, ""},
		"a host":       {func(p *plans) { fill(p, 4); p.host("d", "", 100*gib) }, "v0 a>d v1 b>d v2 c>d"},
		"a little":     {func(p *plans) { fill(p, 1); p.host("d", "", 100*gib) }, ""},
		"no other":     {func(p *plans) { fill(p, 4); p.host("d", "", 100*gib).Spec.Unschedulable = true }, ""},
		"silent":       {func(p *plans) { fill(p, 4); p.host("d", "", 100*gib).Status.Phase = resource.Degraded }, ""},
		"small host":   {func(p *plans) { fill(p, 6); p.host("d", "", 20*gib) }, "v0 a>d"},
		"the only one": {func(p *plans) { fill(p, 1); p.nodes[0].Status.Capacity.DiskBytes = 20 * gib; p.host("d", "", 100*gib) }, "v0 a>d"},
		// It would be as full there as it is here.
		"one for one": {func(p *plans) { fill(p, 1); p.nodes[0].Status.Capacity.DiskBytes = 10 * gib; p.host("d", "", 10*gib) }, ""},
		"encrypted": {func(p *plans) {
			fill(p, 4)
			for _, v := range p.volumes {
				v.Spec.Encrypted = true
			}
			p.host("d", "", 100*gib)
		}, ""},
		"zones": {func(p *plans) {
			fill(p, 4)
			for i, zone := range []string{"1", "2", "2"} {
				p.nodes[i].Spec.Zone = zone
			}
			p.host("d", "2", 100*gib)
		}, "v0 b>d v1 c>d"},
		"a disk": {func(p *plans) {
			fill(p, 4)
			p.nodes[0].Spec.Pools = []resource.NodePool{{Name: "fast", UID: "f"}}
			p.nodes[0].Status.Pools = append(p.nodes[0].Status.Pools, resource.Pool{Name: "fast", UID: "f", CapacityBytes: 100 * gib})
		}, "v0 a>a/fast v1 a>a/fast"},
		"machines": {func(p *plans) {
			fill(p, 2)
			p.toMachines = map[string]resource.Size{"a": {DiskBytes: 50 * gib}}
			p.host("d", "", 100*gib)
		}, "v0 a>d v1 a>d"},
		// Others have not all that is in it.
		"two copies": {func(p *plans) {
			fill(p, 4)
			p.host("d", "", 100*gib)
			for _, v := range p.volumes {
				v.Status.Bricks[2].Arbiter = true
			}
		}, ""},
	} {
		p := &plans{}
		c.make(p)
		if got := strings.Join(p.plan(moves), " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestBalanceNow: what is not whole, or has something made from it, stays for now.
func TestBalanceNow(t *testing.T) {
	p := &plans{}
	for _, h := range []string{"a", "b", "c", "d"} {
		p.host(h, "", 100*gib)
	}
	all := map[string]*resource.Volume{}
	for _, name := range []string{"away", "copied", "deleted", "fine", "heals", "leaves", "source"} {
		all[name] = p.volume(name, 10*gib, "a", "b", "c")
	}
	all["away"].Status.Bricks[1].Online = false
	all["heals"].Status.Bricks[1].Heal = -1
	all["leaves"].Status.Leaving = []resource.VolumeBrick{{UID: "old", NodeUID: "x"}}
	all["deleted"].DeletedAt = new(all["deleted"].CreatedAt)
	p.snapshots = []*resource.Snapshot{{Spec: resource.SnapshotSpec{VolumeUID: "copied"}}}
	begun := p.volume("new", gib)
	begun.Spec.Source, begun.Status.SizeBytes = &resource.VolumeSource{UID: "source"}, 0
	may := p.movesNow()
	for name, v := range all {
		if may(v) != (name == "fine") {
			t.Errorf("%s moves: %v", name, may(v))
		}
	}
	if got := p.plan(may); !slices.Equal(got, []string{"fine a>d"}) {
		t.Errorf("it has %q", got)
	}
}

// TestBalance: copies go to a host that came, one after the other, also if the server ends meanwhile, until that is stopped.
func TestBalance(t *testing.T) {
	w := newWorld(t)
	w.shared()
	for i := range w.nodes {
		w.node(i, func(n *resource.Node) { n.Status.Capacity.DiskBytes = 20 * gib })
	}
	var volumes []*resource.Volume
	for i := range 2 {
		v := w.make(fmt.Sprint("data", i), resource.VolumeSpec{SizeBytes: 5 * gib})
		w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
		w.see(v, serve)
		w.await(v.Key(), "it is ready", phase(resource.Ready))
		volumes = append(volumes, v)
	}
	n4 := &resource.Node{Meta: resource.Meta{Name: "n4"}, Status: w.nodes[0].Status}
	n4.Status.Capacity.DiskBytes = 20 * gib
	n4.Status.Address, n4.Status.Drivers = netip.MustParseAddr("10.0.0.4"), []string{wire.StorageDriver}
	if err := store.Of[resource.Node](w.db).Create(t.Context(), n4); err != nil {
		t.Fatal(err)
	}
	plan, err := w.BalancePlan(t.Context())
	if err != nil || len(plan) != 2 || plan[0].To != "n4/default" {
		t.Fatalf("the plan is %+v, %v", plan, err)
	}
	kind := store.Of[resource.Balance](w.db)
	b := &resource.Balance{Meta: resource.Meta{Name: resource.StorageBalance}}
	if err := kind.Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(*resource.Balance) bool) (now *resource.Balance) {
		t.Helper()
		wait.For(t, wait.Patience, what, func(ctx context.Context) (err error) {
			if now, err = kind.Get(ctx, b.Name); err == nil && !ok(now) {
				err = fmt.Errorf("it is %+v", now.Status)
			}
			return err
		})
		return now
	}
	says := func(text string) func(*resource.Balance) bool {
		return func(b *resource.Balance) bool {
			c := b.Status.Conditions.Get(resource.Balanced)
			return c != nil && strings.Contains(c.Message, text)
		}
	}
	m := until("a copy is on its way", says("about 1 to go (0) besides; a copy of")).Status.Moving
	moved, stays := volumes[0], volumes[1]
	if m.Volume == stays.Key() {
		moved, stays = stays, moved
	}
	now := w.await(moved.Key(), "it moves", func(v *resource.Volume) bool { return len(v.Status.Leaving) == 1 })
	if n := now.Brick(m.New); n == nil || n.Node != "n4" || n.Replaces != m.Old || now.Status.Leaving[0].UID != m.Old {
		t.Errorf("it has %+v", now.Status)
	}
	if other, err := store.Of[resource.Volume](w.db).Get(t.Context(), stays.Key()); err != nil || len(other.Status.Leaving) > 0 {
		t.Errorf("two are on their way: %+v, %v", other, err)
	}
	if _, err := kind.Modify(t.Context(), b.Name, func(b *resource.Balance) error { b.Spec.Stop = true; return nil }); err != nil {
		t.Fatal(err)
	}
	until("it stops", func(b *resource.Balance) bool { return b.Over() && b.Status.Moving != nil && says("is finished")(b) })
	w.see(moved, serve)
	w.see(moved, func(v *resource.Volume) { v.Status.Leaving, v.Brick(m.New).UsedBytes = nil, gib })
	c := New(w.cfg) // another server, or this one later
	for i := range 3 {
		if _, err := c.reconcileBalance(t.Context(), b.Name); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			until("it has arrived", func(b *resource.Balance) bool {
				return b.Status.Moving == nil && b.Status.Copies == 1 && b.Status.Bytes == gib
			})
			_, err := kind.Modify(t.Context(), b.Name, func(b *resource.Balance) error { b.Spec.Stop = false; b.Spec.Round++; return nil })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	m = until("the other one goes", func(b *resource.Balance) bool { return b.Status.Moving != nil && b.Status.Copies == 0 }).Status.Moving
	w.see(stays, serve)
	w.see(stays, func(v *resource.Volume) { v.Status.Leaving, v.Brick(m.New).UsedBytes = nil, gib })
	if _, err := c.reconcileBalance(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	until("all is done", func(b *resource.Balance) bool { return b.Over() && b.Status.Conditions.Is(resource.Balanced) })
}

// TestBalanceGoesOn: a balance goes on without stop from copy to copy, past a host that is removed and silent, a copy on its way
// whose volume has lost another, and volumes that don't get whole; and it ends, and says which it left.
func TestBalanceGoesOn(t *testing.T) {
	w := newWorld(t)
	w.shared()
	for i := range w.nodes {
		w.node(i, func(n *resource.Node) { n.Status.Capacity.DiskBytes = 40 * gib })
	}
	volumes := map[string]*resource.Volume{}
	for i := range 3 {
		v := w.make(fmt.Sprint("data", i), resource.VolumeSpec{SizeBytes: 8 * gib})
		w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
		w.see(v, serve)
		w.await(v.Key(), "it is ready", phase(resource.Ready))
		volumes[v.Key()] = v
	}
	for i := range 3 {
		n := &resource.Node{Meta: resource.Meta{Name: fmt.Sprint("new", i)}, Status: w.nodes[0].Status}
		n.Status.Capacity.DiskBytes = 40 * gib
		n.Status.Address, n.Status.Drivers = netip.AddrFrom4([4]byte{10, 0, 0, byte(40 + i)}), []string{wire.StorageDriver}
		if i == 2 { // it is removed, and has something that it can't give away
			n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.False})
			n.DeletedAt, n.Status.Phase = new(time.Now()), resource.Deleting
		}
		if err := store.Of[resource.Node](w.db).Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			o := w.make("old", resource.VolumeSpec{SizeBytes: gib})
			w.await(o.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
			w.see(o, func(v *resource.Volume) {
				serve(v)
				v.Status.Bricks[0].Node, v.Status.Bricks[0].NodeUID = n.Name, n.UID
			})
		}
	}
	kind := store.Of[resource.Balance](w.db)
	b := &resource.Balance{Meta: resource.Meta{Name: resource.StorageBalance}}
	if err := kind.Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	c := New(w.cfg)
	until := func(what string, ok func(*resource.Balance) bool) (now *resource.Balance) {
		t.Helper()
		wait.For(t, 20*time.Second, what, func(ctx context.Context) (err error) {
			if _, err := c.reconcileBalance(ctx, b.Name); err != nil {
				return err
			}
			if now, err = kind.Get(ctx, b.Name); err == nil && !ok(now) {
				err = fmt.Errorf("it is %+v", now.Status)
			}
			return err
		})
		return now
	}
	first := until("a copy is on its way, past the host that is silent", func(b *resource.Balance) bool { return b.Status.Moving != nil }).Status.Moving
	w.see(volumes[first.Volume], serve)
	w.see(volumes[first.Volume], func(v *resource.Volume) { v.Status.Leaving = nil })
	second := until("the next goes by itself", func(b *resource.Balance) bool {
		return b.Status.Copies == 1 && b.Status.Moving != nil && b.Status.Moving.New != first.New
	}).Status.Moving
	for key, v := range volumes { // the last one doesn't get whole
		if key != first.Volume && key != second.Volume {
			w.see(v, func(v *resource.Volume) { v.Status.Bricks[0].Online = false })
		}
	}
	v, err := store.Of[resource.Volume](w.db).Get(t.Context(), second.Volume)
	if err != nil {
		t.Fatal(err)
	}
	stays := slices.IndexFunc(w.nodes, func(n *resource.Node) bool {
		return slices.ContainsFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool { return b.NodeUID == n.UID })
	})
	w.node(stays, func(n *resource.Node) {
		n.Status.Phase, n.Status.HeartbeatAt = resource.Degraded, time.Now().Add(-2*balancePatience)
	})
	until("the second is left behind, and the last waited for", func(b *resource.Balance) bool {
		c := b.Status.Conditions.Get(resource.Balanced)
		return b.Status.Moving == nil && c != nil && c.Reason == "Waits" && !b.Over()
	})
	if _, err := kind.Modify(t.Context(), b.Name, func(b *resource.Balance) error {
		b.Status.WaitsSince = time.Now().Add(-2 * balancePatience)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	over := until("it ends", (*resource.Balance).Over)
	is := over.Status.Conditions.Get(resource.Balanced)
	if over.Status.Phase != resource.Failed || is.Reason != "Left" || !is.Final || !strings.Contains(is.Message, second.Volume+" (host "+w.nodes[stays].Name+" has a copy") || !strings.Contains(is.Message, "were left") {
		t.Errorf("it says %+v", is)
	}
}
