package volume

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	mib       = 1 << 20
	testUID   = "0a1b-volume"
	testFirst = 0x20000000
)

func testVolume(size int64) wire.Volume {
	return wire.Volume{Key: "acme/web/shop/data", UID: testUID, NetworkID: "00002a", Class: "local", SizeBytes: size, FirstUID: testFirst}
}

var (
	unpacked   sync.Mutex
	unpackedTo string
	root       string
)

// debian is the machines' root file system, unpacked once.
func debian(t *testing.T) string {
	t.Helper()
	unpacked.Lock()
	defer unpacked.Unlock()
	if root == "" {
		payload := os.Getenv("MULTIPAAS_PAYLOAD")
		if payload == "" {
			payload, _ = filepath.Abs("../../dist/payload")
		}
		dir, err := os.MkdirTemp("", "mptest-volume-")
		if err != nil {
			t.Fatal(err)
		}
		unpackedTo = dir
		if root, err = (rootfs.Store{Dir: dir}).Unpack(t.Context(), filepath.Join(payload, "images", "machine")); err != nil {
			t.Fatalf("%v: build it with: make payload", err)
		}
	}
	return root
}

func newHost(dir, machines, root string) *Host {
	return New(Config{Dir: dir, Machines: machines, Mark: machines + ".mark",
		Tools: func(context.Context) (string, error) {
			if root == "" {
				return "", errors.New("no tools")
			}
			return root, nil
		},
		Encryption:  Encryption{Tools: func(context.Context) (string, error) { return "", errors.New("no tools") }},
		HostUser:    func(first uint32) (uint32, error) { return first, nil },
		MachineUser: func(string) (uint32, error) { return testFirst, nil },
		Log:         slog.New(slog.DiscardHandler)})
}

