package storage

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestSharedImport: a shared volume that is made from a file is on hosts that take one, and is nobody's before all is in it.
func TestSharedImport(t *testing.T) {
	w := newWorld(t)
	w.shared()
	v := w.make("data", resource.VolumeSpec{SizeBytes: gib, Import: true})
	w.await(v.Key(), "no host takes files", func(v *resource.Volume) bool {
		c := v.Status.Conditions.Get(resource.VolumePlaced)
		return c != nil && strings.Contains(c.Message, "no host takes a file")
	})
	for i := range w.nodes {
		w.node(i, func(n *resource.Node) { n.Status.Drivers = append(n.Status.Drivers, wire.SharedFileDriver) })
	}
	now := w.await(v.Key(), "it has hosts", func(v *resource.Volume) bool { return len(v.Status.Bricks) == 3 })
	if name, uid := now.FileHost(); name != now.Status.Bricks[0].Node || uid != now.Status.Bricks[0].NodeUID || name == "" {
		t.Errorf("its file is taken by %q", name)
	}
	w.see(v, serve)
	ready := func(message string, final bool) {
		t.Helper()
		now := w.await(v.Key(), message, func(v *resource.Volume) bool {
			return strings.Contains(v.Status.Conditions.Get(resource.VolumeReady).Message, message)
		})
		c := now.Status.Conditions.Get(resource.VolumeReady)
		if now.Made() || !now.Importing() || c.Reason != resource.VolumeImporting || c.Final != final || now.Status.Phase != resource.Creating {
			t.Errorf("%s: it is %+v", message, now.Status)
		}
	}
	says := func(c resource.Condition) func(*resource.Volume) {
		c.Type = resource.VolumeImported
		return func(v *resource.Volume) { v.Status.Conditions.Set(c) }
	}
	ready("send it with", false)
	w.see(v, says(resource.Condition{Status: resource.False, Message: "1 GiB of its file have come"}))
	ready("1 GiB of", false)
	w.see(v, says(resource.Condition{Status: resource.False, Message: "it is damaged", Final: true}))
	ready("it is damaged", true)
	if now := w.await(v.Key(), "it is broken", func(*resource.Volume) bool { return true }); now.Lost() || moves(now) {
		t.Errorf("it is taken for lost, or moved for the balance: %+v", now.Status)
	}
	w.see(v, says(resource.Condition{Status: resource.True}))
	if now := w.await(v.Key(), "it is ready", phase(resource.Ready)); now.Status.SizeBytes != gib || now.Importing() {
		t.Errorf("it is %+v", now.Status)
	}
}
