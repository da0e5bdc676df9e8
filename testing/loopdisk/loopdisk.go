// Package loopdisk has files stand for disks, for the tests of what takes disks.
package loopdisk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Plug has a file be a disk of this host, under whatever name is free. The disk is there as long as it is open, by the
// caller or anybody else. It needs root.
func Plug(file string) (*os.File, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		_ = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))) // where nobody else makes it
		disk, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(backing.Fd())}
		cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(cfg.Info.File_name[:], file)
		err = unix.IoctlLoopConfigure(int(disk.Fd()), &cfg)
		if err == nil {
			return disk, nil
		}
		disk.Close()
		if !errors.Is(err, unix.EBUSY) { // else somebody was faster
			return nil, err
		}
	}
}
