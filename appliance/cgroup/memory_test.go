package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

// TestBoundOf: the lowest bound on the way to the root counts, of either version.
func TestBoundOf(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for file, text := range map[string]string{
		"memory.limit_in_bytes":             "9223372036854771712",
		"a/memory.max":                      "3000",
		"a/memory.high":                     "max",
		"a/b/memory.max":                    "max",
		"a/b/memory.high":                   "2000",
		"a/b/c/memory.max":                  "5000",
		"x/memory.max":                      "nonsense",
		"system.slice/multipaas/memory.max": "0",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(file)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const none = math.MaxInt64 / 4096 * 4096
	for group, want := range map[string]int64{"/a": 3000, "/a/b": 2000, "a/b/c": 2000, "/": none, "": none, "/x": none, "/gone/long/ago": none, "/system.slice/multipaas": none} {
		if got := boundOf(root, group); got != want {
			t.Errorf("%s: got %d, want %d", group, got, want)
		}
	}
	if n, err := MemoryBound(); err != nil || n < 64<<20 {
		t.Errorf("of this process: %d, %v", n, err)
	}
}
