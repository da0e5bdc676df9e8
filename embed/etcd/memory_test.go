package etcd

import (
	"runtime"
	"strings"
	"testing"
)

// TestLogInMemory: what was written a while ago is not kept in memory, however large
// it was and although it lies in the log still.
func TestLogInMemory(t *testing.T) {
	s, _ := run(t, testConfig(t))
	client := s.root(t)
	inUse := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before, large := inUse(), strings.Repeat("x", 1<<20)
	const writes = 85 // fewer than etcd waits for before it looks at its log
	for range writes {
		if _, err := client.Put(t.Context(), "/large", large); err != nil {
			t.Fatal(err)
		}
	}
	// And twice as much that is on its way to the disk.
	if more := inUse() - before; more > 3*logBytes {
		t.Errorf("after %d writes of 1 MiB, %d MiB more are in use", writes, more>>20)
	}
}
