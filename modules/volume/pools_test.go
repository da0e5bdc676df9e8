package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/loopdisk"
)

const poolUID = "11111111-2222-4333-8444-555555555555"

// plugged is a disk by the name that it has now.
type plugged struct {
	name string
	held *os.File
}

// plug has a file be a disk of the host, under whatever name is free.
func plug(t *testing.T, file string) plugged {
	t.Helper()
	held, err := loopdisk.Plug(file)
	if err != nil {
		t.Fatal(err)
	}
	return plugged{held.Name(), held}
}

// hangs has the disk of a pool hang while it is asked whether its files can share blocks: nobody else is kept waiting.
func (r *rig) hangs(at string) {
	r.t.Helper()
	const freeze, thaw = 0xc004_5877, 0xc004_5878 // FIFREEZE and FITHAW of linux/fs.h
	p := r.all()[1]
	p.reflink = nil
	disk, err := os.Open(at)
	r.must(err)
	defer disk.Close()
	r.must(unix.IoctlSetInt(int(disk.Fd()), freeze, 0))
	answer := p.asking.begin(func() (room, error) { return r.roomIn(p) })
	for waits := false; !waits; { // a thread that waits for a disk is in state D
		stats, err := filepath.Glob("/proc/self/task/*/stat")
		r.must(err)
		for _, file := range stats {
			stat, _ := os.ReadFile(file)
			waits = waits || strings.Contains(string(stat), ") D ")
		}
	}
	done := make(chan struct{})
	go func() {
		r.know(p.want)
		r.isLost(poolUID)
		r.all()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		r.t.Error("a disk that hangs holds up who asks nothing of it")
	}
	r.must(unix.IoctlSetInt(int(disk.Fd()), thaw, 0))
	<-answer.done
	<-done
	if !answer.value.reflink {
		r.t.Errorf("it says %+v, %v", answer.value, answer.err)
	}
}