// rig is a host with volumes, and a place for machines.
type rig struct {
	*Host
	t *testing.T
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // who is another user passes
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{newHost(filepath.Join(dir, "pool"), filepath.Join(dir, "machines"), debian(t)), t}
	t.Cleanup(func() {
		if err := errors.Join(hostmount.Unmount(dir), diskimage.AwaitFree(context.Background(), r.disk().File)); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) disk() diskimage.Image { return r.place(testUID).image() }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ensure(size int64) {
	r.t.Helper()
	r.must(r.Ensure(r.t.Context(), testVolume(size)))
}

// seen is the one volume there is.
func (r *rig) seen() wire.VolumeReport {
	r.t.Helper()
	all, err := r.List()
	if err != nil || len(all) != 1 {
		r.t.Fatalf("there are %+v, %v: want one", all, err)
	}
	return all[0]
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	r.must(atomicfile.Write(filepath.Join(r.disk().Mount, name), []byte(text), 0o600))
}

func (r *rig) reads(name, want string) {
	r.t.Helper()
	got, err := os.ReadFile(filepath.Join(r.disk().Mount, name))
	if err != nil || string(got) != want {
		r.t.Errorf("%s has %q, %v, want %q", name, got, err, want)
	}
}

// machine makes what modules/machine does for volumes.
func (r *rig) machine(uid string) {
	r.t.Helper()
	dir := r.shown(uid)
	r.must(os.MkdirAll(dir, 0o711))
	r.must(os.Chmod(filepath.Dir(dir), 0o711))
	r.must(os.Chmod(r.cfg.Machines, 0o711))
	r.must(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=64k,mode=750,uid=0,gid=%d", testFirst)))
	r.must(unix.Mount("", dir, "", unix.MS_SHARED, ""))
}

func (r *rig) wantAttached(want ...wire.VolumeAttachment) {
	r.t.Helper()
	all, err := r.Attached()
	if err != nil || len(all[testUID]) != len(want) || len(want) > 0 && all[testUID][0] != want[0] {
		r.t.Errorf("attached: %+v, %v, want %+v", all, err, want)
	}
}

// TestVolume: a volume has its size and its owner, grows while it is used, and is there as it was left.
func TestVolume(t *testing.T) {
	r := newRig(t)
	if err := r.Ensure(t.Context(), testVolume(299*mib)); err == nil {
		t.Error("a volume that is too small is made")
	}
	const odd = 320*mib + 1000 // as 1G would be
	r.ensure(odd)
	got := r.seen()
	if !got.Ready || got.Fallen || got.Key != "acme/web/shop/data" || got.NetworkID != "00002a" || got.SizeBytes != 321*mib || got.Message != "" {
		t.Errorf("%+v", got)
	}
	if got.UsedBytes <= 0 || got.UsedBytes > 32*mib {
		t.Errorf("used %d of %d", got.UsedBytes, got.SizeBytes)
	}
	var st unix.Stat_t
	r.must(unix.Stat(r.disk().Mount, &st))
	if st.Uid != testFirst || st.Gid != testFirst || st.Mode&0o7777 != 0o755 {
		t.Errorf("its root belongs to %d:%d, mode %o", st.Uid, st.Gid, st.Mode)
	}

	// What the tenant has made of it stays.
	r.must(errors.Join(os.Chown(r.disk().Mount, testFirst+999, testFirst+7), unix.Chmod(r.disk().Mount, 0o2770)))
	r.write("file", "kept")
	f, err := os.Open(filepath.Join(r.disk().Mount, "file"))
	r.must(err)
	defer f.Close()
	r.ensure(500 * mib)
	r.must(unix.Stat(r.disk().Mount, &st))
	if st.Uid != testFirst+999 || st.Gid != testFirst+7 || st.Mode&0o7777 != 0o2770 {
		t.Errorf("what the tenant did to its root is undone: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	var room unix.Statfs_t
	r.must(unix.Statfs(r.disk().Mount, &room))
	if size := int64(room.Blocks) * room.Bsize; size < 420*mib || r.seen().SizeBytes != 500*mib {
		t.Errorf("grown to %d MiB of %+v", size>>20, r.seen())
	}
	r.ensure(320 * mib) // is no error, and does nothing
	if got := r.seen(); got.SizeBytes != 500*mib || !got.Ready {
		t.Errorf("shrunk: %+v", got)
	}
	f.Close()

	// A reboot.
	r.must(hostmount.Unmount(r.cfg.Dir))
	if got := r.seen(); got.Ready || !got.Fallen || got.SizeBytes != 500*mib || got.NetworkID != "00002a" {
		t.Errorf("not mounted: %+v", got)
	}
	made := testVolume(500 * mib)
	made.Made = true
	r.must(r.Ensure(t.Context(), made))
	r.reads("file", "kept")

	// Whose record is lost is somebody's, of whom nobody knows.
	r.must(os.Remove(r.place(testUID).at(recordName)))
	if got := r.seen(); got.NetworkID != "" || got.Ready || got.Message == "" {
		t.Errorf("without a record: %+v", got)
	}
	r.must(r.Ensure(t.Context(), made))
	r.must(unix.Stat(r.disk().Mount, &st))
	if got := r.seen(); !got.Ready || st.Uid != testFirst+999 {
		t.Errorf("with a new record: %+v, owner %d", got, st.Uid)
	}

	kept, err := r.Leave()
	if mounted, _ := hostmount.Has(r.disk().Mount); err != nil || len(kept) != 1 || kept[0] != string(r.place(testUID)) || mounted {
		t.Errorf("left: %v, %v; mounted is %t", kept, err, mounted)
	}
	r.must(r.Ensure(t.Context(), made))
	r.reads("file", "kept")

	// The disk that the pool is on isn't mounted.
	r.must(hostmount.Unmount(r.cfg.Dir))
	pool := r.cfg.Dir
	r.must(os.Rename(pool, pool+".away"))
	for name, do := range map[string]func() error{
		"made":    func() error { return r.Ensure(t.Context(), testVolume(500*mib)) },
		"removed": func() error { return r.Remove(t.Context(), wire.Volume{UID: testUID}) },
		"listed":  func() error { _, err := r.List(); return err },
		"told":    func() error { return r.Troubles()[0].Away },
	} {
		if err := do(); !errors.Is(err, errAway) {
			t.Errorf("%s while the pool's disk is away: %v", name, err)
		}
	}
	if kept, err := r.Leave(); err != nil || len(kept) != 1 || len(r.Pools(nil)) != 1 || r.Pools(nil)[0].Message == "" {
		t.Errorf("left while the pool's disk is away: %v, %v, pools %+v", kept, err, r.Pools(nil))
	}
	if left, err := os.ReadDir(pool); err == nil && len(left) > 0 {
		t.Errorf("in its place there is %v", left)
	}
	r.must(errors.Join(os.RemoveAll(pool), os.Rename(pool+".away", pool)))

	// Its image alone is missing.
	r.must(os.Rename(r.disk().File, r.disk().File+".away"))
	if err := r.Ensure(t.Context(), made); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), pool) {
		t.Errorf("while its disk is away: %v", err)
	}
	r.must(os.Rename(r.disk().File+".away", r.disk().File))
	r.must(r.Ensure(t.Context(), made))
	r.reads("file", "kept")

	for range 2 {
		r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))
		if left, err := os.ReadDir(pool); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if _, err := os.Stat(r.cfg.Mark); err == nil {
			t.Error("the host knows a pool without volumes")
		}
	}
	for _, uid := range []string{"", "..", "a/b", "-x"} {
		if err := r.Remove(t.Context(), wire.Volume{UID: uid}); err == nil {
			t.Errorf("removed %q", uid)
		}
	}
}

// TestStopped: a file system that has shut itself down is told, and mounted anew with what was synced.
func TestStopped(t *testing.T) {
	r := newRig(t)
	r.machine("m1")
	r.ensure(300 * mib)
	r.write("file", "synced")
	r.must(r.Attach(testUID, "m1"))
	r.must(r.disk().ShutDown())
	r.must(r.disk().ShutDown())
	if got := r.seen(); got.Ready || !got.Fallen || !strings.Contains(got.Message, "has stopped") {
		t.Errorf("%+v", got)
	}
	r.ensure(300 * mib)
	r.reads("file", "synced")
	r.wantAttached()
	r.must(r.Attach(testUID, "m1"))
	r.wantAttached(wire.VolumeAttachment{MachineUID: "m1"})
	if got := r.seen(); !got.Ready {
		t.Errorf("%+v", got)
	}
}

// TestSilent: a file system that does not answer keeps nobody waiting, and is not asked twice.
func TestSilent(t *testing.T) {
	r := newRig(t)
	r.ensure(300 * mib)
	release := make(chan struct{})
	r.asked[testUID] = &asker[int64]{}
	silent := r.asked[testUID].begin(func() (int64, error) { <-release; return 0, nil })
	for _, most := range []time.Duration{2 * lookTime, lookTime / 2} {
		began := time.Now()
		if got := r.seen(); got.Ready || got.Fallen || !strings.Contains(got.Message, "has not answered") || time.Since(began) > most {
			t.Errorf("after %v: %+v", time.Since(began), got)
		}
	}
	close(release)
	<-silent.done
	if got := r.seen(); !got.Ready {
		t.Errorf("%+v", got)
	}

	// Nor does the pool's own disk.
	release = make(chan struct{})
	silentPool := r.own.asking.begin(func() (room, error) { <-release; return room{}, nil })
	silentToo := r.own.askPresent.begin(func() (none struct{}, err error) { <-release; return none, nil })
	for name, do := range map[string]func() error{
		"listed": func() error { _, err := r.List(); return err },
		"made":   func() error { return r.Ensure(t.Context(), testVolume(300*mib)) },
	} {
		if err := do(); !errors.Is(err, errSilent) {
			t.Errorf("%s while the pool does not answer: %v", name, err)
		}
	}
	close(release)
	<-silentPool.done
	<-silentToo.done
}

// inside is a shell in namespaces as a machine's are.
type inside struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newInside(t *testing.T) *inside {
	t.Helper()
	// It ends with its input. No Pdeathsig: that would follow the thread which forked, and threads end as
	// volumes are mounted (golang/go#27505).
	cmd := exec.Command("/bin/sh")
	users := []syscall.SysProcIDMap{{ContainerID: 0, HostID: testFirst, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: users,
		GidMappings: users,
		Credential:  &syscall.Credential{Uid: 0, Gid: 0},
	}
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i := &inside{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(i.end)
	return i
}

// end ends all in there.
func (i *inside) end() {
	i.in.Close()
	_ = i.cmd.Wait()
}

// run runs a command in there, and returns what it says and whether it went well.
func (i *inside) run(script string) (text string, ok bool) {
	i.t.Helper()
	fmt.Fprintf(i.in, "( %s\n) 2>&1; echo \" end $?\"\n", script)
	for {
		line, err := i.out.ReadString('\n')
		if err != nil {
			i.t.Fatalf("%s: the shell has ended: %v", script, err)
		}
		if before, code, end := strings.Cut(line, " end "); end {
			return strings.TrimSpace(text + before), strings.TrimSpace(code) == "0"
		}
		text += line
	}
}

func (i *inside) can(script, want string) {
	i.t.Helper()
	if got, ok := i.run(script); !ok || got != want {
		i.t.Errorf("%s: %q, %t, want %q", script, got, ok, want)
	}
}

func (i *inside) cannot(script string) {
	i.t.Helper()
	if got, ok := i.run(script); ok {
		i.t.Errorf("%s: done: %s", script, got)
	}
}

// TestAttach: what is attached appears in a machine that runs, as it shall be, and goes again; what
// root in there does stays in there.
func TestAttach(t *testing.T) {
	r := newRig(t)
	if err := r.Attach(testUID, "m1"); err == nil || !strings.Contains(err.Error(), "not mounted on this host") {
		t.Errorf("one that isn't there: %v", err)
	}
	r.machine("m1")
	// Before the volume is mounted: a machine has no other mounts of the host's.
	machine, volume := newInside(t), r.shown("m1", testUID)
	r.ensure(300 * mib)
	r.must(os.MkdirAll(filepath.Join(r.cfg.Machines, "m0"), 0o711)) // runs since before
	for range 2 {
		if err := r.Attach(testUID, "m0"); err == nil || !strings.Contains(err.Error(), "started anew") {
			t.Errorf("to a machine of before: %v", err)
		}
		r.must(os.MkdirAll(r.shown("m0"), 0o711)) // nor if there is a folder by chance
	}
	if err := r.Attach(testUID, "../m1"); err == nil {
		t.Error("attached somewhere else")
	}
	machine.can("ls "+r.shown("m1"), "")
	machine.cannot("mkdir " + r.shown("m1", "own"))
	r.must(r.Attach(testUID, "m1"))
	r.wantAttached(wire.VolumeAttachment{MachineUID: "m1"})
	machine.can("echo written >"+volume+"/file && cat "+volume+"/file", "written")
	r.reads("file", "written\n")
	machine.cannot("mknod " + volume + "/disk b 7 0")
	machine.cannot("mount -o remount,bind,dev " + volume)
	machine.cannot("ls " + r.cfg.Dir) // which has all volumes

	// What he mounts, and shares, reaches nobody.
	below := volume + "/below"
	machine.can("mkdir "+below+" && mount --make-rshared "+r.shown("m1")+" && mount -t tmpfs none "+below+" && mount --bind "+volume+" "+r.shown("m1"), "")
	for _, dir := range []string{r.shown("m1"), r.disk().Mount} {
		infos, err := hostmount.Below(dir)
		for _, at := range infos {
			if at != volume && at != dir || err != nil {
				t.Errorf("on the host there is %s, %v", at, err)
			}
		}
	}
	machine.can("umount "+r.shown("m1")+" && umount "+below+" && umount "+volume, "")
	r.wantAttached(wire.VolumeAttachment{MachineUID: "m1"})
	r.reads("file", "written\n")

	r.must(r.Detach(testUID, "m1"))
	r.must(r.Detach(testUID, "m1"))
	machine.cannot("cat " + volume + "/file")
	r.wantAttached()
	if left, err := os.ReadDir(r.shown("m1")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	// The machine goes while it has one, as modules/machine takes it away; what comes too late finds no place.
	r.must(r.Attach(testUID, "m1"))
	_, own, err := r.mountAt(r.disk().Mount)
	r.must(err)
	in, err := unix.Open(r.shown("m1"), unix.O_PATH|unix.O_DIRECTORY, 0)
	r.must(err)
	defer unix.Close(in)
	r.must(hostmount.Unmount(filepath.Join(r.cfg.Machines, "m1")))
	tree, err := clone(own, nil)
	r.must(err)
	if err := putHere(tree, fmt.Sprintf("/proc/self/fd/%d/.", in), testUID, unix.MOUNT_ATTR_NODEV); err == nil {
		t.Error("mounted where nobody is any more")
	}
	r.must(errors.Join(tree.Close(), os.Remove(r.shown("m1"))))
	r.reads("file", "written\n")
	r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))
}

// TestRemoveHeld: a volume goes also if root in a machine holds on to it, and its room at once.
func TestRemoveHeld(t *testing.T) {
	r := newRig(t)
	r.machine("m1")
	machine := newInside(t)
	r.ensure(300 * mib)
	r.must(r.Attach(testUID, "m1"))
	elsewhere := filepath.Join(r.cfg.Machines, "elsewhere")
	r.must(errors.Join(os.Mkdir(elsewhere, 0o755), os.Chown(elsewhere, testFirst, testFirst)))
	machine.can("echo secret >"+r.shown("m1", testUID)+"/file && mount --bind "+r.shown("m1", testUID)+" "+elsewhere+" && cat "+elsewhere+"/file", "secret")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // or it waits ten seconds for who holds it
	for range 2 {
		if err := r.Remove(ctx, wire.Volume{UID: testUID}); err == nil || !errors.Is(err, diskimage.ErrInUse) || !strings.Contains(err.Error(), "its data is gone") {
			t.Errorf("while it is held: %v", err)
		}
	}
	machine.cannot("cat " + elsewhere + "/file")
	machine.cannot("echo x >" + elsewhere + "/more")
	var st unix.Stat_t
	r.must(unix.Stat(r.disk().File, &st))
	if st.Blocks > 0 || st.Size > 0 {
		t.Errorf("it takes %d bytes still", st.Blocks*512)
	}
	if got := r.seen(); got.Ready || got.NetworkID != "00002a" {
		t.Errorf("%+v", got)
	}
	machine.end()
	r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))
	if _, err := os.Stat(string(r.place(testUID))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// TestKilled: who is killed at any point goes on from there when he is back, and nothing is lost or left.
func TestKilled(t *testing.T) {
	r := newRig(t)
	r.machine("m1")
	do := func(what string, size int64, point string) {
		t.Helper()
		text, err := json.Marshal(step{r.cfg.Dir, r.cfg.Machines, debian(t), what, "m1", size})
		r.must(err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), stepEnv+"="+string(text), failpoint.Variable+"="+point)
		out, err := cmd.CombinedOutput()
		switch {
		case point == "" && err != nil:
			t.Fatalf("%s: %v: %s", what, err, out)
		case point != "" && !strings.Contains(string(out), failpoint.Mark(point)):
			t.Fatalf("%s is not killed at %s: %v: %s", what, point, err, out)
		}
	}
	walk := func(what string, size int64, points ...string) {
		t.Helper()
		for _, point := range append(points, "") {
			do(what, size, point)
		}
	}
	for range 2 {
		walk("ensure", 300*mib, "volume/make/recorded", "disk/file-made", "disk/formatted", "disk/loop-attached", "volume/make/mounted")
		if got := r.seen(); !got.Ready || got.SizeBytes != 300*mib {
			t.Errorf("made: %+v", got)
		}
		r.write("file", "kept")
		walk("ensure", 400*mib, "disk/file-grown")
		r.reads("file", "kept")
		var room unix.Statfs_t
		r.must(unix.Statfs(r.disk().Mount, &room))
		if size := int64(room.Blocks) * room.Bsize; size < 320*mib {
			t.Errorf("grown to %d MiB", size>>20)
		}
		walk("snapshot", 0, "volume/snapshot/recorded", "disk/copy-frozen")
		r.write("file", "it is not frozen")
		r.must(r.Remove(t.Context(), wire.Volume{UID: testSnapshot.UID}))
		walk("attach", 0, "volume/attach/folder-made")
		r.wantAttached(wire.VolumeAttachment{MachineUID: "m1"})
		walk("detach", 0)
		r.wantAttached()
		do("attach", 0, "")
		walk("remove", 0, "volume/remove/shut-down", "volume/remove/unmounted", "volume/remove/disk-deleted")
		if all, err := r.List(); err != nil || len(all) > 0 {
			t.Errorf("left: %+v, %v", all, err)
		}
		r.wantAttached()
	}
}

// TestPool: how much room there is, and from when on too little.
func TestPool(t *testing.T) {
	r := newRig(t)
	pools := r.Pools(nil)
	if len(pools) != 1 || pools[0].Path != r.cfg.Dir || pools[0].SizeBytes <= pools[0].FreeBytes || pools[0].FreeBytes%(1<<30) != 0 {
		t.Errorf("%+v", pools)
	}
	d := diskimage.Image{File: r.cfg.Dir + ".img", Mount: r.cfg.Dir, Reflink: true}
	r.must(d.Ensure(t.Context(), 320*mib, debian(t)))
	defer func() {
		if err := errors.Join(hostmount.Unmount(d.Mount), diskimage.AwaitFree(context.Background(), d.File)); err != nil {
			t.Error(err)
		}
	}()
	other := newHost(r.cfg.Dir, r.cfg.Machines, "")
	if pools := other.Pools(nil); len(pools) != 1 || !pools[0].Reflink {
		t.Errorf("on XFS with reflink: %+v", pools)
	}
	left, err := os.ReadDir(r.cfg.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("who tried has left %v, %v", left, err)
	}

	// Where room that is given back is free at once.
	r.must(unix.Mount("tmpfs", r.cfg.Dir, "tmpfs", 0, "size=100m"))
	for name, want := range map[string]inventory.Owner{testUID: inventory.Volume(testUID), markName: inventory.Appliance, "lost+found": inventory.Appliance} {
		if got := Traces(r.cfg.Dir).Folders[0].Owner(name); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
	}
	fill := filepath.Join(r.cfg.Dir, "fill")
	taken := func(percent int64) (filling, full bool) {
		t.Helper()
		r.must(os.RemoveAll(fill))
		var f unix.Statfs_t
		r.must(unix.Statfs(r.cfg.Dir, &f))
		used := int64(f.Blocks-f.Bfree) * f.Bsize
		all := used + int64(f.Bavail)*f.Bsize
		file, err := os.Create(fill)
		r.must(err)
		r.must(errors.Join(unix.Fallocate(int(file.Fd()), 0, 0, all*percent/100-used+2*mib), file.Close()))
		told := r.Troubles()
		if len(told) != 1 || told[0].Pool != r.cfg.Dir || told[0].Away != nil {
			t.Errorf("it is told of %+v", told)
		}
		return told[0].Filling != nil, told[0].Full != nil
	}
	if one, two := taken(95); one || two {
		t.Error("something is said of a pool without volumes")
	}
	r.must(os.Mkdir(string(r.place(testUID)), 0o700))
	for percent, want := range map[int64][2]bool{70: {}, 80: {true, false}, 90: {false, true}} {
		if one, two := taken(percent); one != want[0] || two != want[1] {
			t.Errorf("at %d %%: filling is %t, full is %t", percent, one, two)
		}
	}
}
