package balancer

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestStorage(t *testing.T) {
	etcd := storetest.Start(t)
	s := newStorage(etcd.Client, "/test")
	ctx := t.Context()
	for _, key := range []string{"a/b/c.txt", "a/b/d.txt", "a/bc/e.txt", "f"} {
		if err := s.Store(ctx, key, []byte("content of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Store(ctx, "f", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(ctx, "f"); err != nil || string(got) != "new" {
		t.Errorf("Load: got %q %v, want new", got, err)
	}
	for _, key := range []string{"a", "a/b", "g", "a/b/c.txt/x", ""} {
		if got, err := s.Load(ctx, key); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load %q: got %q %v, want fs.ErrNotExist", key, got, err)
		}
	}
	for key, want := range map[string]bool{"a": true, "a/b": true, "a/b/c.txt": true, "f": true, "a/x": false, "a/b/c": false, "F": false} {
		if got := s.Exists(ctx, key); got != want {
			t.Errorf("Exists %q: got %v, want %v", key, got, want)
		}
	}
	info, err := s.Stat(ctx, "f")
	if err != nil || !info.IsTerminal || info.Size != 3 || info.Key != "f" || time.Since(info.Modified) > time.Minute {
		t.Errorf("Stat of a file: got %+v %v", info, err)
	}
	if info, err := s.Stat(ctx, "a/b"); err != nil || info.IsTerminal {
		t.Errorf("Stat of a folder: got %+v %v", info, err)
	}
	if _, err := s.Stat(ctx, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of nothing: got %v, want fs.ErrNotExist", err)
	}
	for _, c := range []struct {
		dir       string
		recursive bool
		want      []string
	}{
		{"", false, []string{"a", "f"}},
		{"a", false, []string{"a/b", "a/bc"}},
		{"a/b", false, []string{"a/b/c.txt", "a/b/d.txt"}},
		{"a", true, []string{"a/b", "a/b/c.txt", "a/b/d.txt", "a/bc", "a/bc/e.txt"}},
	} {
		if got, err := s.List(ctx, c.dir, c.recursive); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("List %q %v: got %v %v, want %v", c.dir, c.recursive, got, err, c.want)
		}
	}
	if _, err := s.List(ctx, "none", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing: got %v, want fs.ErrNotExist", err)
	}
	if err := s.Delete(ctx, "a/b"); err != nil {
		t.Fatal(err)
	}
	if s.Exists(ctx, "a/b") || !s.Exists(ctx, "a/bc/e.txt") {
		t.Error("Delete of a folder took too little or too much")
	}
	if err := s.Delete(ctx, "a/b"); err != nil {
		t.Errorf("Delete again: got %v, want nil", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Store(gone, "x", nil); err == nil {
		t.Error("Store with a context that is done: got nil, want an error")
	}
}

func TestStorageLocks(t *testing.T) {
	etcd := storetest.Start(t)
	// Two servers that share one etcd.
	a, b := newStorage(etcd.Client, "/test"), newStorage(etcd.Client, "/test")
	ctx := t.Context()
	if err := a.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := b.Lock(ctx, "y"); err != nil {
		t.Errorf("Lock of another name: %v", err)
	}
	for name, s := range map[string]*storage{"same server": a, "other server": b} {
		if ok, err := s.TryLock(ctx, "x"); ok || err != nil {
			t.Errorf("TryLock by the %s: got %v %v, want false", name, ok, err)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := s.Lock(short, "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock by the %s: got %v, want a deadline", name, err)
		}
		cancel()
	}
	got := make(chan error)
	go func() { got <- b.Lock(ctx, "x") }()
	if err := a.Unlock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("Lock after Unlock: %v", err)
	}
	if err := a.Unlock(ctx, "x"); err == nil {
		t.Error("Unlock of what another server holds: got nil, want an error")
	}
	if err := b.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
	if err := b.Unlock(ctx, "y"); err != nil {
		t.Error(err)
	}

	// Many at once: never two inside.
	var inside, most int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 12 {
		s := []*storage{a, b}[i%2]
		wg.Go(func() {
			if err := s.Lock(ctx, "z"); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			mu.Unlock()
			mu.Lock()
			inside--
			mu.Unlock()
			if err := s.Unlock(ctx, "z"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("inside the lock at once: got %d, want 1", most)
	}
	// One that was granted when its asker had gone ends by itself, after 15 s.
	wait.True(t, wait.Patience, "no leases are left", func() bool {
		resp, err := etcd.Client.Leases(ctx)
		return err == nil && len(resp.Leases) == 0
	})
}
