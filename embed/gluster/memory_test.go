package gluster

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMemory: a host without storage gives nothing up for it, one that mounts only no more than mounts take.
func TestMemory(t *testing.T) {
	h := NewHost(HostConfig{Dir: filepath.Join(t.TempDir(), "data")})
	for _, row := range []struct {
		folder string
		want   int64
	}{
		{"", 0},
		{"clients/v1.m1", mountMemory},
		{"clients/v1.m2", 2 * mountMemory},
		{"lib", 2*mountMemory + serverMemory},
		{"bricks/b1", 2*mountMemory + serverMemory + brickMemory},
	} {
		if err := os.MkdirAll(h.at(row.folder), 0o700); err != nil {
			t.Fatal(err)
		}
		if got, err := h.Memory(); err != nil || got != row.want {
			t.Errorf("with %q it is %d, %v, want %d", row.folder, got, err, row.want)
		}
	}
}
