package storage

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestCrowded: a host has only so many volumes, and only so many of one workspace.
func TestCrowded(t *testing.T) {
	on := func(node string, n int, workspace string) (all []*resource.Volume) {
		for i := range n {
			v := &resource.Volume{InWorkspace: resource.NewInWorkspace(workspace, fmt.Sprint(i))}
			v.Status.NodeUID = node
			all = append(all, v)
		}
		return all
	}
	many := []*resource.Volume{}
	for i := range resource.MaxVolumesOnHost / 100 {
		many = append(many, on("u1", 100, fmt.Sprint("evil/web/", i))...)
	}
	n := &resource.Node{Meta: resource.Meta{UID: "u1"}}
	n.Status.Capacity.DiskBytes, n.Status.Pools = gib, []resource.Pool{{}}
	for what, c := range map[string]struct {
		volumes []*resource.Volume
		want    string
	}{
		"none":                    {nil, ""},
		"one less":                {on("u1", resource.MaxWorkspaceVolumesOnHost-1, "acme/web/shop"), ""},
		"as many":                 {on("u1", resource.MaxWorkspaceVolumesOnHost, "acme/web/shop"), "of this workspace"},
		"as many of another":      {on("u1", resource.MaxWorkspaceVolumesOnHost, "acme/web/other"), ""},
		"as many on another":      {on("u2", resource.MaxWorkspaceVolumesOnHost, "acme/web/shop"), ""},
		"as many of all together": {many, "another host"},
	} {
		p := promises{volumes: c.volumes}
		why := p.crowded(n, "acme/web/shop")
		if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q", what, why)
		}
		if room := p.room("acme/web/shop")(n); (room == 0) != (why != "") {
			t.Errorf("%s: room for %d", what, room)
		}
	}
}

// TestBest: new volumes go into the pool with the most room of those that are there, stay and are not full.
func TestBest(t *testing.T) {
	n := &resource.Node{Meta: resource.Meta{UID: "u1", Name: "n1"}}
	n.Status.Capacity.DiskBytes = 4 * gib
	n.Spec.Pools = []resource.NodePool{{UID: "p1"}, {UID: "p2"}}
	n.Status.Pools = []resource.Pool{{}, {UID: "p1", CapacityBytes: 8 * gib}, {UID: "p2", CapacityBytes: 6 * gib}, {UID: "strange", CapacityBytes: 99 * gib}}
	v := &resource.Volume{Spec: resource.VolumeSpec{SizeBytes: 3 * gib}}
	v.Status.NodeUID, v.Status.Pool = "u1", "p1"
	p := promises{toVolumes: resource.PromisedToVolumes([]*resource.Volume{v}),
		toSnapshots: map[resource.PoolAt]int64{{Node: "u1", Pool: "p2"}: gib / 2}}
	want := func(what, pool string, free int64) {
		t.Helper()
		if got, room := p.best(n); got != pool || room != free {
			t.Errorf("%s: pool %q with %d, want %q with %d", what, got, room, pool, free)
		}
	}
	want("all are there", "p2", 5*gib+gib/2)
	n.Status.Pools[2].Health = "it fails soon"
	want("one ails", "p1", 5*gib)
	n.Status.Pools[0].Health, n.Status.Pools[1].Health = "it fails", "it fails"
	want("all ail", "p2", 5*gib+gib/2)
	for i := range n.Status.Pools {
		n.Status.Pools[i].Health = resource.PoolWell
	}
	n.Spec.Pools[1].Removing = true
	want("one is being taken away", "p1", 5*gib)
	n.Status.Pools[1].Message = "away"
	want("the other is away", "", 4*gib)
	if n.Keeps("p2") || n.Keeps("strange") || !n.Keeps("p1") || !n.Keeps("") {
		t.Error("what stays is not known")
	}
}

