package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// xfsMin is the smallest file system that mkfs.xfs makes.
const xfsMin = 300 << 20

// disk is a file with a file system of the machine's size: the one limit on
// disk space that holds whatever is in it. Quotas were rejected: not every
// kernel has them, and they are soft on some.
type disk struct {
	file  string // the image, sparse
	mount string // where it is mounted
}

// ensure makes the disk if there is none, and mounts it. root is the unpacked
// image with the tools.
func (d disk) ensure(ctx context.Context, sizeBytes int64, root string) error {
	mounted, err := isMounted(d.mount)
	if err != nil || mounted {
		return err
	}
	if _, err := os.Stat(d.file); errors.Is(err, fs.ErrNotExist) {
		if err := d.format(ctx, sizeBytes, root); err != nil {
			return fmt.Errorf("make disk %s: %w", d.file, err)
		}
	} else if err != nil {
		return err
	}
	// Mounted twice, a file system is lost.
	if err := awaitLoops(ctx, d.file); err != nil {
		return err
	}
	if err := os.MkdirAll(d.mount, 0o700); err != nil {
		return err
	}
	// There too: by the path at which the device's file was opened others know it, and a
	// path in our own mounts ends with us.
	var device *os.File
	err = hostmount.Do(func() (err error) { device, err = openLoop(d.file); return err })
	if err != nil {
		return err
	}
	defer device.Close() // the mount keeps it
	failpoint.Reach("machine/start/loop-attached")
	for _, kind := range []struct{ name, options string }{
		{"xfs", "nouuid,discard"}, // what is deleted inside is free outside
		{"ext4", "discard"},
	} {
		err = hostmount.Do(func() error { return unix.Mount(device.Name(), d.mount, kind.name, unix.MS_NODEV, kind.options) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // not this kind
			break
		}
	}
	return fmt.Errorf("mount disk %s: %w", d.file, err)
}

// format makes the image under another name, so that one with the right name
// has a file system.
func (d disk) format(ctx context.Context, sizeBytes int64, root string) error {
	if err := os.MkdirAll(filepath.Dir(d.file), 0o700); err != nil {
		return err
	}
	partial := d.file + ".partial"
	// Removed, not emptied: what a killed agent had begun may still be written to.
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		return err
	}
	failpoint.Reach("machine/start/disk-file-made")
	if sizeBytes >= xfsMin {
		err = runFrom(ctx, root, "usr/sbin/mkfs.xfs", "-q", "-f", "-m", "reflink=0", partial)
	} else {
		err = runFrom(ctx, root, "usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", partial)
	}
	if err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	failpoint.Reach("machine/start/disk-formatted")
	if err := os.Rename(partial, d.file); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(d.file))
}

// runFrom runs a program of an unpacked root file system by its own loader with
// its own libraries, so that the host needs no such tool. A chroot would need
// /dev and /proc in a folder that all machines share.
func runFrom(ctx context.Context, root, program string, args ...string) error {
	libraries := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	loader := filepath.Join(libraries, "ld-linux-x86-64.so.2")
	cmd := exec.CommandContext(ctx, loader, append([]string{"--library-path", libraries, filepath.Join(root, program)}, args...)...)
	cmd.Env = []string{"PATH=/nonexistent", "MKE2FS_CONFIG=" + filepath.Join(root, "etc/mke2fs.conf")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runBound(cmd); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// mounts lists the host's mount points at and below dir, deepest first.
func mounts(dir string) (found []string, err error) {
	var infos []*mountinfo.Info
	err = hostmount.Do(func() (err error) {
		infos, err = mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		return err
	})
	for _, info := range slices.Backward(infos) { // later mounts lie on top of earlier ones
		found = append(found, info.Mountpoint)
	}
	return found, err
}

func isMounted(dir string) (bool, error) {
	found, err := mounts(dir)
	return slices.Contains(found, dir), err
}

// unmountAll unmounts everything at and below dir.
func unmountAll(dir string) error {
	found, err := mounts(dir)
	if err != nil {
		return err
	}
	for _, point := range found {
		err := hostmount.Do(func() error {
			err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EBUSY) {
				// Somebody looks at it, from a shell say. It goes when he leaves.
				err = unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
			return err
		})
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// mountRoot lays the machine's own files over the image.
func mountRoot(lower, upper, work, root string) error {
	mounted, err := isMounted(root)
	if err != nil || mounted {
		return err
	}
	for _, dir := range []string{upper, work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{lower, upper, work} {
		if strings.ContainsAny(dir, `,:\`) {
			return fmt.Errorf("data directory %q: overlayfs takes no comma, colon or backslash in a path", dir)
		}
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount root file system %s: %w", root, err)
	}
	return nil
}

// loopMajor is the device number of loop devices.
const loopMajor = 7

// openLoop makes a block device of a file. The device frees itself once it is
// closed and unmounted, so a killed agent leaks none.
func openLoop(backing string) (device *os.File, err error) {
	file, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	// Somebody else may take the device between the two calls.
	for try := 0; ; try++ {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := configureLoop(number, file)
		if errors.Is(err, unix.EBUSY) && try < 64 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("set up loop device %d for %s: %w", number, backing, err)
		}
		return device, nil
	}
}

func configureLoop(number int, file *os.File) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", number)
	// It is not there in a /dev that is not the kernel's own, as in a container.
	err := unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(number))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	device, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// Direct I/O: without it every page is cached twice, and the second time
	// counts for nobody.
	for _, flags := range []uint32{unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO, unix.LO_FLAGS_AUTOCLEAR} {
		cfg := unix.LoopConfig{Fd: uint32(file.Fd())}
		cfg.Info.Flags = flags
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file.Name())
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &cfg); err == nil {
			return device, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, errors.Join(err, device.Close())
}

// loopsOf returns the loop devices that use a file.
func loopsOf(backing string) ([]string, error) {
	var want unix.Stat_t
	if err := unix.Stat(backing, &want); err != nil {
		return nil, &os.PathError{Op: "stat", Path: backing, Err: err}
	}
	// Only those that are set up have this folder.
	busy, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range busy {
		name := "/dev/" + filepath.Base(filepath.Dir(dir))
		f, err := os.Open(name)
		if err != nil {
			continue // freed meanwhile
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		f.Close()
		if err == nil && info.Inode == want.Ino && info.Device == want.Dev {
			names = append(names, name)
		}
	}
	return names, nil
}

// awaitLoops waits until no loop device uses the file: the mount namespace of a
// machine that was killed goes a moment after its last process.
func awaitLoops(ctx context.Context, backing string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		names, err := loopsOf(backing)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || len(names) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("disk %s is in use by %v: something has it mounted in another mount namespace", backing, names)
		case <-time.After(wait):
		}
	}
}
