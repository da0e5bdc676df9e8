package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// blocks tells of a device that a pod has: how large it is, what it begins with, and what it lets be done to loop devices,
// which must be nothing; then it writes text there, for good.
func blocks(args []string) error {
	if len(args) != 2 {
		return errors.New("blocks: want a device, and what to write there")
	}
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	begins := make([]byte, 512)
	if _, err := f.ReadAt(begins, 0); err != nil {
		return err
	}
	begins, _, _ = bytes.Cut(begins, []byte{0})
	var open []string
	// LOOP_SET_FD to LOOP_CONFIGURE, what may come after, and LOOP_CTL_ADD to LOOP_CTL_GET_FREE of linux/loop.h. -1 is no file.
	for _, family := range []uintptr{0x4c00, 0x4c80} {
		for number := family; number < family+16; number++ {
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), number, ^uintptr(0))
			if !errors.Is(errno, syscall.EPERM) {
				open = append(open, fmt.Sprintf("%#x:%v", number, errno))
			}
		}
	}
	fmt.Printf("size %d begins %q allows [%s]\n", size, begins, strings.Join(open, " "))
	block := make([]byte, 512)
	copy(block, args[1])
	if _, err := f.WriteAt(block, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(block, size-512); err != nil {
		return err
	}
	return f.Sync()
}
