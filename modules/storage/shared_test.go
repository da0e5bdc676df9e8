package storage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// shared makes all hosts ones for shared volumes.
func (w *world) shared() {
	w.t.Helper()
	for i := range w.nodes {
		w.node(i, func(n *resource.Node) {
			n.Status.Address, n.Status.Drivers = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), []string{wire.StorageDriver, wire.CopyDriver}
		})
	}
}

func (w *world) node(i int, change func(*resource.Node)) {
	w.t.Helper()
	if _, err := store.Of[resource.Node](w.db).Modify(w.t.Context(), w.nodes[i].Name, func(n *resource.Node) error { change(n); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

// see writes down what hosts have reported of a volume.
func (w *world) see(v *resource.Volume, look func(*resource.Volume)) {
	w.t.Helper()
	_, err := store.Of[resource.Volume](w.db).Modify(w.t.Context(), v.Key(), func(v *resource.Volume) error { look(v); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
}

// serve is what hosts report that have made a volume.
func serve(v *resource.Volume) {
	for i := range v.Status.Bricks {
		b := &v.Status.Bricks[i]
		b.Ready, b.Online, b.Replaces, b.SizeBytes = true, true, "", resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter)
	}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
}

func (w *world) await(key, what string, ok func(*resource.Volume) bool) (now *resource.Volume) {
	w.t.Helper()
	wait.For(w.t, wait.Patience, what, func(ctx context.Context) (err error) {
		if now, err = store.Of[resource.Volume](w.db).Get(ctx, key); err == nil && !ok(now) {
			err = fmt.Errorf("it is %+v", now.Status)
		}
		return err
	})
	return now
}

func (w *world) make(name string, spec resource.VolumeSpec) *resource.Volume {
	w.t.Helper()
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name), Spec: spec}
	v.Spec.Class = resource.SharedVolume
	if err := store.Of[resource.Volume](w.db).Create(w.t.Context(), v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

func phase(p resource.Phase) func(*resource.Volume) bool {
	return func(v *resource.Volume) bool { return v.Status.Phase == p }
}

// TestShared: a shared volume's life: made, a copy away, healed, a host lost for good and another in
// its place, grown, deleted.
func TestShared(t *testing.T) {
	w := newWorld(t)
	w.shared()
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib})
	now := w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return v.Status.Phase == resource.Creating && len(v.Status.Bricks) == 3 })
	if s := now.Status; s.FirstUID != 0 || s.Node != "" || s.Bricks[0].Node != "n3" || !now.IsOn(w.nodes[0].UID) {
		t.Errorf("it is %+v", s)
	}
	says := func(now *resource.Volume, condition, text string) {
		t.Helper()
		if c := now.Status.Conditions.Get(condition); c == nil || !strings.Contains(c.Message, text) {
			t.Errorf("%s is %+v, want %q", condition, c, text)
		}
	}
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[1].Message = "its disk is away" })
	w.await(v.Key(), "it says what it waits for", func(v *resource.Volume) bool {
		return strings.Contains(v.Status.Conditions.Get(resource.VolumeReady).Message, "not made it: its disk is away")
	})
	w.see(v, serve)
	now = w.await(v.Key(), "it is ready", phase(resource.Ready))
	if !now.Status.Conditions.Is(resource.VolumeReplicated) || now.Status.SizeBytes != gib || now.Status.ObservedGeneration != now.Generation {
		t.Errorf("it is %+v", now.Status)
	}
	if all, _, err := store.Of[resource.Volume](w.db).List(t.Context(), "", "", 0); err != nil || resource.PromisedToVolumes(all)[resource.PoolAt{Node: w.nodes[2].UID}] != gib {
		t.Errorf("promised %v, %v", resource.PromisedToVolumes(all), err)
	}

	w.node(0, func(n *resource.Node) { n.Status.Phase = resource.Degraded })
	offline := func(i int, off bool) func(*resource.Volume) {
		return func(v *resource.Volume) {
			for j := range v.Status.Bricks {
				if v.Status.Bricks[j].NodeUID == w.nodes[i].UID {
					v.Status.Bricks[j].Online = !off
				}
			}
		}
	}
	w.see(v, offline(0, true))
	now = w.await(v.Key(), "a copy is missing", func(v *resource.Volume) bool {
		c := v.Status.Conditions.Get(resource.VolumeReplicated)
		return v.Status.Phase == resource.Degraded && strings.Contains(c.Message, "does not report")
	})
	says(now, resource.VolumeReplicated, "1 of 3 copies is missing: its host does not report. Reading and writing go on")
	if !now.Status.Conditions.Is(resource.VolumeReady) || strings.Contains(fmt.Sprint(now.Status.Conditions), "n1") {
		t.Errorf("it isn't ready, or names a host: %+v", now.Status.Conditions)
	}
	w.see(v, offline(1, true))
	now = w.await(v.Key(), "no quorum", func(v *resource.Volume) bool { return !v.Status.Conditions.Is(resource.VolumeReady) })
	says(now, resource.VolumeReady, "2 of 3 copies are missing")
	says(now, resource.VolumeReady, "nothing is read or written")
	w.node(0, func(n *resource.Node) { n.Status.Phase = resource.Ready })
	w.see(v, func(v *resource.Volume) { serve(v); v.Status.Bricks[0].Heal = 7 })
	now = w.await(v.Key(), "it heals", func(v *resource.Volume) bool {
		return v.Status.Conditions.Get(resource.VolumeReplicated).Reason == "Healing"
	})
	says(now, resource.VolumeReplicated, "7 files and folders to go")
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[0].Heal = 0 })
	now = w.await(v.Key(), "it is whole", phase(resource.Ready))

	// A host is given up: no other has room, then one has.
	was := now.Status.Bricks[2]
	w.node(0, func(n *resource.Node) { n.Spec.Lost = true })
	if _, err := store.Of[resource.Node](w.db).MarkDeleted(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := store.Of[resource.Node](w.db).Delete(t.Context(), &resource.Node{Meta: resource.Meta{Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	now = w.await(v.Key(), "a copy is lost", phase(resource.Degraded))
	says(now, resource.VolumeReplicated, "its host, or its disk there, was given up, and no other has room")
	n4 := &resource.Node{Meta: resource.Meta{Name: "n4"}, Status: w.nodes[0].Status}
	n4.Status.Address, n4.Status.Drivers = netip.MustParseAddr("10.0.0.4"), []string{wire.StorageDriver}
	if err := store.Of[resource.Node](w.db).Create(t.Context(), n4); err != nil {
		t.Fatal(err)
	}
	now = w.await(v.Key(), "another host has a copy", func(v *resource.Volume) bool { return v.Status.Bricks[2].Node == "n4" })
	if b := now.Status.Bricks[2]; b.Replaces != was.UID || b.UID == was.UID || was.Node != "n1" || b.Ready {
		t.Errorf("%+v in the place of %+v", b, was)
	}
	w.see(v, serve)
	w.await(v.Key(), "it is whole again", phase(resource.Ready))

	if err := w.Grow(t.Context(), now, gib, func() error {
		_, err := store.Of[resource.Volume](w.db).Modify(t.Context(), v.Key(), func(v *resource.Volume) error { v.Spec.SizeBytes = 2 * gib; return nil })
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.await(v.Key(), "it grows", phase(resource.Updating))
	w.see(v, serve)
	now = w.await(v.Key(), "it has grown", phase(resource.Ready))
	if now.Status.SizeBytes != 2*gib {
		t.Errorf("it has %d", now.Status.SizeBytes)
	}
	if err := w.Grow(t.Context(), now, 100*gib, nil); err == nil || !strings.Contains(err.Error(), "one of the hosts with its copies") {
		t.Errorf("beyond its hosts: %v", err)
	}

	if _, err := store.Of[resource.Volume](w.db).MarkDeleted(t.Context(), v.Key()); err != nil {
		t.Fatal(err)
	}
	w.await(v.Key(), "it is deleted", phase(resource.Deleting))
	w.see(v, func(v *resource.Volume) {
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeUnserved, Status: resource.True})
		v.Status.Bricks[0].Removed, v.Status.Bricks[1].Removed = true, true
	})
	w.see(v, func(v *resource.Volume) { v.Status.Bricks[2].Removed = true })
	wait.For(t, wait.Patience, "it is gone", func(ctx context.Context) error {
		if _, err := store.Of[resource.Volume](w.db).Get(ctx, v.Key()); !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("get: %v", err)
		}
		return nil
	})
}

// TestSpread: copies are on hosts that don't fail together, if there are such.
func TestSpread(t *testing.T) {
	host := func(name, zone string, room int64) *resource.Node {
		n := &resource.Node{Meta: resource.Meta{Name: name, UID: name}, Spec: resource.NodeSpec{Zone: zone}}
		n.Status.Phase, n.Status.Pools, n.Status.Drivers = resource.Ready, []resource.Pool{{}}, []string{wire.StorageDriver}
		n.Status.Address, n.Status.Capacity.DiskBytes = netip.MustParseAddr("10.0.0.1"), room
		return n
	}
	free := func(n *resource.Node) int64 { return n.Status.Capacity.DiskBytes }
	old, cordoned, silent := host("old", "d", 99), host("cordoned", "d", 99), host("silent", "d", 99)
	old.Status.Drivers, cordoned.Spec.Unschedulable, silent.Status.Phase = nil, true, resource.Degraded
	nodes := []*resource.Node{host("a", "x", 50), host("b", "x", 40), host("c", "y", 10), host("d", "", 9), old, cordoned, silent}
	for name, c := range map[string]struct {
		need  []int64
		taken []*resource.Node
		want  string
	}{
		"zones first":            {[]int64{5, 5, 5}, nil, "a c d"},
		"room first":             {[]int64{20, 20, 20}, nil, "a b"},
		"an arbiter needs less":  {[]int64{10, 10, 1}, nil, "a c d"},
		"instead of one":         {[]int64{5}, nodes[:1], "c"},
		"where no zone is free":  {[]int64{5, 5}, nodes[1:3], "d a"},
		"not where one is twice": {[]int64{5}, nodes[:4], ""},
	} {
		var got []string
		for _, n := range spread(nodes, free, c.need, c.taken) {
			got = append(got, n.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", name, got, c.want)
		}
	}
	ill := host("ill", "x", 60)
	ill.Status.Pools[0].Health = "it fails"
	if got := spread(append(nodes, ill), free, []int64{45, 45}, nil); len(got) != 2 || got[0].Name != "a" || got[1] != ill {
		t.Errorf("with a disk that ails: got %v", got)
	}
}

// TestFew: a platform of two hosts has volumes with one copy, and refuses more in words.
func TestFew(t *testing.T) {
	w := newWorld(t)
	w.shared()
	w.node(2, func(n *resource.Node) { n.Status.Drivers = nil })
	one, three := w.make("one", resource.VolumeSpec{SizeBytes: gib}), w.make("three", resource.VolumeSpec{SizeBytes: gib, Replicas: 3})
	now := w.await(one.Key(), "it has a host", phase(resource.Creating))
	if len(now.Status.Bricks) != 1 || now.Copies() != 1 {
		t.Errorf("it has %+v", now.Status.Bricks)
	}
	w.see(one, serve)
	now = w.await(one.Key(), "it is ready", phase(resource.Ready))
	if now.Status.Conditions.Get(resource.VolumeReplicated) != nil {
		t.Errorf("one copy: %+v", now.Status.Conditions)
	}
	now = w.await(three.Key(), "it waits", phase(resource.Pending))
	if c := now.Status.Conditions.Get(resource.VolumePlaced); c == nil || !strings.Contains(c.Message, "3 hosts with 1Gi free each are needed for its copies, and 2") {
		t.Errorf("it says %+v", c)
	}
	// One that never had a host has nothing to be taken away.
	if _, err := store.Of[resource.Volume](w.db).MarkDeleted(t.Context(), three.Key()); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "it is gone", func(ctx context.Context) error {
		if _, err := store.Of[resource.Volume](w.db).Get(ctx, three.Key()); !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("get: %v", err)
		}
		return nil
	})
}

// TestSharedClaims: what claims can ask of class shared, and get.
func TestSharedClaims(t *testing.T) {
	w := newWorld(t)
	w.shared()
	p, ctx := w.plane("acme/web/shop"), t.Context()
	mode := func(m csi.VolumeCapability_AccessMode_Mode) []*csi.VolumeCapability {
		return []*csi.VolumeCapability{{AccessType: once[0].AccessType, AccessMode: &csi.VolumeCapability_AccessMode{Mode: m}}}
	}
	ask := func(name, class string, m csi.VolumeCapability_AccessMode_Mode, parameters ...string) *csi.CreateVolumeRequest {
		r := claim(name, gib)
		r.VolumeCapabilities, r.Parameters["class"] = mode(m), class
		for i := 0; i < len(parameters); i += 2 {
			r.Parameters[parameters[i]] = parameters[i+1]
		}
		return r
	}
	many := csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	for _, c := range []struct {
		request *csi.CreateVolumeRequest
		text    string
	}{
		{ask("a", "shared", many, "replicas", "2"), "split brain"},
		{ask("a", "shared", many, "replicas", "x"), "want a number"},
		{ask("a", "shared", many, "replicas", "3", "arbiter", "true"), "an arbiter is for two copies"},
		{ask("a", "shared", many, "arbiter", "yes"), "want true or false"},
		{ask("a", "local", once[0].AccessMode.Mode, "replicas", "3"), "has one copy"},
		{ask("a", "local", many), "one machine at a time"},
		{ask("a", "gold", many), "there are local and shared"},
	} {
		_, err := p.CreateVolume(ctx, c.request)
		want(t, c.text, err, codes.InvalidArgument, c.text)
	}
	// Its hosts make it, and one of them shows it to a machine.
	go func() {
		for e := range store.Of[resource.Volume](w.db).Watch(ctx, "") {
			if e.Object == nil || len(e.Object.Status.Bricks) == 0 || e.Object.Status.Conditions.Is(resource.VolumeServed) {
				continue
			}
			_, _ = store.Of[resource.Volume](w.db).Modify(ctx, e.Key, func(v *resource.Volume) error {
				serve(v)
				v.Status.Attachments = []resource.VolumeAttachment{{Machine: "shop-2", MachineUID: w.machines[1].UID, Attached: true}}
				return nil
			})
		}
	}()
	for _, m := range []csi.VolumeCapability_AccessMode_Mode{many, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY} {
		made, err := p.CreateVolume(ctx, ask("data", "shared", m))
		if err != nil || made.Volume.AccessibleTopology != nil || made.Volume.CapacityBytes != gib {
			t.Fatalf("made %v, %v", made, err)
		}
	}
	v, err := store.Of[resource.Volume](w.db).Get(ctx, "acme/web/shop/pvc-data")
	if err != nil || len(v.Status.Bricks) != 3 || v.Spec.Class != resource.SharedVolume || v.Spec.Claim != "default/data" {
		t.Errorf("it is %+v, %v", v, err)
	}
	pv := persistentVolume(w.ws, v)
	if pv.Spec.NodeAffinity != nil || fmt.Sprint(pv.Spec.AccessModes) != "[ReadWriteMany ReadWriteOnce ReadOnlyMany]" {
		t.Errorf("its PersistentVolume is %+v", pv.Spec)
	}
	_, err = p.CreateVolume(ctx, ask("data", "local", once[0].AccessMode.Mode))
	want(t, "of another class", err, codes.AlreadyExists, "of class shared")
	ok, err := p.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: v.UID, VolumeCapabilities: mode(many)})
	if err != nil || ok.Confirmed == nil {
		t.Errorf("validate: %v, %v", ok, err)
	}
	// A copy is of its class.
	twin := ask("twin", "local", once[0].AccessMode.Mode)
	twin.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.UID}}}
	_, err = p.CreateVolume(ctx, twin)
	want(t, "a clone", err, codes.InvalidArgument, "is of class shared, and a copy is as that is")
}