// TestCrowdedBySight: a host has shared volumes, too, that its machines see, wherever their copies are. Snapshots have a
// limit of their own.
func TestCrowdedBySight(t *testing.T) {
	n := &resource.Node{Meta: resource.Meta{Name: "n1", UID: "u1"}}
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}
	m.Spec.Node = "n1"
	p := promises{machines: []*resource.Machine{m}}
	for i := range resource.MaxWorkspaceVolumesOnHost {
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", fmt.Sprint(i)), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
		v.Status.Bricks = []resource.VolumeBrick{{NodeUID: "elsewhere"}}
		p.volumes = append(p.volumes, v)
	}
	nodes := []*resource.Node{n}
	if why := p.seen(nodes, "acme/web/shop"); !strings.Contains(why, "has 250 volumes of this workspace") {
		t.Errorf("a host that sees 250: %q", why)
	}
	if why := p.crowded(n, "acme/web/other"); why != "" {
		t.Errorf("another workspace: %q", why)
	}
	// The copy of one of them that is lost can be made there all the same, and others can have theirs.
	n.Status.Capacity.DiskBytes, n.Status.Pools = gib, []resource.Pool{{}}
	if p.room("acme/web/shop")(n) != gib {
		t.Error("no copy can be where 250 are seen")
	}
	for _, v := range p.volumes[1:] {
		v.Status.Bricks[0].NodeUID = "u1"
	}
	lost := p.volumes[0]
	lost.Status.Bricks = append(lost.Status.Bricks, resource.VolumeBrick{NodeUID: "u1"})
	if p.room("acme/web/shop")(n) != 0 || p.without(lost).room("acme/web/shop")(n) != gib {
		t.Error("the volume whose copy it is counts")
	}
	if p.volumes = p.volumes[1:]; p.seen(nodes, "acme/web/shop") != "" {
		t.Errorf("a host that sees one less: %q", p.seen(nodes, "acme/web/shop"))
	}
	// A second machine there has each of them mounted once more; one that has no hosts yet is mounted by nobody.
	p.machines = append(p.machines, m)
	p.volumes = p.volumes[:resource.MaxWorkspaceVolumesOnHost/2]
	if why := p.seen(nodes, "acme/web/shop"); !strings.Contains(why, "has 250 volumes of this workspace") || p.room("acme/web/shop")(n) == 0 {
		t.Errorf("125 for two machines: %q", why)
	}
	if p.volumes[0].Status.Bricks = nil; p.seen(nodes, "acme/web/shop") != "" {
		t.Errorf("124 for two machines: %q", p.seen(nodes, "acme/web/shop"))
	}
	// What one account's machines see, though no copy of it is on their hosts, is in nobody else's way.
	p.volumes = nil
	for i := range resource.MaxVolumesOnHost {
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", fmt.Sprint(i)), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
		v.Status.Bricks = []resource.VolumeBrick{{NodeUID: "elsewhere"}}
		p.volumes = append(p.volumes, v)
	}
	if why := p.crowded(n, "acme/web/other"); why != "" {
		t.Errorf("where another sees 1000: %q", why)
	}
	for i := range resource.MaxWorkspaceSnapshotsOnHost {
		s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", fmt.Sprint(i))}
		s.Status.NodeUID = "u1"
		p.snapshots = append(p.snapshots, s)
	}
	if why := p.snapped(n, "acme/web/shop"); !strings.Contains(why, "1000 snapshots of this workspace") || p.snapped(n, "acme/web/other") != "" {
		t.Errorf("a host with 1000 snapshots: %q, of another %q", why, p.snapped(n, "acme/web/other"))
	}
}

// TestPoolAway: a host whose disk with volumes is away isn't one that has to be upgraded. And who
// looked whether a host has volumes can't mark it as removed when one has come since.
func TestPoolAway(t *testing.T) {
	w := newWorld(t)
	nodes := store.Of[resource.Node](w.db)
	change := func(pools ...resource.Pool) {
		t.Helper()
		for _, n := range w.nodes {
			now, err := nodes.Modify(t.Context(), n.Name, func(n *resource.Node) error { n.Status.Pools = pools; return nil })
			if err != nil {
				t.Fatal(err)
			}
			awaitNode(t, w, now)
		}
	}
	one := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "one"), Spec: resource.VolumeSpec{SizeBytes: gib}}
	for want, pools := range map[string][]resource.Pool{"is away": {{Name: "default", Message: "no answer"}}, "upgrade": nil} {
		change(pools...)
		_, err := w.choose(t.Context(), one, nil)
		if short, ok := errors.AsType[*shortError](err); !ok || !strings.Contains(short.text, want) {
			t.Errorf("pools %v: %v", pools, err)
		}
	}
	change(resource.Pool{Name: "default"})
	// Of the two hosts with machines, the one of n2 has more room, and a machine that can have no volumes.
	oldAt := func(old bool) {
		t.Helper()
		_, err := store.Of[resource.Machine](w.db).Modify(t.Context(), w.machines[1].Key(), func(m *resource.Machine) error { m.Status.NoVolumes = old; return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	oldAt(true)
	if at, err := w.choose(t.Context(), one, nil); err != nil || at.host.Name != "n1" {
		t.Errorf("it is on %v, %v", at.host, err)
	}
	_, err := w.choose(t.Context(), one, []string{wire.Place(w.ws.UID, w.nodes[1].UID)})
	if short, ok := errors.AsType[*shortError](err); !ok || short.text != oldMachines {
		t.Errorf("where a machine is old: %v", err)
	}
	oldAt(false)
	before, err := nodes.Get(t.Context(), "n2")
	if err != nil {
		t.Fatal(err)
	}
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib}}
	if err := store.Of[resource.Volume](w.db).Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	awaitVolume(t, w, v.Key(), "it is placed", func(v *resource.Volume) bool { return v.Status.Node == "n2" })
	if err := nodes.Update(t.Context(), before); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a host that was free of volumes before one was placed there is written: %v", err)
	}
}

// TestGoneFromASilentHost: what is deleted says what it waits for.
func TestGoneFromASilentHost(t *testing.T) {
	v, host := &resource.Volume{}, &resource.Node{}
	host.Status.Phase = resource.Degraded
	for _, want := range []string{"HostSilent", "Removing"} {
		leaving(&v.Status, host)
		if c := v.Status.Conditions.Get(resource.VolumeRemoved); c.Reason != want || c.Status != resource.False {
			t.Errorf("it says %+v, want %s", c, want)
		}
		host.Status.Phase = resource.Ready
	}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.True})
	if leaving(&v.Status, host); !v.Status.Conditions.Is(resource.VolumeRemoved) {
		t.Error("it was gone, and isn't any more")
	}
}
