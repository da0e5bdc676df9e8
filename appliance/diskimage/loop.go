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

// What one image may have under way on the disk that it is on: 4 MiB, in 16 requests. Others have images on that disk, and
// what they want synced waits for all that is under way. By itself a loop device has 128 requests of 1.25 MiB: beside 64
// writers of 1 MiB at a time an fsync of 4 KiB took 4 s in one of 100 cases, alone 0.2 s; so it takes 75 ms, alone 29
// (TestNeighbours, Linux 6.18, a disk of 2 GB/s that others used too). With 16 requests of 128 KiB it took 63 ms, alone 32,
// but writing in a row came to half of what it was; with 32 of them it took up to 608 ms. It costs who writes a lot in a row
// at 2 GB/s a tenth, who has 32 requests of 4 KiB under way up to a fifth, as near as that could be told.
// Weights of control groups don't do it: GlusterFS writes for all, and those of version 1 count for one scheduler only,
// which is not the usual one.
const (
	maxRequests   = "16"
	maxRequestKiB = "256"
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
		device, err := configureLoop(number, file, direct)
		if errors.Is(err, unix.EBUSY) && try < 64 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("set up loop device %d for %s: %w", number, backing, err)
		}
		return device, nil
	}
}

func configureLoop(number int, file *os.File, direct bool) (*os.File, error) {
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
		if !direct && flags&unix.LO_FLAGS_DIRECT_IO != 0 {
			continue
		}
		cfg := unix.LoopConfig{Fd: uint32(file.Fd())}
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
