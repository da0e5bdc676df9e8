package diskimage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// Block is an image without a file system: the raw blocks of its loop device are somebody's, who opens
// them by a node. The node stands alone in a tmpfs of its own, so that it is shown and taken away as an Image's file system
// is, and all who see it see one inode.
//
// The number of a loop device is given to the next image once it is free, so a node that can be opened must never
// be there longer than its device is this image's:
//   - The device does not free itself (Image's does): one that is killed leaves it, and Ensure finds it.
//   - Before it is freed, the node is closed: it is nobody's, with no rights. Whoever has bound it elsewhere has that inode.
//   - Who has it open still keeps the device, which the kernel frees when he closes it.
type Block struct {
	File  string // absolute, as is Mount
	Mount string // the folder in which its node is
	// Owner is the host's user, and group, who may open it. 0 is refused: root of the host makes nodes himself.
	Owner uint32
}

// Node is what the node is called.
const Node = "device"

// errNoDevice is returned for a node that is not there as it shall be.
var errNoDevice = errors.New("its node is not of its image")

// Ensure makes the image with so many bytes, of zeros, if there is none, and shows its node. With 0 bytes it must be there:
// fs.ErrNotExist. One that is smaller grows, also while it is in use; one that is larger: ErrShrink. It blocks for
// milliseconds, and up to ten seconds while somebody has the image still: ErrInUse.
func (b Block) Ensure(ctx context.Context, sizeBytes int64) error {
	if b.Owner == 0 {
		return fmt.Errorf("blocks of %s shall be of the host's root", b.File)
	}
	if err := b.make(sizeBytes); err != nil {
		return fmt.Errorf("make disk %s: %w", b.File, err)
	}
	err := b.Check()
	if errors.Is(err, errNoDevice) || errors.Is(err, fs.ErrNotExist) {
		if err = cmp.Or(b.Close(), AwaitFree(ctx, b.File)); err == nil {
			err = b.show()
		}
	}
	if err != nil {
		return fmt.Errorf("show blocks of %s: %w", b.File, err)
	}
	if err := b.grow(sizeBytes); err != nil {
		return fmt.Errorf("grow disk %s: %w", b.File, err)
	}
	return nil
}

// make makes the file, under another name first: one with the right name has its size.
func (b Block) make(sizeBytes int64) error {
	if _, err := os.Lstat(b.File); !errors.Is(err, fs.ErrNotExist) || sizeBytes == 0 {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.File), 0o700); err != nil {
		return err
	}
	partial := b.File + Partial
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := cmp.Or(errors.Join(f.Truncate(sizeBytes), f.Sync(), f.Close()), os.Rename(partial, b.File)); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(b.File))
}

// show attaches a loop device and makes the node.
func (b Block) show() error {
	if err := os.MkdirAll(b.Mount, 0o700); err != nil {
		return err
	}
	return hostmount.Do(func() error {
		loop, err := openLoop(b.File, true, false)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
			loop, err = openLoop(b.File, false, false)
		}
		if err != nil {
			return err
		}
		defer loop.Close()
		var of unix.Stat_t
		if err := unix.Fstat(int(loop.Fd()), &of); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", b.Mount, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=4k,nr_inodes=8,mode=755"); err != nil {
			return &os.PathError{Op: "mount", Path: b.Mount, Err: err}
		}
		// It opens nothing before it has its owner.
		node := b.node()
		if err := unix.Mknod(node, unix.S_IFBLK, int(of.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: node, Err: err}
		}
		return cmp.Or(os.Chown(node, int(b.Owner), int(b.Owner)), os.Chmod(node, 0o600))
	})
}

func (b Block) node() string { return filepath.Join(b.Mount, Node) }

// Check says whether the node is shown, and opens this image: fs.ErrNotExist, or another error, if not.
func (b Block) Check() error {
	var at, image unix.Stat_t
	mounted, err := hostmount.Has(b.Mount)
	if err == nil && !mounted {
		err = &os.PathError{Op: "check", Path: b.node(), Err: fs.ErrNotExist}
	}
	if err != nil {
		return err
	}
	if err := unix.Stat(b.File, &image); err != nil {
		return &os.PathError{Op: "stat", Path: b.File, Err: err}
	}
	if err := hostmount.Do(func() error { return unix.Lstat(b.node(), &at) }); err != nil {
		return &os.PathError{Op: "lstat", Path: b.node(), Err: err}
	}
	// Its owner may have given it to another of his users, with other rights. The host's root has what is closed.
	if at.Mode&unix.S_IFMT != unix.S_IFBLK || at.Uid == 0 || unix.Major(at.Rdev) != loopMajor {
		return errNoDevice
	}
	info, err := loopStatus(fmt.Sprintf("/dev/loop%d", unix.Minor(at.Rdev)))
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return errNoDevice
	}
	if err == nil && (info.Inode != image.Ino || info.Device != image.Dev || info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0) {
		return errNoDevice
	}
	return err
}

