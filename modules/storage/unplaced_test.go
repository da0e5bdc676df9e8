package storage

import (
	"testing"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// TestUnplaced: who waits for a host looks for one rarely, and who is new at once.
func TestUnplaced(t *testing.T) {
	w := newWorld(t)
	w.retries = flowcontrol.NewFakeNeverRateLimiter()
	// The controller would see to those that are stored.
	place := func(workspace string, seen ...resource.Condition) (waits bool) {
		t.Helper()
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace(workspace, "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib}}
		v.Status.Conditions = seen
		again, err := w.place(t.Context(), v)
		if err != nil {
			t.Error(err)
		}
		return again == retryPlacing
	}
	if !place("acme/web/shop", resource.Condition{Type: resource.VolumePlaced, Status: resource.False}) {
		t.Error("it was not its turn, and it looked all the same")
	}
	if place("acme/web/shop") {
		t.Error("a new one waits")
	}

	lone := &resource.Volume{InWorkspace: resource.NewInWorkspace("evil/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib}}
	if err := store.Of[resource.Volume](w.db).Create(t.Context(), lone); err != nil {
		t.Fatal(err)
	}
	if again, err := w.place(t.Context(), lone); err != nil || again != retryPlacing {
		t.Errorf("without a machine: %v, %v", again, err)
	}
	now, err := store.Of[resource.Volume](w.db).Get(t.Context(), lone.Key())
	if c := now.Status.Conditions.Get(resource.VolumePlaced); err != nil || c == nil || c.Message != noMachine {
		t.Errorf("it says %+v, %v", c, err)
	}
}
