package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

var testSnapshot = wire.Volume{Key: "acme/web/shop/before", UID: "snapshot", NetworkID: "00002a", SizeBytes: 400 * mib, Source: testUID, Snapshot: true}

const copyingText = "it is being copied"

// until ensures something until it is there: a copy takes its time.
func (r *rig) until(v wire.Volume) {
	r.t.Helper()
	for {
		err := r.Ensure(r.t.Context(), v)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), copyingText) {
			r.t.Fatal(err)
		}
	}
}

// TestSnapshots: a snapshot has what its volume had, outlives it, and becomes another volume, which is
// larger. Nothing of any is left.
func TestSnapshots(t *testing.T) {
	r := newRig(t)
	r.ensure(320 * mib)
	r.write("file", "before")
	snapshot := testSnapshot
	r.until(snapshot)
	r.write("file", "after")
	r.until(snapshot) // it stays as it is
	seen := func(uid string) (found wire.VolumeReport) {
		t.Helper()
		all, err := r.List()
		r.must(err)
		for _, v := range all {
			if v.UID == uid {
				found = v
			}
		}
		return found
	}
	if s := seen("snapshot"); !s.Ready || s.Fallen || s.SizeBytes != 320*mib || s.UsedBytes == 0 || s.Key != snapshot.Key {
		t.Errorf("seen as %+v", s)
	}
	r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))

	restored := testVolume(400 * mib)
	restored.UID, restored.Source = "restored", "snapshot"
	t.Cleanup(func() { _ = hostmount.Unmount(string(r.place("restored"))) })
	r.until(restored)
	if v := seen("restored"); !v.Ready || v.SizeBytes != 400*mib {
		t.Errorf("seen as %+v", v)
	}
	got, err := os.ReadFile(filepath.Join(r.place("restored").image().Mount, "file"))
	if err != nil || string(got) != "before" {
		t.Errorf("the new volume has %q, %v", got, err)
	}
	gone := restored
	gone.UID, gone.Source = "other", testUID
	if err := r.Ensure(t.Context(), gone); err == nil || !strings.Contains(err.Error(), "is not there") || strings.Contains(err.Error(), r.cfg.Dir) {
		t.Errorf("from what is gone: %v", err)
	}
	snapshot.Made = true
	for _, uid := range []string{"snapshot", "restored", "other"} {
		r.must(r.Remove(t.Context(), wire.Volume{UID: uid}))
	}
	if err := r.Ensure(t.Context(), snapshot); err == nil {
		t.Error("a snapshot that is lost was made anew")
	}
	r.must(r.Remove(t.Context(), wire.Volume{UID: "snapshot"}))
	if left, _ := os.ReadDir(r.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
