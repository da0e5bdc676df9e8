package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// loopMajor is the device number of loop devices.
const loopMajor = 7

// What one image may have under way on the disk that it is on: 1 MiB, in 16 requests. Others have images on that disk, and
// what they want synced waits for all that is under way. By itself a loop device has 128 requests of 1.25 MiB. Beside who
// writes 1 MiB after MiB, 64 at a time, an fsync of 4 KiB took in one of 100 cases (Linux 6.18, a quiet disk of 3 GB/s,
// alone 1 to 9 ms): 2,000 ms so; 20 to 1,000 ms with 4 MiB under way, in 16 or 32 requests; 20 to 80 ms with 2 MiB; 3 to
// 5 ms with 1 MiB, which costs the writer up to a fifth of 3 GB/s. More and smaller requests of 1 MiB in all help
// small reads (of 4 KiB 66,000 a second with 32, 61,000 with 16, 53,000 with 8, on the plain file 87,000), and cost who
// writes in a row more.
// Weights of control groups don't do it: GlusterFS writes for all, and those of version 1 count for one scheduler only,
// which is not the usual one.
const (
	maxRequests   = "16"
	maxRequestKiB = "64"
)

// ErrNoLoop is returned where the kernel gives no loop device: all of its numbers are taken, say, or it has no room for
// another.
var ErrNoLoop = errors.New("there is no loop device free")

// openLoop makes a block device of a file, by direct I/O or, if that can't be or shall not
// be, by way of the host's page cache. The device frees itself once it is closed and
// unmounted, so who is killed leaks none.
func openLoop(backing string, direct bool) (device *os.File, err error) {
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
			return nil, fmt.Errorf("%w: %w", ErrNoLoop, err)
		}
		if number >= firstShown { // a tenant may be opening it: see Numbers
			if number, err = below(control, number); err != nil {
				return nil, err
			}
		}
		device, err := configureLoop(number, file, loopKind{direct: direct, frees: true})
		if errors.Is(err, unix.EBUSY) && try < 64 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("set up loop device %d for %s: %w", number, backing, err)
		}
		return device, nil
	}
}

// below makes a device with a number for all that tenants aren't shown, in the place of one that the kernel has offered. None of
// those that are there is free, or the kernel would have offered that.
func below(control *os.File, offered int) (int, error) {
	if _, err := retire(offered); err != nil {
		return 0, fmt.Errorf("take loop device %d away: %w", offered, err)
	}
	return addBelow(control)
}

func addBelow(control *os.File) (int, error) {
	for number := range firstShown {
		err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number)
		if err == nil {
			return number, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("%w: %w", ErrNoLoop, err)
		}
	}
	return 0, ErrNoLoop
}

// loopKind is how a loop device shall be.
type loopKind struct {
	direct bool   // by direct I/O, if that can be
	frees  bool   // it frees itself
	sector uint32 // bytes; 0: as the kernel has it for the file
}

func configureLoop(number int, file *os.File, kind loopKind) (*os.File, error) {
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
	// Direct I/O: without it every page is cached twice, and the second time counts for nobody.
	// What it costs stays: a loop device has no FUA (queue/fua is 0), so each fsync of a file system
	// flushes it twice, before its log and after (counted in /sys/block/loopN/stat), where a file beside
	// the image is flushed once. An image whose blocks are all there has that too, so none is
	// allocated beforehand. Random reads of 4 KiB cost the device's workers: sectors of 4 KiB, no
	// statistics and no merging made no difference beyond what two runs differ by (Linux 6.18).
	for _, flags := range []uint32{unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO, unix.LO_FLAGS_AUTOCLEAR} {
		if !kind.direct && flags&unix.LO_FLAGS_DIRECT_IO != 0 {
			continue
		}
		if !kind.frees {
			flags &^= unix.LO_FLAGS_AUTOCLEAR
		}
		cfg := unix.LoopConfig{Fd: uint32(file.Fd()), Size: kind.sector}
		cfg.Info.Flags = flags
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file.Name())
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &cfg); err == nil {
			// As well as it can be: without it an image is as good as any.
			queue := fmt.Sprintf("/sys/block/loop%d/queue/", number)
			_ = os.WriteFile(queue+"nr_requests", []byte(maxRequests), 0)
			_ = os.WriteFile(queue+"max_sectors_kb", []byte(maxRequestKiB), 0)
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
		info, err := loopStatus(name)
		if _, gone := os.Stat(dir); errors.Is(err, unix.ENXIO) || errors.Is(gone, fs.ErrNotExist) {
			continue // freed meanwhile
		}
		// The file system that its file is on has stopped, and ours has not: a disk that fails keeps no other from being used.
		if errors.Is(err, unix.EIO) && unix.Stat(backing, &want) == nil {
			continue
		}
		if err != nil { // it may be the one: who takes it for free mounts a file system twice
			return nil, fmt.Errorf("see what %s is of: %w", name, err)
		}
		if info.Inode == want.Ino && info.Device == want.Dev {
			names = append(names, name)
		}
	}
	return names, nil
}

func loopStatus(name string) (*unix.LoopInfo64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// ErrInUse is returned for an image that a loop device has.
var ErrInUse = errors.New("is in use")

// AwaitFree waits until no loop device uses a file, for ten seconds at most: the mount
// namespace of a machine that was killed goes a moment after its last process. No file is free.
// It returns ErrInUse then.
func AwaitFree(ctx context.Context, backing string) error {
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
			return fmt.Errorf("disk %s %w by %v: something has it mounted in another mount namespace", backing, ErrInUse, names)
		case <-time.After(wait):
		}
	}
}
