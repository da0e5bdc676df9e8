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
// A node that can be opened must never lead to what is another's:
//   - Its number was given to no other since the host was started (Numbers).
//   - Before the device is given back the node is closed: it is root's, with no rights, for good. Whoever has bound it elsewhere
//     has that inode. So each step of CloseNode finds the device by the node, until there is neither.
//   - Who has it open still keeps the device, which the kernel frees when he closes it.
//   - The device does not free itself (Image's does): one that is killed leaves it, and Ensure finds it.
type Block struct {
	File    string // absolute, as is Mount
	Mount   string // the folder in which its node is
	Numbers *Numbers
}

// Node is what the node is called.
const Node = "device"

// unset are the rights of a node that root has and nobody was given yet. Others of root's are of one that is closed, or that a
// process was killed over which closed it.
const unset = 0o600

var (
	// errNoDevice is returned for a node that is not there as it shall be.
	errNoDevice = errors.New("its node is not of its image")
	// ErrOthers is returned for a node that is somebody else's.
	ErrOthers = errors.New("somebody else was given its node")
)

// Ensure makes the image with so many bytes, of zeros, if there is none, and shows its node, which is nobody's yet. With 0 bytes
// it must be there: fs.ErrNotExist. One that is smaller grows, also while it is in use; one that is larger: ErrShrink. It blocks
// for milliseconds. ErrInUse: somebody has the image open from before; see AwaitFree.
func (b Block) Ensure(sizeBytes int64) error {
	if err := b.make(sizeBytes); err != nil {
		return fmt.Errorf("make disk %s: %w", b.File, err)
	}
	_, err := b.Check()
	if errors.Is(err, errNoDevice) || errors.Is(err, fs.ErrNotExist) {
		if err = b.Close(); err == nil {
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
	if devices, err := loopsOf(b.File); err != nil || len(devices) > 0 {
		return cmp.Or(err, fmt.Errorf("it %w by %v", ErrInUse, devices))
	}
	if err := os.MkdirAll(b.Mount, 0o700); err != nil {
		return err
	}
	return hostmount.Do(func() error {
		loop, err := b.Numbers.openShown(b.File)
		if err != nil {
			return err
		}
		defer loop.Close()
		var of unix.Stat_t
		if err := unix.Fstat(int(loop.Fd()), &of); err != nil {
			return err
		}
		if !shown(of) {
			return fmt.Errorf("%s has device number %d:%d", loop.Name(), unix.Major(of.Rdev), unix.Minor(of.Rdev))
		}
		if err := unix.Mount("tmpfs", b.Mount, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=4k,nr_inodes=8,mode=755"); err != nil {
			return &os.PathError{Op: "mount", Path: b.Mount, Err: err}
		}
		node := filepath.Join(b.Mount, Node)
		if err := unix.Mknod(node, unix.S_IFBLK|unset, int(of.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: node, Err: err}
		}
		return os.Chmod(node, unset) // whatever the umask
	})
}

// shown says whether a node is of a device with a number of Numbers.
func shown(at unix.Stat_t) bool {
	return at.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Major(at.Rdev) == loopMajor && unix.Minor(at.Rdev) >= firstShown
}

// nodeIn calls do with the node that is shown at mount, and what it is like. It is found by handles: what else is mounted there
// may be a tenant's, and below it may be a file system that has stopped, which can't be asked. fs.ErrNotExist: there is none.
func nodeIn(mount string, do func(node *os.File, at unix.Stat_t) error) error {
	return hostmount.Do(func() error {
		none := &os.PathError{Op: "look for the device at", Path: mount, Err: fs.ErrNotExist}
		dir, err := unix.Open(mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: mount, Err: err}
		}
		defer unix.Close(dir)
		var kind unix.Statfs_t
		if err := unix.Fstatfs(dir, &kind); err != nil || kind.Type != unix.TMPFS_MAGIC {
			return none // an Image's, maybe one that has stopped
		}
		fd, err := unix.Openat(dir, Node, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: filepath.Join(mount, Node), Err: err}
		}
		node := os.NewFile(uintptr(fd), filepath.Join(mount, Node))
		defer node.Close()
		var at unix.Stat_t
		if err := unix.Fstat(fd, &at); err != nil {
			return err
		}
		if !shown(at) {
			return none
		}
		return do(node, at)
	})
}