// TestPools: a disk becomes a pool only if it holds nothing, or its serial number is typed; it is found again under another name,
// and while it is away nothing takes its place.
func TestPools(t *testing.T) {
	r := newRig(t)
	dir := filepath.Dir(r.cfg.Dir)
	r.cfg.Pools, r.cfg.Others = filepath.Join(dir, "pools"), []string{filepath.Join(dir, "data")}
	file := filepath.Join(dir, "disk")
	r.must(errors.Join(os.WriteFile(file, []byte("somebody's"), 0o600), os.Truncate(file, 2<<30)))
	d := plug(t, file)
	want := wire.Pool{NodePool: resource.NodePool{Name: "fast", UID: poolUID, Device: d.name}}
	at := filepath.Join(r.cfg.Pools, poolUID)
	refused := func(text string) {
		t.Helper()
		if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v; want it to say %q", err, text)
		}
		if now := r.Pools([]wire.Pool{want}); len(now) != 2 || !strings.Contains(now[1].Message, text) || now[1].Made {
			t.Errorf("it is told of %+v", now)
		}
	}
	refused("holds something that is not known here: to destroy that, add it again with --erase " + d.name)
	// Consent to erase it is for one try: neither that it is free later nor a restart has it erased then.
	added := func(uid, erase string) { want.UID, want.Erase = uid, erase }
	added("11111111-2222-4333-8444-555555555551", "other")
	refused("and not other: nothing was changed")
	added("11111111-2222-4333-8444-555555555552", d.name)
	excl, err := os.OpenFile(d.name, os.O_RDONLY|unix.O_EXCL, 0)
	r.must(err)
	refused("is in use")
	refused("adding it again with --erase gives it anew")
	r.must(excl.Close())
	refused("holds something that is not known here")
	r.Host = newHost(r.cfg.Dir, r.cfg.Machines, debian(t))
	r.cfg.Pools, r.cfg.Others = filepath.Join(dir, "pools"), []string{filepath.Join(dir, "data")}
	if now := r.Pools([]wire.Pool{want}); len(now) != 1 {
		t.Errorf("before it has looked it says %+v", now)
	}
	refused("holds something that is not known here")
	if now := r.Pools([]wire.Pool{want}); !now[1].Tried {
		t.Error("it doesn't say that it was tried")
	}
	added(poolUID, d.name)
	v := testVolume(300 * mib)
	v.Pool = poolUID
	if err := r.Ensure(t.Context(), v); err == nil || strings.Contains(err.Error(), dir) {
		t.Errorf("a volume in a pool that isn't there: %v", err)
	}

	r.must(r.EnsurePool(t.Context(), want))
	r.must(r.EnsurePool(t.Context(), want))
	if now := r.Pools([]wire.Pool{want})[1]; now.Message != "" || !now.Made || !now.Reflink || now.Device != d.name || now.CapacityBytes != 1<<30 {
		t.Errorf("it is told of %+v", now)
	}
	r.hangs(at)
	r.must(r.Ensure(t.Context(), v))
	r.must(os.WriteFile(filepath.Join(at, testUID, "mount", "file"), []byte("kept"), 0o600))
	copied := testSnapshot
	copied.Pool = poolUID
	r.must(r.Ensure(t.Context(), copied))
	if got, err := r.List(); err != nil || len(got) != 2 || !got[0].Ready || !got[1].Ready {
		t.Errorf("listed %+v, %v", got, err)
	}
	if err := r.RemovePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), "2 volumes are in") {
		t.Errorf("one with volumes is let go of: %v", err)
	}

	// A reboot, after which the disk is away, and then there under another name.
	reboot := func() {
		t.Helper()
		r.must(errors.Join(hostmount.Unmount(at), d.held.Close()))
		r.Host = newHost(r.cfg.Dir, r.cfg.Machines, debian(t))
		r.cfg.Pools, r.cfg.Others = filepath.Join(dir, "pools"), []string{filepath.Join(dir, "data")}
	}
	reboot()
	other := filepath.Join(dir, "other")
	r.must(errors.Join(os.WriteFile(other, nil, 0o600), os.Truncate(other, 2<<30)))
	stranger := plug(t, other)
	defer stranger.held.Close()
	want.Device = stranger.name
	if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), "is away") {
		t.Errorf("while it is away: %v", err)
	}
	s, err := disk.Open(stranger.name)
	r.must(err)
	hung := &asker[string]{last: &answer[string]{done: make(chan struct{})}} // asked for long ago
	r.disks = map[disk.Device]*asker[string]{s: hung}
	began := time.Now()
	if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), stranger.name+": it has not answered since") || time.Since(began) > lookTime {
		t.Errorf("while a disk hangs: %v, after %v", err, time.Since(began))
	}
	r.disks = nil
	v.Made = true
	for what, err := range map[string]error{"made": r.Ensure(t.Context(), v), "removed": r.Remove(t.Context(), v), "kept": r.Keep(t.Context(), v)} {
		if err == nil || !strings.Contains(err.Error(), poolTrouble) {
			t.Errorf("%s while it is away: %v", what, err)
		}
	}
	if got, err := r.List(); len(got) != 0 || err == nil {
		t.Errorf("listed %+v, %v", got, err)
	}
	if told := r.Troubles(); len(told) != 2 || told[1].Away == nil || told[1].Pool != at || told[0].Away != nil {
		t.Errorf("it is told of %+v", told)
	}
	if s, err := disk.Open(stranger.name); err != nil {
		t.Error(err)
	} else if what, err := s.Holds(); what != "" || err != nil {
		t.Errorf("a disk that has its name by now holds %s, %v", what, err)
	}
	d = plug(t, file)
	r.must(r.EnsurePool(t.Context(), want))
	r.must(r.Ensure(t.Context(), v))
	if data, err := os.ReadFile(filepath.Join(at, testUID, "mount", "file")); string(data) != "kept" {
		t.Errorf("in the volume there is %q, %v", data, err)
	}
	// Its file system stops, while somebody has a volume on it open.
	open, err := os.Open(filepath.Join(at, testUID, "mount", "file"))
	r.must(err)
	r.must((diskimage.Image{Mount: at}).ShutDown())
	if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), "delete the pods") {
		t.Errorf("it has stopped: %v", err)
	}
	r.must(open.Close())
	for i := 0; i < 1000 && r.EnsurePool(t.Context(), want) != nil; i++ { // the kernel frees the device a moment later
		runtime.Gosched()
	}
	r.must(r.EnsurePool(t.Context(), want))
	r.must(r.Ensure(t.Context(), v))
	if data, err := os.ReadFile(filepath.Join(at, testUID, "mount", "file")); string(data) != "kept" {
		t.Errorf("in the volume there is %q, %v", data, err)
	}
	twin := plug(t, file)
	reboot()
	again := plug(t, file)
	if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), "one is a copy") {
		t.Errorf("two disks are one: %v", err)
	}
	twin.held.Close()
	again.held.Close()

	// A process that is killed before its mark is there leaves a file system that is nobody's.
	d = plug(t, file)
	r.must(r.EnsurePool(t.Context(), want))
	r.must(errors.Join(r.Remove(t.Context(), v), r.Remove(t.Context(), copied)))
	r.must(errors.Join(os.Remove(filepath.Join(at, markName)), os.Remove(r.knownFile(poolUID))))
	r.must(r.EnsurePool(t.Context(), want))
	r.must(r.RemovePool(t.Context(), want))
	r.must(r.RemovePool(t.Context(), want))
	left, err := os.ReadDir(r.cfg.Pools)
	if _, known := os.Stat(r.knownFile(poolUID)); err != nil || len(left) > 0 || known == nil || len(r.Pools(nil)) != 1 {
		t.Errorf("it has left %v, %v", left, err)
	}
	d.held.Close()

	// One that is lost: what was on it can be deleted, and nothing else done with it.
	want.Made, want.Removing, want.Lost = true, true, true
	r.must(r.RemovePool(t.Context(), want))
	if err := r.Ensure(t.Context(), v); err == nil || !strings.Contains(err.Error(), "lost with the disk") {
		t.Errorf("made on a disk that is lost: %v", err)
	}
	r.must(r.Remove(t.Context(), v))
}