// Close closes the node for good, takes it away and frees the device, whatever of them is there. Who has it open keeps that:
// see AwaitFree. None there is no error.
func (b Block) Close() error {
	mounted, err := hostmount.Has(b.Mount)
	if err == nil && mounted {
		err = hostmount.Do(func() error {
			var at unix.Stat_t
			err := unix.Lstat(b.node(), &at)
			if err == nil && at.Mode&unix.S_IFMT == unix.S_IFBLK { // what is below in an Image is a tenant's
				err = cmp.Or(unix.Lchown(b.node(), 0, 0), unix.Chmod(b.node(), 0))
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		})
		if err == nil {
			err = hostmount.Unmount(b.Mount)
		}
	}
	if err != nil {
		return fmt.Errorf("close blocks of %s: %w", b.File, err)
	}
	devices, err := loopsOf(b.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range devices {
		err = errors.Join(err, onLoop(name, unix.LOOP_CLR_FD))
	}
	return err
}

// onLoop asks something of a loop device. One that is free is no error.
func onLoop(name string, what uint) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), what, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return &os.PathError{Op: "ioctl", Path: name, Err: err}
	}
	return nil
}

func (b Block) grow(sizeBytes int64) error {
	info, err := os.Stat(b.File)
	if err != nil || sizeBytes == 0 {
		return err
	}
	if info.Size() > sizeBytes {
		return fmt.Errorf("it has %d bytes, and shall have %d: %w", info.Size(), sizeBytes, ErrShrink)
	}
	if info.Size() < sizeBytes {
		if err := os.Truncate(b.File, sizeBytes); err != nil {
			return err
		}
	}
	return b.resize()
}

// resize has the devices be as large as the file is.
func (b Block) resize() error {
	info, err := os.Stat(b.File)
	if err != nil {
		return err
	}
	devices, err := loopsOf(b.File)
	for _, name := range devices {
		sectors, _ := os.ReadFile(filepath.Join("/sys/block", filepath.Base(name), "size"))
		if have, err := strconv.ParseInt(string(bytes.TrimSpace(sectors)), 10, 64); err == nil && have*512 == info.Size() {
			continue
		}
		err = errors.Join(err, onLoop(name, unix.LOOP_SET_CAPACITY))
	}
	return err
}

// ShutDown destroys what is in the image, also under who has it open: all that he does then fails. Ensure must not be
// called any more.
func (b Block) ShutDown() error {
	if err := os.Truncate(b.File, 0); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return b.resize()
}

// Sync has what was written to the blocks be in the image.
func (b Block) Sync() error {
	devices, err := loopsOf(b.File)
	for _, name := range devices {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return err
}

// ErrBusy is returned by Copy for raw blocks that were written to all the time.
var ErrBusy = errors.New("it is written to all the time")

// quietTries is how often Copy looks for a time without writes.
const quietTries = 5

// Copy makes another image of what is in this one at a moment, as Image.Copy does. Nobody can have who writes to raw
// blocks wait. So after a first time it is read again until nothing was written while it was: ErrBusy, if that is not so within
// some tries. What is read the last time is then of one moment, and of all the time that it took.
func (b Block) Copy(ctx context.Context, to string, tell func(done, of int64)) error {
	err := copyFile(ctx, b.File, to, tell, func(*os.File) error { return nil }, func(pass func(context.Context) error) error {
		for range quietTries {
			if err := b.Sync(); err != nil {
				return err
			}
			before, err := b.written()
			if err == nil {
				err = pass(ctx)
			}
			if err != nil {
				return err
			}
			if after, err := b.written(); err != nil || after == before && !strings.Contains(after, "under way") {
				return err
			}
		}
		return ErrBusy
	})
	if err != nil {
		return fmt.Errorf("copy disk %s: %w", b.File, err)
	}
	return nil
}

// written is another text once something was written to the image by its devices, or discarded; while something is under way it
// says that (Documentation/block/stat.rst of Linux).
func (b Block) written() (text string, err error) {
	devices, err := loopsOf(b.File)
	for _, name := range devices {
		dir := filepath.Join("/sys/block", filepath.Base(name))
		inflight, err := os.ReadFile(filepath.Join(dir, "inflight"))
		var stat []byte
		if err == nil {
			stat, err = os.ReadFile(filepath.Join(dir, "stat"))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // freed meanwhile
		}
		if err != nil {
			return "", err
		}
		f, now := strings.Fields(string(stat)), strings.Fields(string(inflight))
		if len(f) < 15 || len(now) < 2 {
			return "", fmt.Errorf("%s says %q and %q", name, stat, inflight)
		}
		text += fmt.Sprintln(name, f[4], f[6], f[11], f[13])
		if now[1] != "0" {
			text += "under way\n"
		}
	}
	return text, err
}
