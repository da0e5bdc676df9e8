package machine

import (
	"testing"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// TestHasVolumes: of a machine it is known whether it can have volumes.
func TestHasVolumes(t *testing.T) {
	m := home(t.TempDir())
	if hasVolumes(m) {
		t.Error("one that was not started can have volumes")
	}
	t.Cleanup(func() { _ = hostmount.Unmount(m.at(volumesDir)) })
	if err := makeVolumes(m, 0); err != nil {
		t.Fatal(err)
	}
	if !hasVolumes(m) {
		t.Error("one that was started can have none")
	}
}
