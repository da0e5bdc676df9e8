package volume

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
