package diskimage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestNeighbours: who writes to an image as fast as he can has a share of the disk, and others on it have theirs: their fsync
// takes three times as long at most, in 99 of 100 cases.
func TestNeighbours(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("half a minute: MULTIPAAS_LONG=1 runs it")
	}
	root, dir := debian(t), t.TempDir()
	quiet := newImage(t, dir, "quiet").must(t, 320*mib, root)
	loud := newImage(t, dir, "loud").must(t, 2<<30, root)
	var alone, beside []time.Duration
	for range 3 { // in turns, for others use the disk as well
		alone = append(alone, syncs(t, quiet.Mount)...)
		written := writes(t, loud.Mount, func() { beside = append(beside, syncs(t, quiet.Mount)...) })
		t.Logf("p99 alone %v, beside %v, %d MiB written", p99(alone), p99(beside), written)
	}
	// Below 25 ms it is the disk's own noise.
	if most := 3 * max(p99(alone), 25*time.Millisecond); p99(beside) > most {
		t.Errorf("beside who writes a lot fsync takes %v, want at most %v", p99(beside), most)
	}
}

// shares checks that an image that is mounted has a share of the disk.
func (d Image) shares(t *testing.T) {
	t.Helper()
	devices, err := loopsOf(d.File)
	if err != nil || len(devices) != 1 {
		t.Fatalf("its devices are %v: %v", devices, err)
	}
	for name, want := range map[string]string{"nr_requests": maxRequests, "max_sectors_kb": maxRequestKiB} {
		got, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(devices[0]), "queue", name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, want %s: %v", name, got, want, err)
		}
	}
}

func p99(of []time.Duration) time.Duration {
	of = slices.Sorted(slices.Values(of))
	return of[len(of)*99/100]
}

// syncs writes a block and has it be on the disk, for some seconds, and returns what that took each time.
func syncs(t *testing.T, dir string) (took []time.Duration) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "small"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for end, i := time.Now().Add(4*time.Second), int64(0); time.Now().Before(end); i++ {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, 4096), i%1024*4096); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
		<-tick.C
	}
	return took
}

// writes has 64 writers write MiB after MiB past the page cache while what is done, and returns how many.
func writes(t *testing.T, dir string, while func()) (written int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "large"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	room := make([]byte, 2*mib)
	block := room[-uintptr(unsafe.Pointer(&room[0]))%mib:][:mib] // where direct I/O may read
	var next atomic.Int64
	var stop atomic.Bool
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for !stop.Load() {
				if _, err := f.WriteAt(block, next.Add(1)%1024*mib); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
					return
				}
			}
		})
	}
	while()
	stop.Store(true)
	all.Wait()
	return next.Load()
}
