package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestSharedFiles: the host of a shared volume's first copy writes its file, and no machine sees it before all is there.
func TestSharedFiles(t *testing.T) {
	p := start(t)
	node := map[string]*resource.Node{}
	for i, name := range []string{"n1", "n2"} {
		p.join(t, name)
		n, err := store.Of[resource.Node](p.store).Modify(t.Context(), name, func(n *resource.Node) error {
			n.Status.Address, n.Status.Phase = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), resource.Ready
			n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.True})
			n.Status.Drivers = []string{wire.FileDriver}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		node[name] = n
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}
	m.Spec.Node = "n2"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"),
		Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 1 << 30, Import: true}}
	for i, name := range []string{"n1", "n2"} {
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: "brick-" + name, Node: name, NodeUID: node[name].UID,
			Pool: "pool-" + name, SizeBytes: 1 << 30, Arbiter: i > 0})
	}
	volumes := store.Of[resource.Volume](p.store)
	err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), store.Of[resource.Machine](p.store).CreateOp(m),
		volumes.CreateOp(v))
	if err != nil {
		t.Fatal(err)
	}
	see := func(change func(v *resource.Volume)) {
		t.Helper()
		if v, err = volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error { change(v); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	told := func(name, what string, want ...string) {
		t.Helper()
		wait.For(t, wait.Patience, name+" is told "+what, func(context.Context) error {
			var got []string
			for _, w := range p.stateOf(node[name]).Volumes {
				got = append(got, fmt.Sprint(w.Importing, w.Brick, w.Pool, len(w.Servers), w.Attachments))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("it is told %v", got)
			}
			return nil
		})
	}
	if _, _, err := p.BeginImport(t.Context(), v); !errors.Is(err, access.ErrExists) || !strings.Contains(err.Error(), "copies are not there yet") {
		t.Errorf("before GlusterFS has it: %v", err)
	}
	see(func(v *resource.Volume) {
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	})
	told("n1", "to write it", fmt.Sprint(true, "brick-n1", "pool-n1", 2, []wire.VolumeAttachment(nil)))
	told("n2", "nothing")
	if _, _, err := p.BeginImport(t.Context(), v); err == nil || !strings.Contains(err.Error(), "has to upgrade it") {
		t.Errorf("its host knows no shared volumes as files: %v", err)
	}
	report := func(name string, rep wire.VolumeReport) *resource.Condition {
		t.Helper()
		rep.Key, rep.UID = v.Key(), v.UID
		if err := p.takeVolume(t.Context(), node[name], rep); err != nil {
			t.Fatal(err)
		}
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		if c := now.Status.Conditions.Get(resource.VolumeImported); c != nil {
			return c
		}
		return &resource.Condition{}
	}
	if c := report("n2", wire.VolumeReport{Import: wire.ImportDone}); c.Type != "" {
		t.Errorf("another host is believed: %+v", c)
	}
	if c := report("n1", wire.VolumeReport{Message: "10.0.0.2 does not answer"}); c.Final || !strings.Contains(c.Message, "can't mount it") {
		t.Errorf("not mounted, it says %+v", c)
	}
	if c := report("n1", wire.VolumeReport{Import: wire.ImportBegun, Message: "1 of it"}); c.Final || c.Message != "1 of it" {
		t.Errorf("on its way it says %+v", c)
	}
	if c := report("n1", wire.VolumeReport{Import: wire.ImportBroken, Message: "it is damaged"}); !c.Final || c.Message != "it is damaged" {
		t.Errorf("damaged, it says %+v", c)
	}
	told("n1", "nothing of one that is damaged")
	for reason, lost := range map[string]bool{resource.VolumeImporting: false, "CopiesLost": true} {
		was := served{Volume: &resource.Volume{}}
		was.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Reason: reason, Final: true})
		if was.lost() != lost {
			t.Errorf("%s: GlusterFS keeps it: %v", reason, lost)
		}
	}
	if c := report("n1", wire.VolumeReport{Import: wire.ImportDone}); c.Status != resource.True || c.Final {
		t.Errorf("done, it says %+v", c)
	}
	if see(func(*resource.Volume) {}); v.Made() || v.Importing() {
		t.Errorf("all is there, and it is imported still: %+v", v.Status)
	}
	told("n1", "nothing any more") // also before the volume is Ready
	told("n2", "of its machine", fmt.Sprint(false, "", "", 2, []wire.VolumeAttachment{{MachineUID: m.UID}}))
}
