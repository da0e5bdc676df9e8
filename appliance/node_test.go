package appliance

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAllocated: what nobody wants is no room for others, nor what is on another disk.
func TestAllocated(t *testing.T) {
	dir := t.TempDir()
	for _, uid := range []string{"wanted", "kept"} {
		if err := os.Mkdir(filepath.Join(dir, uid), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, uid, "disk.img"), make([]byte, 1<<16), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		t.Fatal(err)
	}
	all := allocated(dir, f.Fsid, nil)
	if got := allocated(dir, f.Fsid, func(uid string) bool { return uid == "wanted" }); got < 1<<16 || all != 2*got {
		t.Errorf("%d of %d bytes", got, all)
	}
	if got := allocated(dir, unix.Fsid{}, nil); got != 0 {
		t.Errorf("on another disk: %d", got)
	}
}
