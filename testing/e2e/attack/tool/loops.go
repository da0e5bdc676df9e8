package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loops tries, as who has a device, all that loop devices can be asked for (linux/loop.h), and what reaches the disk beneath;
// one line for each.
func loops(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	own, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer own.Close()
	say := func(what string, err error) {
		// What the kernel finds wrong with the request it has looked at.
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			fmt.Println(what, "closed", err)
		} else {
			fmt.Println(what, "open", err)
		}
	}
	for _, family := range []uintptr{0x4c00, 0x4c80} {
		for number := family; number < family+16; number++ {
			say(fmt.Sprintf("ioctl:%#x", number), call(unix.SYS_IOCTL, f.Fd(), number, own.Fd()))
			say(fmt.Sprintf("ioctl:%#x with more bits", number), call(unix.SYS_IOCTL, f.Fd(), number|1<<32, own.Fd()))
		}
	}
	// Of block devices: by name what takes the host's memory, or has its kernel look at partitions; then all that are not let
	// through.
	setup := make([]byte, 4096)
	arg := uintptr(unsafe.Pointer(&setup[0]))
	for _, one := range []struct {
		name   string
		number uintptr
	}{
		{"BLKTRACESETUP", 0xc048_1273}, {"BLKTRACESETUP32", 0xc040_1273}, {"BLKTRACESTART", 0x1274}, {"BLKTRACESTOP", 0x1275},
		{"BLKTRACETEARDOWN", 0x1276}, {"BLKPG", 0x1269}, {"BLKRRPART", 0x125f}, {"BLKROSET", 0x125d}, {"BLKRASET", 0x1262},
		{"BLKFLSBUF", 0x1261}, {"BLKSECDISCARD", 0x127d}, {"BLKBSZSET", 0x4008_1271},
	} {
		say(one.name, call(unix.SYS_IOCTL, f.Fd(), one.number, arg))
		say(one.name+" with more bits", call(unix.SYS_IOCTL, f.Fd(), one.number|1<<32, arg))
	}
	sized := []uintptr{0x8008_1270, 0x8008_1272, 0x8008_1280}
	allowed := []uintptr{0x125e, 0x1260, 0x1263, 0x1267, 0x1268, 0x1277, 0x1278, 0x1279, 0x127a, 0x127b, 0x127c, 0x127e, 0x127f}
	var open error
	for number := uintptr(0x1200); number < 0x1300; number++ {
		for _, size := range []uintptr{0, 0x4008_0000, 0x8008_0000, 0xc048_0000} {
			let := size == 0 && slices.Contains(allowed, number) || slices.Contains(sized, size|number)
			if err := call(unix.SYS_IOCTL, f.Fd(), size|number, arg); !let && !errors.Is(err, unix.EPERM) {
				open = fmt.Errorf("%#x: %w", size|number, err)
			}
		}
	}
	say("all others of block devices", cmp.Or(open, error(unix.EPERM)))
	for _, kind := range []string{"xfs", "ext4"} {
		if exec.Command("mount", "-t", kind, device, "/mnt").Run() == nil {
			say("mount:"+kind, nil)
		} else {
			say("mount:"+kind, unix.EPERM)
		}
	}
	_, err = f.WriteAt(make([]byte, 512), 0)
	fmt.Println("control: write", err)
	return nil
}
