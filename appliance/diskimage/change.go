package diskimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// ErrShrink is returned for an image that is larger than it shall be: XFS can't shrink.
var ErrShrink = errors.New("a file system can't shrink")

// ErrNoReflink is returned where files can't share blocks: the folder of the image is on
// ext4, or the copy would be on another file system.
var ErrNoReflink = errors.New("files here can't share blocks")

// Grow makes a mounted XFS image so large, while it is used, and returns ErrShrink if it is
// larger. One that was cut off goes on where it was. It blocks for some milliseconds.
func (d Image) Grow(ctx context.Context, sizeBytes int64) error {
	if err := d.grow(ctx, sizeBytes); err != nil {
		return fmt.Errorf("grow disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) grow(ctx context.Context, sizeBytes int64) error {
	if d.has(sizeBytes) {
		return nil
	}
	devices, err := loopsOf(d.File)
	if err != nil {
		return err
	}
	if len(devices) != 1 {
		return fmt.Errorf("it is mounted by %d devices: want one", len(devices))
	}
	device, err := os.Open(devices[0])
	if err != nil {
		return err
	}
	defer device.Close()
	var of, at unix.Stat_t
	var kind unix.Statfs_t
	err = hostmount.Do(func() error {
		return cmp.Or(unix.Fstat(int(device.Fd()), &of), unix.Stat(d.Mount, &at), unix.Statfs(d.Mount, &kind))
	})
	if err != nil {
		return err
	}
	dev := of.Rdev
	if d.Encryption != nil {
		if dev, err = mapped(d.Encryption.Name); err != nil {
			return err
		}
	}
	if at.Dev != dev {
		return fmt.Errorf("something else is mounted at %s", d.Mount)
	}
	if kind.Type != unix.XFS_SUPER_MAGIC {
		return fmt.Errorf("it has no XFS: images below %d MiB can't grow", int64(MinXFS)>>20)
	}
	info, err := os.Stat(d.File)
	if err != nil {
		return err
	}
	if info.Size() > d.fileBytes(sizeBytes) {
		return fmt.Errorf("it has %d bytes, and shall have %d: %w", info.Size(), d.fileBytes(sizeBytes), ErrShrink)
	}
	if err := os.Truncate(d.File, d.fileBytes(sizeBytes)); err != nil {
		return err
	}
	failpoint.Reach("disk/file-grown")
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("tell %s of it: %w", devices[0], err)
	}
	if d.Encryption != nil {
		if err := d.cryptsetup(ctx, false, "resize", d.Encryption.Name); err != nil {
			return err
		}
	}
	return hostmount.Do(func() error { return growXFS(d.Mount, sizeBytes) })
}

// has says whether file and file system have this size: what is asked often costs little.
func (d Image) has(sizeBytes int64) bool {
	info, err := os.Stat(d.File)
	if err != nil || info.Size() != d.fileBytes(sizeBytes) {
		return false
	}
	return hostmount.Do(func() error {
		f, err := os.Open(d.Mount)
		if err != nil {
			return err
		}
		defer f.Close()
		now, err := geometryOf(f)
		if err == nil && now.blocks != uint64(sizeBytes)/uint64(now.blockSize) {
			err = errors.New("it has another size")
		}
		return err
	}) == nil
}

// ShutDown has the file system of a mounted XFS image stop for good, whoever uses it: all that
// they do then fails, and nothing more is written to the image. One that has stopped is no error.
func (d Image) ShutDown() error {
	err := hostmount.Do(func() error {
		f, err := os.Open(d.Mount)
		if errors.Is(err, unix.EIO) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		how := uint32(2) // XFS_FSOP_GOING_FLAGS_NOLOGFLUSH: as a power cut does
		return call(f, goingDownCall, unsafe.Pointer(&how))
	})
	if err != nil {
		return fmt.Errorf("shut down disk %s: %w", d.File, err)
	}
	return nil
}

// What linux/fs/xfs/libxfs/xfs_fs.h says of three calls. Their numbers hold the sizes of
// what they take.
const (
	goingDownCall = 0x8004_587d // XFS_IOC_GOINGDOWN, _IOR('X', 125, 4 bytes)
	geometryCall  = 0x8070_5864 // XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, 112 bytes)
	growCall      = 0x4010_586e // XFS_IOC_FSGROWFSDATA, _IOW('X', 110, 16 bytes)
)

// geometry begins as struct xfs_fsop_geom_v1 does.
type geometry struct {
	blockSize, rtExtent, groupBlocks, groups, logBlocks, sector, inode, inodePercent uint32
	blocks                                                                           uint64
	rest                                                                             [72]byte
}

// growth is struct xfs_growfs_data.
type growth struct {
	blocks       uint64
	inodePercent uint32
	_            uint32
}

func call(f *os.File, number uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), number, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func geometryOf(f *os.File) (now geometry, err error) {
	err = call(f, geometryCall, unsafe.Pointer(&now))
	return now, err
}

// growXFS has the file system that is mounted at dir use all of its device.
func growXFS(dir string, sizeBytes int64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := geometryOf(f)
	if err != nil {
		return fmt.Errorf("how large its XFS is: %w", err)
	}
	want := growth{blocks: uint64(sizeBytes) / uint64(now.blockSize), inodePercent: now.inodePercent}
	if want.blocks <= now.blocks {
		return nil
	}
	if err := call(f, growCall, unsafe.Pointer(&want)); err != nil {
		return fmt.Errorf("grow its XFS from %d to %d blocks: %w", now.blocks, want.blocks, err)
	}
	return nil
}

// Clone makes another image of what is in this one at a moment: all that its users have had
// synced to disk, as after a power cut. It takes no room until one of the two is written to,
// and blocks until what was written to this one before is on disk. It returns
// ErrNoReflink where that can't be, and fs.ErrExist if there is a file to.
func (d Image) Clone(_ context.Context, to string) error {
	if err := d.clone(to); err != nil {
		return fmt.Errorf("clone disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) clone(to string) error {
	if _, err := os.Lstat(to); err == nil {
		return &os.PathError{Op: "clone", Path: to, Err: fs.ErrExist}
	}
	if err := d.sync(); err != nil {
		return err
	}
	from, err := os.Open(d.File)
	if err != nil {
		return err
	}
	defer from.Close()
	partial := to + Partial
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// The kernel holds writes back until all blocks are shared (ioctl_ficlone(2)): what is
	// there is of one moment.
	err = unix.IoctlFileClone(int(f.Fd()), int(from.Fd()))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", ErrNoReflink, err)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return errors.Join(&os.LinkError{Op: "rename", Old: partial, New: to, Err: err}, os.Remove(partial))
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}

// sync has what is in the image's file system written to the image, if it is mounted.
func (d Image) sync() error {
	mounted, err := hostmount.Has(d.Mount)
	if err != nil || !mounted {
		return err
	}
	var f *os.File
	err = hostmount.Do(func() (err error) { f, err = os.Open(d.Mount); return err })
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