// TestPoolFolder: a folder becomes a pool if it is an empty one of root's, on a file system that has none yet.
func TestPoolFolder(t *testing.T) {
	r := newRig(t)
	dir := filepath.Dir(r.cfg.Dir)
	r.cfg.Pools, r.cfg.Others = filepath.Join(dir, "pools"), []string{filepath.Join(dir, "data")}
	at := filepath.Join(dir, "srv")
	want := wire.Pool{NodePool: resource.NodePool{Name: "srv", UID: poolUID, Path: at}}
	refused := func(text string) {
		t.Helper()
		if err := r.EnsurePool(t.Context(), want); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v; want it to say %q", err, text)
		}
	}
	refused("make it first")
	r.must(os.Mkdir(at, 0o700))
	refused("whose room would be promised twice")
	r.must(unix.Mount(at, at, "", unix.MS_BIND, ""))
	r.must(unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := writable(at); !errors.Is(err, unix.EROFS) {
		t.Errorf("where nobody can write: %v", err)
	}
	t.Setenv(hostmount.Variable, fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid())) // TestMain's, who sees no such mount
	if err := writable(at); err == nil || !strings.Contains(err.Error(), "add ReadWritePaths=-"+at) {
		t.Errorf("where the service can't write: %v", err)
	}
	t.Setenv(hostmount.Variable, "")
	r.must(unix.Unmount(at, 0))
	r.must(unix.Mount("tmpfs", at, "tmpfs", 0, "size=100m,mode=0777"))
	refused("others than root can write")
	r.must(os.Chmod(at, 0o700))
	refused("would not survive a reboot")
	want.Path = filepath.Join(dir, "data", "pool")
	r.must(os.MkdirAll(want.Path, 0o700))
	r.forget(poolUID)
	refused("which the platform keeps itself")
	r.must(hostmount.Unmount(at))

	file := filepath.Join(dir, "disk")
	r.must(errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<30)))
	d := plug(t, file)
	defer d.held.Close()
	device, err := disk.Open(d.name)
	r.must(err)
	r.must(r.format(t.Context(), device, poolUID))
	r.must(unix.Mount(d.name, at, "xfs", 0, ""))
	want.Path = at
	r.forget(poolUID)
	r.must(os.WriteFile(filepath.Join(at, "letter"), nil, 0o600))
	refused("is not empty")
	r.must(os.Remove(filepath.Join(at, "letter")))
	r.must(r.EnsurePool(t.Context(), want))
	r.must(hostmount.Unmount(at))
	refused("is away; nothing is made anew")
	r.must(unix.Mount(d.name, at, "xfs", 0, ""))
	r.must(r.EnsurePool(t.Context(), want))
	r.must(r.RemovePool(t.Context(), want))
	if left, err := os.ReadDir(at); err != nil || len(left) > 0 {
		t.Errorf("it has left %v, %v", left, err)
	}
}
