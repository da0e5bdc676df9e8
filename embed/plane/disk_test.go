package plane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/testing/wait"
)

// take makes a file of so many bytes that takes them.
func take(t *testing.T, file string, bytes int64) *os.File {
	t.Helper()
	f, err := os.Create(file)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestTaken(t *testing.T) {
	dir := t.TempDir()
	elsewhere := t.TempDir()
	take(t, filepath.Join(elsewhere, "x"), 8<<20)
	take(t, filepath.Join(dir, "a"), 1<<20)
	if err := os.MkdirAll(filepath.Join(dir, "b", "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	take(t, filepath.Join(dir, "b", "c", "d"), 1<<20)
	if err := errors.Join(os.Symlink(elsewhere, filepath.Join(dir, "b", "link")), os.Symlink(filepath.Join(elsewhere, "x"), filepath.Join(dir, "x")),
		os.Truncate(take(t, filepath.Join(dir, "sparse"), 4096).Name(), 1<<40)); err != nil {
		t.Fatal(err)
	}
	if bytes, files, err := takenBelow(dir); err != nil || files != 8 || bytes < 2<<20 || bytes > 2<<20+64<<10 {
		t.Errorf("%d bytes in %d files, %v", bytes, files, err)
	}

	me := []int{os.Getpid()}
	before, _, err := takenUnnamed(me)
	if err != nil {
		t.Fatal(err)
	}
	f := take(t, filepath.Join(dir, "gone"), 3<<20)
	memory, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	for _, state := range []string{"open", "in memory only"} {
		if err := os.Remove(f.Name()); err != nil && state == "open" {
			t.Fatal(err)
		}
		if now, _, err := takenUnnamed(me); err != nil || now-before < 3<<20 || now-before > 3<<20+64<<10 {
			t.Errorf("%s: %d bytes more, %v", state, now-before, err)
		}
		_ = f.Close()
	}
	if _, _, err := takenUnnamed([]int{1 << 30}); err != nil {
		t.Errorf("of a process that has ended: %v", err)
	}

	for i := range maxOwnFiles + 1 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, files, err := takenBelow(dir); err != nil || files != maxOwnFiles+1 {
		t.Errorf("%d files, %v", files, err)
	}
}

// TestOvergrown: a plane that fills its folder, whatever it says, is stopped until somebody
// has looked.
func TestOvergrown(t *testing.T) {
	cfg := newConfig(t, newNamespace(t))
	cfg.Datastore.MaxBytes = 64 << 20
	grow := func(p *Plane) (filler string) {
		filler = p.path(ownFolder, "filler")
		take(t, filler, p.mayTake()+1<<20)
		return filler
	}
	p := New(cfg)
	p.spare, p.lookEvery = 32<<20, 50*time.Millisecond
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- p.Run(ctx, sync.OnceFunc(func() { close(ready) }), nil) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "it says what it takes", func(context.Context) error {
		if used, _, err := p.Room(); err != nil || used == 0 {
			return fmt.Errorf("%d, %v", used, err)
		}
		return nil
	})
	filler := grow(p)
	if err := <-ended; !errors.Is(err, ErrOvergrown) {
		t.Fatalf("ended with %v", err)
	}
	if used, _, err := p.Room(); err != nil || used < 90<<20 {
		t.Errorf("%d MiB counted, %v", used>>20, err)
	}

	// It stays stopped, and what is there stays: nobody knows whose it is.
	again := New(cfg)
	again.spare = p.spare
	if err := again.Run(t.Context(), func() {}, nil); !errors.Is(err, ErrOvergrown) {
		t.Errorf("with the file: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Error(err)
	}
	if err := again.look(); err != nil {
		t.Error(err)
	}
	// A log that is too large is cut at a start, but not when it is too large for that too: that
	// keeps the plane from starting, and stays.
	log := again.path(databaseFile + "-wal")
	if err := os.Remove(log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	take(t, log, again.mayTake()+1<<20)
	if err := again.look(); err != nil {
		t.Errorf("with a log that a start cuts: %v", err)
	}
	again.isReady.Store(true)
	if err := again.look(); !errors.Is(err, ErrOvergrown) {
		t.Errorf("with a log that was to be cut: %v", err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	take(t, log, 2*again.mayTake()+1<<20)
	if err := again.Run(t.Context(), func() {}, nil); !errors.Is(err, ErrOvergrown) {
		t.Errorf("with a database that is too large: %v", err)
	}
}

// TestLimitIsLowered: what was within the limit then keeps no plane from running, and no
// name makes a file one that is removed.
func TestLimitIsLowered(t *testing.T) {
	dir := t.TempDir()
	at := func(limit int64) *Plane {
		p := New(Config{Dir: dir, UID: os.Getuid(), Datastore: Datastore{MaxBytes: limit}})
		p.spare = 1 << 20
		if err := p.makeFolders(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	start := func(p *Plane) error {
		if err := p.noteLimit(); err != nil {
			return err
		}
		return p.look()
	}
	p := at(16 << 20)
	if err := start(p); err != nil {
		t.Fatal(err)
	}
	take(t, p.path(databaseFile), 16<<20)
	take(t, p.path(databaseFile+".old"), 4<<20)
	for range 2 { // and once more: it is not forgotten
		if err := start(at(4 << 20)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(p.path(databaseFile + ".old")); err != nil {
		t.Error(err)
	}
	more := take(t, p.path(ownFolder, "more"), 8<<20)
	if err := start(at(4 << 20)); !errors.Is(err, ErrOvergrown) {
		t.Errorf("with more than it could ever have: %v", err)
	}
	if err := start(at(32 << 20)); err != nil {
		t.Errorf("raised: %v", err)
	}
	if _, err := os.Stat(more.Name()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(p.path(limitFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(at(4 << 20)); err == nil {
		t.Error("a damaged limit counts for none")
	}
}

// TestAChildHoldsFiles: what another process of the plane's group holds counts.
func TestAChildHoldsFiles(t *testing.T) {
	group := fmt.Sprintf("mptest-plane-%d", os.Getpid())
	p := New(Config{Dir: t.TempDir(), Cgroup: group, Datastore: Datastore{MaxBytes: 4 << 20}})
	p.spare = 1 << 20
	if err := p.makeFolders(); err != nil {
		t.Fatal(err)
	}
	held := take(t, p.path(ownFolder, "held"), 16<<20).Name()
	forks := child.New(child.Config{
		Name: "forks", Path: "/bin/sh", Dir: p.cfg.Dir, Cgroup: group,
		Args: []string{"-c", "exec 3<" + held + "; setsid sleep 1000 <&3 & exec 3<&-; rm " + held + "; touch ready; exec sleep 1000 </dev/null"},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- forks.Run(ctx, func() {}, nil) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ended, cgroup.Kill(context.Background(), group)); err != nil {
			t.Error(err)
		}
		if err := p.look(); err != nil {
			t.Errorf("once they have ended: %v", err)
		}
	}()
	wait.For(t, wait.Patience, "the name is gone", func(context.Context) error {
		_, err := os.Stat(p.path("ready"))
		return err
	})
	if err := p.look(); !errors.Is(err, ErrOvergrown) {
		t.Errorf("a child holds four times the limit: %v", err)
	}
	if pids, err := p.pids(); err != nil || len(pids) != 2 || slices.Contains(pids, os.Getpid()) {
		t.Errorf("processes %v, %v", pids, err)
	}
}
