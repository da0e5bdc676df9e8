package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestShared: hosts are told of their bricks, one of them of the cluster, those with machines of the volume;
// and each is believed about its own part.
func TestShared(t *testing.T) {
	p := start(t)
	nodes, volumes := store.Of[resource.Node](p.store), store.Of[resource.Volume](p.store)
	var hosts []*host
	node := map[string]*resource.Node{}
	var addresses []netip.Addr
	change := func(name string, how func(*resource.Node)) {
		t.Helper()
		now, err := nodes.Modify(t.Context(), name, func(n *resource.Node) error { how(n); return nil })
		if err != nil {
			t.Fatal(err)
		}
		node[name] = now
	}
	for i := range 4 {
		name := fmt.Sprint("n", i+1)
		hosts, addresses = append(hosts, p.join(t, name)), append(addresses, netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}))
		change(name, func(n *resource.Node) { n.Status.Address, n.Status.Phase = addresses[i], resource.Ready })
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}
	m.Spec.Node = "n4"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 16 << 30}}
	v.Status.FirstUID = 1 << 28
	for i, name := range []string{"n2", "n1", "n3"} {
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: "brick-" + name, Node: name, NodeUID: node[name].UID, Arbiter: i == 2})
	}
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), store.Of[resource.Machine](p.store).CreateOp(m), volumes.CreateOp(v)); err != nil {
		t.Fatal(err)
	}
	told := func(name, what string, ok func(*wire.State) bool) (s *wire.State) {
		t.Helper()
		wait.For(t, wait.Patience, name+" is told "+what, func(context.Context) error {
			if s = p.stateOf(node[name]); !ok(s) {
				return fmt.Errorf("it is told %+v, volumes %+v", s.Storage, s.Volumes)
			}
			return nil
		})
		return s
	}
	say := func(i int, kind string, rep any) *resource.Volume {
		t.Helper()
		text, err := json.Marshal(rep)
		if err == nil {
			err = hosts[i].call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: kind, Report: text}}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	members := func(i int, who ...netip.Addr) {
		t.Helper()
		if err := hosts[i].call(t.Context(), wire.ReportPath, wire.Report{Address: addresses[i], StorageMembers: who}, nil); err != nil {
			t.Fatal(err)
		}
	}
	leads := func(s *wire.State) bool { return s.Storage != nil && s.Storage.Cluster != nil }
	part := func(s *wire.State) bool { return s.Storage != nil && s.Storage.Cluster == nil }
	none := func(s *wire.State) bool { return s.Storage == nil }

	// n2 has the first brick of all and founds the cluster, be it silent.
	s := told("n2", "to lead", func(s *wire.State) bool {
		return leads(s) && len(s.Storage.Bricks) == 1 && len(s.Storage.Cluster.Volumes) == 1
	})
	want := wire.Brick{Key: v.Key(), Volume: v.UID, UID: "brick-n2", NetworkID: "00abcd", SizeBytes: 16 << 30}
	if !reflect.DeepEqual(s.Storage.Bricks, []wire.Brick{want}) {
		t.Errorf("n2 has %+v", s.Storage.Bricks)
	}
	c := s.Storage.Cluster
	machines := []string{node["n1"].UID, node["n2"].UID, node["n3"].UID, node["n4"].UID}
	slices.Sort(machines)
	if len(c.Peers) != 3 || c.Peers[0] != (wire.Peer{UID: node["n1"].UID, Name: "n1", Address: addresses[0]}) || len(c.Volumes) != 1 ||
		!c.Volumes[0].Arbiter || !slices.Equal(c.Volumes[0].Hosts, machines) || c.Volumes[0].Bricks[0] != (wire.ClusterBrick{UID: "brick-n2", Address: addresses[1]}) {
		t.Errorf("the cluster is to be %+v", c)
	}
	if s := told("n3", "of its brick", part); s.Storage.Bricks[0].SizeBytes != 1<<30 {
		t.Errorf("the arbiter is %+v", s.Storage.Bricks)
	}
	if s := told("n4", "nothing", none); s.Volumes != nil {
		t.Errorf("before it is served n4 shall mount %+v", s.Volumes)
	}
	change("n2", func(n *resource.Node) { n.Status.Phase = resource.Degraded })
	told("n2", "to lead, be it silent", leads)
	told("n1", "its part", part)
	change("n2", func(n *resource.Node) { n.Status.Phase = resource.Ready })

	brick := func(i int, uid string, rep wire.BrickReport) *resource.Volume {
		t.Helper()
		rep.Key, rep.UID = v.Key(), uid
		return say(i, wire.BrickItem, rep)
	}
	made := wire.BrickReport{Ready: true, SizeBytes: 1 << 50, UsedBytes: 5, Removed: true}
	if b := brick(0, "brick-n2", made).Status.Bricks[0]; b.Ready {
		t.Errorf("n1 is believed about n2's brick: %+v", b)
	}
	if b := brick(1, "brick-n2", made).Status.Bricks[0]; !b.Ready || b.SizeBytes != 16<<30 || b.UsedBytes != 5 || b.Removed {
		t.Errorf("n2's brick is %+v", b)
	}
	if b := brick(2, "brick-n3", wire.BrickReport{Message: "no\x1b[31m"}).Status.Bricks[2]; b.Message != "no [31m" {
		t.Errorf("n3's brick is %+v", b)
	}
	cluster := func(i int, rep wire.ClusterReport) *resource.Volume {
		t.Helper()
		rep.Key, rep.UID = v.Key(), v.UID
		return say(i, wire.ClusterItem, rep)
	}
	served := wire.ClusterReport{Ready: true, Bricks: []wire.ClusterBrickReport{{UID: "brick-n2", Online: true}, {UID: "brick-n1", Heal: -1}, {UID: "brick-n3", Online: true, Heal: 3}}}
	if now := cluster(2, served); now.Status.Conditions.Is(resource.VolumeServed) {
		t.Error("who doesn't lead is believed about the cluster")
	}
	members(2, addresses[3])
	members(1, addresses[:3]...)
	now := cluster(1, served).Status
	if b := now.Bricks; !now.Conditions.Is(resource.VolumeServed) || !b[0].Online || b[1].Online || b[2].Heal != 3 || b[2].HealingSince.IsZero() {
		t.Errorf("after the lead's report it is %+v", now)
	}
	unknown := wire.ClusterReport{Ready: true, Bricks: []wire.ClusterBrickReport{{UID: "brick-n2", Online: true, Heal: -1}, {UID: "brick-n1", Online: true, Heal: -1}, {UID: "brick-n3", Online: true, Heal: -1}}}
	for range 2 {
		if b := cluster(1, unknown).Status.Bricks; !b[0].GivenSince.IsZero() || b[1].GivenSince.IsZero() || b[0].Heal != -1 || b[1].Heal != -1 || !b[1].Online {
			t.Errorf("once all are back it is %+v", b)
		}
	}
	// Those who are in the cluster are known now, so another of them leads when one is silent.
	for _, name := range []string{"n1", "n2", "n3"} {
		change(name, func(n *resource.Node) {
			if !n.Status.StorageMember {
				t.Errorf("%s is no member", name)
			}
			if name == "n2" {
				n.Status.Phase = resource.Degraded
			}
		})
	}
	told("n1", "to lead", leads)
	told("n2", "its part", part)
	change("n2", func(n *resource.Node) { n.Status.Phase = resource.Ready })
	told("n2", "to lead again", leads)

	s = told("n4", "to mount it", func(s *wire.State) bool { return len(s.Volumes) == 1 })
	if got := s.Volumes[0]; got.UID != v.UID || !slices.Equal(got.Servers, []netip.Addr{addresses[1], addresses[0], addresses[2]}) ||
		!slices.Equal(got.Attachments, []wire.VolumeAttachment{{MachineUID: m.UID}}) || got.Remove {
		t.Errorf("n4 shall mount %+v", got)
	}
	if a := say(3, wire.VolumeItem, wire.VolumeReport{Key: v.Key(), UID: v.UID, Message: "it isn't mounted"}).Status; len(a.Attachments) != 1 || a.Attachments[0].Message != "its host can't mount it now: it is tried again" || a.Conditions.Is(resource.VolumeReady) {
		t.Errorf("it is %+v", a)
	}
	if a := say(0, wire.VolumeItem, wire.VolumeReport{Key: v.Key(), UID: v.UID, Attached: []string{m.UID}}).Status.Attachments; a[0].Attached {
		t.Error("who has no machine of it is believed")
	}
	if a := say(3, wire.VolumeItem, wire.VolumeReport{Key: v.Key(), UID: v.UID, Attached: []string{m.UID}}).Status.Attachments; !a[0].Attached {
		t.Errorf("attachments %+v", a)
	}
	if err := hosts[2].call(t.Context(), wire.LeavePath, struct{}{}, nil); err == nil || !strings.Contains(err.Error(), "acme/web/shop/data") {
		t.Errorf("a host leaves with a copy: %v", err)
	}

	// A copy leaves n3: it is kept until all others are there, and n3 until it is gone.
	leave := func(heal int64) {
		t.Helper()
		if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
			v.Status.Leaving = []resource.VolumeBrick{{UID: "old", Node: "n3", NodeUID: node["n3"].UID, SizeBytes: 1}}
			for i := range v.Status.Bricks {
				v.Status.Bricks[i].Online, v.Status.Bricks[i].Heal = true, heal
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	old := func(remove bool) func(*wire.State) bool {
		return func(s *wire.State) bool {
			return s.Storage != nil && len(s.Storage.Bricks) == 2 && s.Storage.Bricks[1].UID == "old" && s.Storage.Bricks[1].Made && s.Storage.Bricks[1].Remove == remove
		}
	}
	leave(1)
	told("n3", "to keep it", old(false))
	monitor := &Monitor{Log: p.cfg.Log, Store: p.store, Nodes: p.cfg.Nodes, Machines: p.cfg.Machines}
	for _, member := range []bool{true, false} {
		going := *node["n3"]
		going.DeletedAt, going.Status.StorageMember = new(time.Now()), member
		if keeps, err := monitor.keepsCopies(t.Context(), &going); err != nil || !keeps {
			t.Errorf("n3 goes with a copy on it: %v", err)
		}
		going.Spec.Lost = true
		if keeps, err := monitor.keepsCopies(t.Context(), &going); err != nil || keeps {
			t.Errorf("n3 is given up, and does not go: %v", err)
		}
		if text := p.shared().moving(&going, p.cfg.Volumes.Get); !strings.HasPrefix(text, "2 copies of shared volumes are on it still") {
			t.Errorf("it says %q", text)
		}
	}
	leave(0)
	told("n3", "to take it away", old(true))
	if now := brick(0, "old", wire.BrickReport{Removed: true}); len(now.Status.Leaving) != 1 {
		t.Error("n1 is believed about a copy of n3's")
	}
	if now := brick(2, "old", wire.BrickReport{Removed: true}); len(now.Status.Leaving) > 0 {
		t.Errorf("leaving are %+v", now.Status.Leaving)
	}

	// One of which nothing is left is forgotten by GlusterFS alone.
	final := func(is bool) {
		t.Helper()
		if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
			v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "CopiesLost", Final: is})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		told("n2", fmt.Sprint("that it is lost: ", is), func(s *wire.State) bool { return leads(s) && s.Storage.Cluster.Volumes[0].Remove == is })
	}
	final(true)
	if now := cluster(1, wire.ClusterReport{Removed: true}); now.Status.Conditions.Is(resource.VolumeUnserved) || !now.Status.Conditions.Is(resource.VolumeServed) {
		t.Errorf("forgotten, and not deleted, it is %+v", now.Status)
	}
	final(false)
	// A copy in the place of another says whether that one's host is lost.
	for _, lost := range []bool{false, true} {
		if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
			v.Status.Bricks[2].Replaces, v.Status.Leaving = "old", nil
			if !lost {
				v.Status.Leaving = []resource.VolumeBrick{{UID: "old", Node: "n1", NodeUID: node["n1"].UID}}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		told("n2", fmt.Sprint("that what was before is lost: ", lost), func(s *wire.State) bool {
			b := s.Storage.Cluster.Volumes[0].Bricks[2]
			return b.Replaces == "old" && b.ReplacesLost == lost
		})
	}
	if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
		v.Status.Bricks[2].Replaces = ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	if _, err := volumes.MarkDeleted(t.Context(), v.Key()); err != nil {
		t.Fatal(err)
	}
	told("n4", "nothing of it", func(s *wire.State) bool { return s.Volumes == nil })
	// Its controller has looked whether something is made from it.
	if _, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
		if s := p.stateOf(node["n2"]); s.Storage.Cluster.Volumes[0].Remove {
			t.Error("it is told before")
		}
		v.Status.Phase = resource.Deleting
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s = told("n2", "to forget it", func(s *wire.State) bool { return leads(s) && s.Storage.Cluster.Volumes[0].Remove })
	if s.Storage.Bricks[0].Remove {
		t.Error("a brick goes before GlusterFS has forgotten its volume")
	}
	if now := cluster(1, wire.ClusterReport{Message: "a host is away"}).Status.Conditions.Get(resource.VolumeUnserved); now == nil || !strings.Contains(now.Message, "one of them is away") {
		t.Errorf("it says %+v", now)
	}
	cluster(1, wire.ClusterReport{Removed: true})
	told("n2", "to remove its brick", func(s *wire.State) bool {
		return leads(s) && s.Storage.Cluster.Volumes == nil && len(s.Storage.Cluster.Peers) == 3 && s.Storage.Bricks[0].Remove
	})
	for i, uid := range []string{1: "brick-n2", 0: "brick-n1", 2: "brick-n3"} {
		brick(i, uid, wire.BrickReport{Removed: true})
	}
	// Who has no brick leaves the cluster; the last one is in none, and all is taken down.
	for _, name := range []string{"n1", "n2", "n3"} {
		told(name, "its part, until it has left", func(s *wire.State) bool { return s.Storage != nil && s.Storage.Bricks == nil })
	}
	lead := slices.IndexFunc([]string{"n1", "n2", "n3"}, func(name string) bool {
		node[name], _ = nodes.Get(t.Context(), name)
		return leads(p.stateOf(node[name]))
	})
	if lead < 0 {
		t.Fatal("nobody leads who could let the others go")
	}
	members(lead, addresses[lead])
	for _, name := range []string{"n1", "n2", "n3"} {
		wait.For(t, wait.Patience, name+" has no part", func(ctx context.Context) error {
			was := node[name] // as it was when it began to listen
			was.Status.StorageMember = true
			if s := p.stateOf(was).Storage; s != nil {
				return fmt.Errorf("it is told %+v", s)
			}
			return nil
		})
	}
}

// TestMovingTrash: who removes a host is told of copies that never leave it by themselves.
func TestMovingTrash(t *testing.T) {
	c := &cluster{kept: map[string][]served{"u": {{Volume: &resource.Volume{}, key: "acme/web/shop/data"}, {Volume: &resource.Volume{}, trash: true}}}}
	now := &resource.Volume{}
	now.Status.Leaving = []resource.VolumeBrick{{NodeUID: "u"}}
	now.Status.Bricks = []resource.VolumeBrick{{Online: true, UsedBytes: 10 << 30, Heal: 7},
		{Node: "n4", Online: true, UsedBytes: 2 << 30, GivenSince: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
	text := c.moving(&resource.Node{Meta: resource.Meta{UID: "u"}}, func(key string) (*resource.Volume, bool) { return now, key != "" })
	const filled = "that of acme/web/shop/data is on node n4: about 2Gi of 10Gi, 7 files and folders to go, since 2026-01-02T03:04:05Z"
	if !strings.HasPrefix(text, "2 copies") || !strings.Contains(text, filled) || !strings.Contains(text, "1 are in the trash: they have to be purged, or restored, first") {
		t.Errorf("it says %q", text)
	}
}
