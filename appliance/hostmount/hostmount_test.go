package hostmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/thread"
)

// place is a mount namespace with a thread in it, until the test ends.
type place struct{ do chan func() }

// newPlace makes one below that of the calling place, or of this process.
func newPlace(t *testing.T, above *place, propagation uintptr) *place {
	t.Helper()
	p := &place{do: make(chan func())}
	made := make(chan error)
	go func() {
		_ = thread.Do(func() (clean bool, _ error) {
			err := unix.Unshare(unix.CLONE_FS)
			if err == nil && above != nil {
				var ns *os.File
				if ns, err = os.Open(above.file()); err == nil {
					err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS), ns.Close())
				}
			}
			err = errors.Join(err, unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""))
			if propagation != 0 {
				err = errors.Join(err, unix.Mount("", "/", "", unix.MS_REC|propagation, ""))
			}
			made <- err
			for fn := range p.do {
				fn()
			}
			return false, nil
		})
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(p.do) })
	return p
}

// in runs fn in the place.
func (p *place) in(fn func()) {
	done := make(chan struct{})
	p.do <- func() { fn(); close(done) }
	<-done
}

// file stands for the place's mount namespace.
func (p *place) file() (name string) {
	p.in(func() { name = fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()) })
	return name
}

func (p *place) mounted(t *testing.T, dir string) (yes bool) {
	t.Helper()
	p.in(func() {
		infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
		if err != nil {
			t.Error(err)
		}
		yes = len(infos) > 0
	})
	return yes
}

// TestUnit: what is mounted by Do is there for the host and for the unit, though it
// is given the host's files read-only and a folder of its own to write to, and
// outlives the unit.
func TestUnit(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "inside")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	host := newPlace(t, nil, unix.MS_SHARED)
	unit := newPlace(t, host, 0)
	unit.in(func() { // as ReadWritePaths= does
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Error(err)
		}
	})
	t.Setenv(Variable, host.file())

	if err := Do(func() error { return unix.Mount("tmpfs", inside, "tmpfs", 0, "size=64k") }); err != nil {
		t.Fatal(err)
	}
	later := newPlace(t, host, 0)
	for name, p := range map[string]*place{"host": host, "unit": unit, "next unit": later} {
		if !p.mounted(t, inside) {
			t.Errorf("the %s does not see what was mounted", name)
		}
	}
	if err := Do(func() error { return unix.Unmount(inside, unix.UMOUNT_NOFOLLOW) }); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*place{"host": host, "unit": unit, "next unit": later} {
		if p.mounted(t, inside) {
			t.Errorf("the %s still sees what was unmounted", name)
		}
	}
}

// TestUnmount: all that is mounted at a folder and below it goes for all of the host, one
// above another, and where a file is open; what is beside it stays.
func TestUnmount(t *testing.T) {
	dir := t.TempDir()
	host := newPlace(t, nil, unix.MS_SHARED)
	t.Setenv(Variable, host.file())
	beside, inside := filepath.Join(dir, "volumes-1"), filepath.Join(dir, "volumes")
	below := filepath.Join(inside, "below")
	mount := func(at string) {
		t.Helper()
		err := Do(func() error {
			return errors.Join(os.MkdirAll(at, 0o700), unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []string{beside, inside, inside, below} {
		mount(at)
	}
	var held *os.File
	host.in(func() {
		var err error
		if held, err = os.Create(filepath.Join(below, "held")); err != nil {
			t.Error(err)
		}
	})
	defer held.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(inside, link); err != nil {
		t.Fatal(err)
	}
	if has, err := Has(link); !has || err != nil {
		t.Errorf("by a link it is mounted: %v, %v", has, err)
	}
	if found, err := Below(inside); err != nil || !slices.Equal(found, []string{below, inside, inside}) {
		t.Errorf("below %s: %v, %v", inside, found, err)
	}
	if err := Unmount(link); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]bool{inside: false, below: false, beside: true} {
		if got, err := Has(at); got != want || err != nil || host.mounted(t, at) != want {
			t.Errorf("%s is mounted: %v, %v, want %v", at, got, err, want)
		}
	}
	if err := Unmount(inside); err != nil {
		t.Errorf("nothing is mounted: %v", err)
	}
}

func TestSaysWhy(t *testing.T) {
	t.Setenv(Variable, "")
	if err := Check(); err != nil {
		t.Errorf("mounts that are the host's: %v", err)
	}
	wrong := errors.New("wrong")
	if err := Do(func() error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("got %v, want what fn returned", err)
	}
	for _, file := range []string{"/nonexistent", "/proc/self/ns/net"} {
		t.Setenv(Variable, file)
		if err := Do(func() error { t.Errorf("%s: fn was called", file); return nil }); err == nil {
			t.Errorf("%s: no error", file)
		}
	}
}

// TestThreadsAreLeftAlone: whoever comes to run on a thread that Do has used is where
// he was.
func TestThreadsAreLeftAlone(t *testing.T) {
	host := newPlace(t, nil, unix.MS_SHARED)
	t.Setenv(Variable, host.file())
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for range 50 {
		if err := Check(); err != nil {
			t.Fatal(err)
		}
		err := thread.Do(func() (clean bool, err error) {
			is, err := os.Readlink("/proc/thread-self/ns/mnt")
			seen = append(seen, is)
			return false, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if slices.ContainsFunc(seen, func(s string) bool { return s != ours }) {
		t.Errorf("new threads are in %s, want all in %s", slices.Compact(seen), ours)
	}
}
