package volume

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestBrick: a brick appears where it shall, with a root of its owner's, stays what it is, is
// told apart from volumes, and goes also from who has it open.
func TestBrick(t *testing.T) {
	r := newRig(t)
	r.cfg.Bricks = t.TempDir()
	r.must(unix.Mount("tmpfs", r.cfg.Bricks, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { r.must(hostmount.Unmount(r.cfg.Bricks)) })
	b := wire.Brick{Key: "acme/web/shop/data", Volume: "0a1b", UID: testUID, NetworkID: "00002a", SizeBytes: 320 * mib}
	ensure := func() { t.Helper(); r.must(r.EnsureBrick(t.Context(), b)) }
	seen := func(ready bool) {
		t.Helper()
		all, err := r.Bricks()
		if err != nil || len(all) != 1 || all[0].Ready != ready || all[0].Fallen == ready || all[0].SizeBytes != b.SizeBytes || all[0].NetworkID != "00002a" {
			t.Errorf("bricks are %+v, %v", all, err)
		}
	}
	ensure()
	root := filepath.Join(r.cfg.Bricks, testUID, brickRoot)
	var st unix.Stat_t
	r.must(unix.Stat(root, &st))
	if st.Uid != 0 || st.Gid != 0 || st.Mode&0o777 != 0o755 {
		t.Errorf("its root is of %d:%d, %o", st.Uid, st.Gid, st.Mode)
	}
	const flags = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	for _, dir := range []string{root, r.disk().Mount} {
		var f unix.Statfs_t
		if r.must(unix.Statfs(dir, &f)); f.Flags&flags != flags {
			t.Errorf("%s has flags %#x", dir, f.Flags)
		}
	}
	file := filepath.Join(root, "file")
	r.must(os.WriteFile(file, []byte("text"), 0o600))
	r.must(os.Chown(root, 7, 7)) // as its owner may
	seen(true)
	if all, err := r.List(); err != nil || len(all) > 0 {
		t.Errorf("volumes are %+v, %v", all, err)
	}

	// What a reboot leaves, and who unmounts one of the two.
	for _, dir := range []string{r.brickAt(testUID), r.disk().Mount, ""} {
		if dir == "" {
			r.must(hostmount.Unmount(r.brickAt(testUID)))
			dir = r.disk().Mount
		}
		r.must(hostmount.Unmount(dir))
		seen(false)
		b.SizeBytes += 16 * mib
		ensure()
		seen(true)
		if got, err := os.ReadFile(file); err != nil || string(got) != "text" {
			t.Errorf("it has %q, %v", got, err)
		}
	}
	r.must(unix.Stat(root, &st))
	if st.Uid != 7 {
		t.Errorf("its root is of %d, want the one whom its owner gave it", st.Uid)
	}

	open, err := os.Open(file)
	r.must(err)
	removed := make(chan error)
	go func() { removed <- r.RemoveBrick(t.Context(), wire.Brick{UID: testUID}) }()
	for err := error(nil); err == nil; { // until it has stopped
		_, err = open.Stat()
	}
	r.must(open.Close())
	r.must(<-removed)
	r.must(r.RemoveBrick(t.Context(), wire.Brick{UID: testUID}))
	for _, dir := range []string{r.cfg.Bricks, r.cfg.Dir} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	b.Made = true
	if err := r.EnsureBrick(t.Context(), b); err == nil {
		t.Error("one that was lost is made anew")
	}
}