// Give gives the node to one of the host's users, who is the first of so many that are one tenant's. It is no error if one of
// them has it already; ErrOthers: somebody else has it.
func (b Block) Give(first, users uint32) error {
	if first < users {
		return fmt.Errorf("blocks of %s shall be of the host's own users", b.File)
	}
	given, err := b.Check()
	if err != nil {
		return err
	}
	if given {
		return nodeIn(b.Mount, func(_ *os.File, at unix.Stat_t) error {
			if at.Uid < first || at.Uid-first >= users {
				return fmt.Errorf("blocks of %s: %w", b.File, ErrOthers)
			}
			return nil
		})
	}
	return nodeIn(b.Mount, func(node *os.File, _ unix.Stat_t) error {
		return unix.Fchownat(int(node.Fd()), "", int(first), int(first), unix.AT_EMPTY_PATH)
	})
}

// Check says whether the node is somebody's. It is an error, fs.ErrNotExist or another, if it is not shown, or opens not this
// image.
func (b Block) Check() (given bool, err error) {
	var image, is unix.Stat_t
	if err := nodeIn(b.Mount, func(_ *os.File, at unix.Stat_t) error { is = at; return nil }); err != nil {
		return false, err
	}
	if is.Uid == 0 && is.Mode&0o7777 != unset { // it was closed, or is about to be
		return false, errNoDevice
	}
	if err := unix.Stat(b.File, &image); err != nil {
		return false, &os.PathError{Op: "stat", Path: b.File, Err: err}
	}
	info, err := loopStatus(deviceOf(is))
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return false, errNoDevice
	}
	if err == nil && (info.Inode != image.Ino || info.Device != image.Dev || info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0) {
		err = errNoDevice
	}
	return is.Uid != 0, err // its owner may have given it to another of his users, with other rights
}

// deviceOf is what the device of a node is called: without partitions (CanShow) its number is its name.
func deviceOf(node unix.Stat_t) string { return fmt.Sprintf("/dev/loop%d", unix.Minor(node.Rdev)) }

// CloseNode closes the node that is shown at mount for good and gives its device back, whatever has become of its image. Who has
// it open keeps that: see AwaitFree. None there is no error, and nothing is done to what else is mounted there.
func CloseNode(mount string) error {
	var device string
	err := nodeIn(mount, func(node *os.File, at unix.Stat_t) error {
		device = deviceOf(at)
		return cmp.Or(
			unix.Fchownat(int(node.Fd()), "", 0, 0, unix.AT_EMPTY_PATH),
			unix.Chmod(fmt.Sprintf("/proc/thread-self/fd/%d", node.Fd()), 0)) // of a handle by O_PATH Linux has no other way
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = cmp.Or(onLoop(device, unix.LOOP_CLR_FD), Tidy())
	}
	if err != nil {
		return fmt.Errorf("close the device at %s: %w", mount, err)
	}
	return nil
}

// Close closes the node for good, takes it away and gives its device back, whatever of them is there.
func (b Block) Close() error {
	if err := CloseNode(b.Mount); err != nil {
		return err
	}
	// An image of the other kind has its file system there.
	_, infos, err := hostmount.Infos(b.Mount)
	if len(infos) > 0 && infos[0].FSType == "tmpfs" {
		err = hostmount.Unmount(b.Mount)
	}
	if err != nil {
		return fmt.Errorf("close blocks of %s: %w", b.File, err)
	}
	devices, err := loopsOf(b.File) // one that was killed before it made the node
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range devices {
		err = errors.Join(err, onLoop(name, unix.LOOP_CLR_FD))
	}
	return cmp.Or(err, Tidy())
}

// onLoop asks something of a loop device. One that is free, or gone, is no error.
func onLoop(name string, what uint) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
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

// ShutDown destroys what is in the image, also under who has it open: all that he does then fails. What was under way may come to
// be written once more, so it is asked for again until nobody has it open. Ensure must not be called any more.
func (b Block) ShutDown() error {
	for range 3 {
		if err := os.Truncate(b.File, 0); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if err := cmp.Or(b.resize(), b.Sync()); err != nil {
			return err
		}
		if info, err := os.Stat(b.File); err != nil || info.Size() == 0 {
			return err
		}
	}
	return nil
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
// some tries, each of which ends at the first write, and keeps to the pace. What is read the last time is then of one moment,
// and of all the time that it took.
func (b Block) Copy(ctx context.Context, to string, tell func(done, of int64)) error {
	err := copyFile(ctx, b.File, to, tell, func(*os.File) error { return nil }, func(pass passing) error {
		for range quietTries {
			if err := b.Sync(); err != nil {
				return err
			}
			before, err := b.written()
			if err != nil {
				return err
			}
			quiet := func() error {
				if after, err := b.written(); err != nil || after == before && !strings.Contains(after, "under way") {
					return err
				}
				return ErrBusy
			}
			try, end := context.WithCancelCause(ctx)
			err = pass(try, true, func(int64, int64) {
				if err := quiet(); err != nil {
					end(err)
				}
			})
			end(nil)
			if err == nil {
				err = quiet()
			}
			if !errors.Is(err, ErrBusy) {
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
