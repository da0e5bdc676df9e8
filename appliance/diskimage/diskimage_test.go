package diskimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/testing/wait"
)

const mib = 1 << 20

// debian is the machines' root file system, unpacked, which has the tools.
func debian(t *testing.T) string {
	t.Helper()
	payload := os.Getenv("MULTIPAAS_PAYLOAD")
	if payload == "" {
		payload, _ = filepath.Abs("../../dist/payload")
	}
	root, err := rootfs.Store{Dir: t.TempDir()}.Unpack(t.Context(), filepath.Join(payload, "images", "machine"))
	if err != nil {
		t.Fatalf("%v: build it with: make payload", err)
	}
	return root
}

// newImage says where one will be in dir, and takes it away in the end.
func newImage(t *testing.T, dir, name string) Image {
	t.Helper()
	d := Image{File: filepath.Join(dir, name+".img"), Mount: filepath.Join(dir, name)}
	t.Cleanup(func() {
		if err := hostmount.Unmount(d.Mount); err != nil {
			t.Error(err)
		}
		if err := AwaitFree(context.Background(), d.File); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d Image) must(t *testing.T, size int64, root string) Image {
	t.Helper()
	if err := d.Ensure(t.Context(), size, root); err != nil {
		t.Fatal(err)
	}
	return d
}

// taken is what the image takes of the disk.
func (d Image) taken(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(d.File, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// fill writes until the image is full, and returns how many bytes it took.
func (d Image) fill(t *testing.T, name string) (n int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.Mount, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte("x"), mib)
	for {
		k, err := f.Write(block)
		n += int64(k)
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return n
	}
}

// TestLimit: an image takes what it was made with and no more, gives back what is
// deleted, and grows while files in it are open.
func TestLimit(t *testing.T) {
	d := newImage(t, t.TempDir(), "a").must(t, 320*mib, debian(t))
	d.shares(t)
	if n := d.taken(t); n > 96*mib {
		t.Errorf("an empty one takes %d MiB", n>>20)
	}
	first := d.fill(t, "first")
	if first < 200*mib || first > 320*mib {
		t.Errorf("it took %d MiB", first>>20)
	}
	f, err := os.Open(filepath.Join(d.Mount, "first"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 { // the second time there is nothing to do
		if err := d.Grow(t.Context(), 640*mib); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Grow(t.Context(), 500*mib); !errors.Is(err, ErrShrink) {
		t.Errorf("made smaller: %v, want ErrShrink", err)
	}
	if second := d.fill(t, "second"); second < 300*mib || first+second > 640*mib {
		t.Errorf("once grown it took %d MiB more", second>>20)
	}
	// Cut off when the file had grown, and nothing else.
	if err := os.Truncate(d.File, 700*mib); err != nil {
		t.Fatal(err)
	}
	if err := d.Grow(t.Context(), 700*mib); err != nil {
		t.Fatal(err)
	}
	if third := d.fill(t, "third"); third < 40*mib {
		t.Errorf("after a growth that was cut off it took %d MiB more", third>>20)
	}
	f.Close()
	for _, name := range []string{"first", "second", "third"} {
		if err := os.Remove(filepath.Join(d.Mount, name)); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, wait.Patience, "what was deleted is given back", func(context.Context) error {
		if err := d.sync(); err != nil {
			return err
		}
		if n := d.taken(t); n > 96*mib {
			return fmt.Errorf("it takes %d MiB", n>>20)
		}
		return nil
	})
}

// TestClone: a copy has what was written before and nothing of what comes after, where
// files can share blocks; elsewhere it says so and leaves nothing.
func TestClone(t *testing.T) {
	root, here := debian(t), t.TempDir()
	pool := newImage(t, here, "pool")
	pool.Reflink = true
	pool.must(t, 700*mib, root)
	d := newImage(t, pool.Mount, "a").must(t, 320*mib, root)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.Mount, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	before := pool.free(t)
	b := newImage(t, pool.Mount, "b")
	if err := d.Clone(t.Context(), b.File); err != nil {
		t.Fatal(err)
	}
	write("after")
	if err := d.Clone(t.Context(), b.File); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v, want fs.ErrExist", err)
	}
	if more := before - pool.free(t); more > 16*mib {
		t.Errorf("a copy takes %d MiB", more>>20)
	}
	b.must(t, 320*mib, root) // both at once, though they have one UUID
	if got, err := os.ReadFile(filepath.Join(b.Mount, "file")); err != nil || string(got) != "before" {
		t.Errorf("the copy has %q, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(d.Mount, "file")); err != nil || string(got) != "after" {
		t.Errorf("the first has %q, %v", got, err)
	}

	// Made by an older version, with sectors of 512 bytes: since it shares blocks its device
	// would have larger ones.
	old := newImage(t, pool.Mount, "old")
	if err := errors.Join(os.WriteFile(old.File, nil, 0o600), os.Truncate(old.File, 320*mib)); err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Run(t.Context(), root, nil, "usr/sbin/mkfs.xfs", "-q", "-s", "size=512", old.File); err != nil {
		t.Fatal(err)
	}
	old.must(t, 0, "")
	if err := errors.Join(old.Clone(t.Context(), newImage(t, pool.Mount, "young").File), hostmount.Unmount(old.Mount)); err != nil {
		t.Fatal(err)
	}
	old.must(t, 0, "")

	elsewhere := filepath.Join(here, "c.img")
	if err := d.Clone(t.Context(), elsewhere); !errors.Is(err, ErrNoReflink) {
		t.Errorf("to another file system: %v, want ErrNoReflink", err)
	}
	if left, err := filepath.Glob(elsewhere + "*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	t.Run("copied", func(t *testing.T) { testCopy(t, root) })
}

// testCopy: a copy has what was synced when it was done, and holes where there is nothing; who writes
// meanwhile waits and goes on, also when a process was killed that had frozen the file system.
func testCopy(t *testing.T, root string) {
	here := t.TempDir()
	d := newImage(t, here, "a").must(t, 320*mib, root)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.Mount, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	b := newImage(t, here, "b")
	second := false
	err := d.Copy(t.Context(), b.File, func(done, of int64) {
		if done > 0 && of >= done && !second {
			second = true
			write("between") // the first time has begun, and maybe passed it
		}
	})
	if err != nil || !second {
		t.Fatal(err, second)
	}
	write("after")
	if err := d.Copy(t.Context(), b.File, func(int64, int64) {}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v, want fs.ErrExist", err)
	}
	if n, of := b.taken(t), d.taken(t); n > of+8*mib {
		t.Errorf("the copy takes %d MiB, the first %d", n>>20, of>>20)
	}
	b.must(t, 0, "") // both at once, though they have one UUID
	if got, err := os.ReadFile(filepath.Join(b.Mount, "file")); err != nil || string(got) != "between" {
		t.Errorf("the copy has %q, %v", got, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	c := newImage(t, here, "c")
	if err := d.Copy(ctx, c.File, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	maxLiveCopy = 1 << 20
	err = d.Copy(t.Context(), c.File, func(int64, int64) { t.Error("it is copied") })
	maxLiveCopy = MaxLiveCopy
	if !errors.Is(err, ErrTooMuch) {
		t.Errorf("with too much in it: %v, want ErrTooMuch", err)
	}
	if left, err := filepath.Glob(c.File + "*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	if err := d.freeze(freezeCall); err != nil {
		t.Fatal(err)
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	write("thawed")
	if err := errors.Join(d.Thaw(), c.Thaw()); err != nil { // not frozen, not there
		t.Error(err)
	}
}

// free is how much room the mounted image has.
func (d Image) free(t *testing.T) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := errors.Join(d.sync(), unix.Statfs(d.Mount, &st)); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestInUse: an image that another mount has is not mounted twice, one that is away is
// not made anew, and what is mounted over one is not grown in its place.
func TestInUse(t *testing.T) {
	root, dir := debian(t), t.TempDir()
	d := newImage(t, dir, "a").must(t, 64*mib, root)
	again := Image{File: d.File, Mount: filepath.Join(dir, "again")}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := again.Ensure(ctx, 64*mib, root); err == nil {
		t.Error("mounted twice")
	}
	// ext4 could with a capability that a unit may not have.
	none := Image{File: filepath.Join(dir, "none.img"), Mount: filepath.Join(dir, "none")}
	if err := none.Ensure(t.Context(), 0, root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that must be there: %v, want fs.ErrNotExist", err)
	}
	if err := d.Grow(t.Context(), 128*mib); err == nil {
		t.Error("ext4 grew")
	}
	if err := unix.Mount("tmpfs", d.Mount, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	if err := d.Grow(t.Context(), 128*mib); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("with another file system over it: %v", err)
	}
	if info, err := os.Stat(d.File); err != nil || info.Size() != 64*mib {
		t.Errorf("what was refused changed something: %v, %v", info, err)
	}
	testHidden(t, d)
	testStoppedDisk(t, root)
}

// testHidden: root of a user namespace doesn't learn from /sys where an image is, the host's root does.
func testHidden(t *testing.T, d Image) {
	names, err := loopsOf(d.File)
	if err != nil || len(names) != 1 {
		t.Fatalf("its devices are %v, %v", names, err)
	}
	folder := filepath.Join("/sys/block", filepath.Base(names[0]), "loop")
	if path, err := os.ReadFile(filepath.Join(folder, "backing_file")); err != nil || strings.TrimSpace(string(path)) != d.File {
		t.Errorf("the host's root reads %q, %v", path, err)
	}
	const nobody = 200_000
	as := []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	inside := func(command string) string {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
			UidMappings: as, GidMappings: as, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}}
		out, err := cmd.CombinedOutput()
		return fmt.Sprint(string(out), err)
	}
	if got := inside("cat " + folder + "/autoclear"); !strings.HasPrefix(got, "1") {
		t.Errorf("what may be read can't be: %s", got)
	}
	own := "mount -t sysfs none /mnt && cat /mnt/" + strings.TrimPrefix(folder, "/sys/")
	for _, command := range []string{"cat " + folder + "/backing_file", "chmod 444 " + folder + "/backing_file", own + "/backing_file"} {
		if got := inside(command); !strings.Contains(got, "ermi") || strings.Contains(got, d.File) {
			t.Errorf("root of a user namespace: %s: %s", command, got)
		}
	}
}

// testStoppedDisk: an image on a disk that has stopped keeps none on another disk from being mounted.
func testStoppedDisk(t *testing.T, root string) {
	dir := t.TempDir()
	disk := newImage(t, dir, "disk").must(t, MinXFS, root)
	on := Image{File: filepath.Join(disk.Mount, "on.img"), Mount: filepath.Join(dir, "on")}.must(t, 64*mib, root)
	t.Cleanup(func() {
		if err := hostmount.Unmount(on.Mount); err != nil {
			t.Error(err)
		}
	})
	if err := disk.ShutDown(); err != nil {
		t.Fatal(err)
	}
	newImage(t, dir, "other").must(t, 64*mib, root)
	if err := on.Ensure(t.Context(), 0, root); err != nil { // it is mounted still
		t.Error(err)
	}
	if _, err := loopsOf(on.File); err == nil {
		t.Error("of an image on the stopped disk it is taken to be known whether it is used")
	}
}
