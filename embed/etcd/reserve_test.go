package etcd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeldRoom fills the disk of a member, as whatever else is on it may do.
func TestHeldRoom(t *testing.T) {
	t.Parallel()
	const block, want = 4096, 1 << 20 // a twentieth of its size
	s := New(Config{Dir: t.TempDir()})
	file := filepath.Join(s.cfg.Dir, heldFile)
	held := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if err := os.WriteFile(file+".new", []byte("killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := os.Stat(file + ".new"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was half made is still there: %v", err)
		}
	}()
	others := int64(0) // what is free but for what is held
	s.statfs = func(dir string, f *unix.Statfs_t) error {
		*f = unix.Statfs_t{Bsize: block, Blocks: want * heldShare / block, Bavail: uint64(others-held()) / block}
		return nil
	}
	const mib = 1 << 20
	for _, step := range []struct {
		what  string
		free  int64
		held  bool
		spent bool
	}{
		{"a disk with hardly any room for it", 2*minFreeDisk + want - block, false, true},
		{"room comes", 2*minFreeDisk + want, true, false},
		{"much room", 1 << 40, true, false},
		{"little", minFreeDisk + want, true, false},
		{"too little", minFreeDisk + want - block, false, true},
		{"still", minFreeDisk, false, true},
		{"some is back", 2 * minFreeDisk, false, true},
		{"all is back", 10 * minFreeDisk, true, false},
	} {
		others = step.free
		free, spent, err := s.holdRoom()
		if err != nil || spent != step.spent || (held() >= want) != step.held || (held() > 0) != step.held {
			t.Errorf("%s: %d KiB are held, spent is %v, %v; want held %v, spent %v", step.what, held()>>10, spent, err, step.held, step.spent)
		}
		if free.bytes != others-held() {
			t.Errorf("%s: %d MiB are free, want what is there after that", step.what, free.bytes/mib)
		}
	}
	// What a copy of the folder left: a file of that size that takes nothing.
	if err := errors.Join(os.Remove(file), os.WriteFile(file, nil, 0o600), os.Truncate(file, want)); err != nil {
		t.Fatal(err)
	}
	if _, spent, err := s.holdRoom(); err != nil || spent || held() < want {
		t.Errorf("a copy of it: %d KiB are held, spent is %v, %v", held()>>10, spent, err)
	}
}
