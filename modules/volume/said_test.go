package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// TestSaid: what tenants read has no path of the host; its log has all of it, once.
func TestSaid(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	h := newHost(filepath.Join(dir, "pool"), filepath.Join(dir, "machines"), "")
	h.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	if err := os.WriteFile(filepath.Join(dir, "pool"), nil, 0o600); err != nil { // where there should be a folder
		t.Fatal(err)
	}
	for range 2 {
		err := h.Ensure(t.Context(), testVolume(1<<30))
		if !errors.Is(err, unix.ENOTDIR) || strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), operators) {
			t.Errorf("got %v", err)
		}
	}
	if n := strings.Count(log.String(), dir); n == 0 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("the log has %q", log.String())
	}
	if err := h.outward("x", &os.PathError{Op: "write", Path: dir, Err: unix.ENOSPC}); !strings.Contains(err.Error(), "is full") {
		t.Errorf("of a full disk: %v", err)
	}
	last, ok := errors.AsType[lasting](h.outward("x", errors.Join(lasting{saidf("in words")}, errors.New(dir))))
	if !ok || !last.Lasting() || last.Error() != "in words" {
		t.Errorf("what comes again is not known for that: %v", last)
	}
	if err := h.outward("x", errors.Join(saidf("in words"), errors.New(dir))); err.Error() != "x: in words" {
		t.Errorf("of one in words: %v", err)
	}
	for range 2 * maxTold {
		_ = h.said("x", errors.New(strings.Repeat("x", len(h.told))))
	}
	if len(h.told) > maxTold {
		t.Errorf("%d errors are remembered", len(h.told))
	}
}

// TestNoLoop: a host that has no loop device free for a volume says so, has made nothing of it that is wrong, and makes it once
// there is one. What has one already goes on.
func TestNoLoop(t *testing.T) {
	r := newRig(t)
	r.ensure(300 * mib)
	r.write("file", "kept")
	other := testVolume(300 * mib)
	other.UID = "0a1b-other"
	disk := r.place(other.UID).image()
	t.Cleanup(func() {
		if err := errors.Join(hostmount.Unmount(disk.Mount), diskimage.AwaitFree(context.Background(), disk.File)); err != nil {
			t.Error(err)
		}
	})
	const control = "/dev/loop-control"
	r.must(unix.Mount("/dev/null", control, "", unix.MS_BIND, "")) // in the tests' own mounts
	err := r.Ensure(t.Context(), other)
	r.must(unix.Unmount(control, 0))
	if !errors.Is(err, diskimage.ErrNoLoop) || !strings.Contains(err.Error(), "as many disks mounted as it can") || strings.Contains(err.Error(), "/dev") {
		t.Errorf("without a loop device: %v", err)
	}
	r.reads("file", "kept")
	r.must(r.Ensure(t.Context(), other))
	if all, err := r.List(); err != nil || len(all) != 2 || !all[0].Ready || !all[1].Ready {
		t.Errorf("listed %+v, %v", all, err)
	}
	// What the kernel says when all numbers are taken is not that the pool is full.
	if err := r.outward("x", fmt.Errorf("%w: %w", diskimage.ErrNoLoop, unix.ENOSPC)); strings.Contains(err.Error(), "is full") {
		t.Errorf("of no loop device: %v", err)
	}
}
