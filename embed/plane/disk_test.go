package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

	before, err := takenUnnamed(os.Getpid())
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
		if now, err := takenUnnamed(os.Getpid()); err != nil || now-before < 3<<20 || now-before > 3<<20+64<<10 {
			t.Errorf("%s: %d bytes more, %v", state, now-before, err)
		}
		_ = f.Close()
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

// TestOvergrown: a plane that fills its folder, whatever it says, is stopped, and begins
// without what it filled it with.
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

	again := New(cfg)
	again.spare = p.spare
	if err := again.sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filler); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
	if _, err := os.Stat(again.path(databaseFile)); err != nil {
		t.Error(err)
	}
	// A database that is too large keeps it from starting, and stays.
	take(t, again.path(databaseFile+"-wal"), again.mayTake()+1<<20)
	if err := again.Run(t.Context(), func() {}, nil); !errors.Is(err, ErrOvergrown) {
		t.Errorf("with a database that is too large: %v", err)
	}
}
