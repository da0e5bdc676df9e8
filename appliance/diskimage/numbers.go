package diskimage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// Loop devices that tenants are shown have numbers of their own, and each has been given once until the host is started anew.
//
// The kernel looks first whether somebody may open a node, and later which device has its number. So who was opening one when it
// was taken back may come to a device that has the number by then. He comes to his own image, or to none: a number that is free
// the kernel makes a device of again when it is opened, which is of no file, and which tenants can't give one
// (modules/machine, ioctls).
const (
	// firstShown and lastShown are all with six digits and more, so that a rule of udev can tell them (modules/volume), up to what
	// the kernel's device numbers have room for: 948,576. Below are numbers for all else.
	firstShown = 100_000
	lastShown  = 1<<20 - 1
)

// ErrNumbers is returned once all numbers for raw blocks were given.
var ErrNumbers = errors.New("all numbers of loop devices for raw blocks were given since the host was started: restart it")

// ErrPartitions is returned on hosts whose kernel looks for partitions on each loop device, and so on what tenants write.
var ErrPartitions = errors.New("its kernel looks for partitions on loop devices: load the kernel's module loop without max_part")

// CanShow says why this host can't show raw blocks: ErrPartitions.
func CanShow() error {
	most, err := os.ReadFile("/sys/module/loop/parameters/max_part")
	if text := strings.TrimSpace(string(most)); err == nil && text != "0" {
		return fmt.Errorf("%w=%s", ErrPartitions, text)
	}
	return nil
}

// Numbers are those numbers. It is safe for concurrent use, by one process.
type Numbers struct {
	File string // where is kept how far they were given; its folder is there

	mu sync.Mutex
}

// given is what the file says.
type given struct {
	Boot string `json:"boot"` // the kernel's boot_id
	Next int    `json:"next"`
}

// take returns a number that was given to nobody. That it is given is on the disk before it returns. Where the file is lost, or
// of another boot, it is above those of devices that are there.
func (n *Numbers) take() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, err
	}
	now := given{string(bytes.TrimSpace(boot)), firstShown}
	data, err := os.ReadFile(n.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var was given
	if json.Unmarshal(data, &was) == nil && was.Boot == now.Boot { // what can't be read is as lost
		now.Next = max(now.Next, was.Next)
	}
	there, err := shownDevices()
	if err != nil {
		return 0, err
	}
	for _, number := range there {
		now.Next = max(now.Next, number+1)
	}
	if now.Next > lastShown {
		if slices.Contains(there, lastShown) {
			return 0, fmt.Errorf("%w, or detach /dev/loop%d", ErrNumbers, lastShown)
		}
		return 0, ErrNumbers
	}
	number := now.Next
	now.Next++
	return number, atomicfile.WriteJSON(n.File, now)
}

// IsShown says whether a device is one that tenants are shown, by its name (/dev/loopN): what is on it they wrote, and the host
// believes none of it.
func IsShown(device string) bool {
	number, err := strconv.Atoi(strings.TrimPrefix(device, "/dev/loop"))
	return err == nil && number >= firstShown
}

// shownDevices are the numbers of loop devices of the range, bound or not.
func shownDevices() (all []int, err error) {
	devices, err := filepath.Glob("/sys/block/loop[1-9][0-9][0-9][0-9][0-9][0-9]*")
	for _, device := range devices {
		if number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(device), "loop")); err == nil && number >= firstShown {
			all = append(all, number)
		}
	}
	return all, err
}

// openShown makes a block device of a file, with a number that nobody was shown, and sectors of 512 bytes wherever the file is.
// It does not free itself.
func (n *Numbers) openShown(backing string) (*os.File, error) {
	if err := Tidy(); err != nil {
		return nil, err
	}
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
	if err := CanShow(); err != nil { // the module may have been loaded by that
		return nil, err
	}
	// Another process may take the device that was just made, or Tidy it away: then it was nobody's, and another number is.
	for try := 0; ; try++ {
		number, err := n.take()
		if err != nil {
			return nil, err
		}
		err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number)
		var device *os.File
		if err == nil {
			device, err = configureLoop(number, file, loopKind{direct: true, sector: 512})
		}
		if err == nil {
			hideFile(device)
			return device, nil
		}
		passes := errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
		if !passes || try == 64 {
			return nil, fmt.Errorf("set up loop device %d for %s: %w", number, backing, err)
		}
	}
}

// Tidy takes loop devices of the range away that are of no file any more. One that somebody has open goes when he closes it; till
// then it is made one of nothing, or who asks the kernel for any free device would be given it, and the other would have
// open what he puts there. He can keep that from being done (O_EXCL): then a device below is kept free, which the kernel gives
// first.
func Tidy() error {
	all, err := shownDevices()
	anybodys := false
	for _, number := range all {
		if isBound(number) {
			continue
		}
		free, gone := retire(number)
		if gone != nil {
			err = errors.Join(err, fmt.Errorf("take loop device %d away: %w", number, gone))
		}
		anybodys = anybodys || free
	}
	if anybodys {
		err = errors.Join(err, spare())
	}
	return err
}

func isBound(number int) bool {
	_, err := os.Stat(fmt.Sprintf("/sys/block/loop%d/loop", number))
	return err == nil
}

// spare has a device be free below those that tenants are shown.
func spare() error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err == nil && number >= firstShown {
		_, err = addBelow(control)
	}
	return err
}

// retire is Tidy of one that was of no file when it was looked at. It is anybody's still if somebody has it open for himself
// alone.
func retire(number int) (anybodys bool, err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer control.Close()
	switch err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number); {
	case err == nil:
		// In a /dev that is the kernel's own it has gone.
		if err := os.Remove(fmt.Sprintf("/dev/loop%d", number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		return false, nil
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return false, nil // gone meanwhile
	case !errors.Is(err, unix.EBUSY):
		return false, err
	}
	fd, err := unix.MemfdCreate("nothing", unix.MFD_CLOEXEC)
	if err != nil {
		return false, err
	}
	nothing := os.NewFile(uintptr(fd), "nothing")
	defer nothing.Close()
	device, err := configureLoop(number, nothing, loopKind{frees: true})
	switch {
	case errors.Is(err, unix.EBUSY): // it is of a file, or somebody's alone
		return !isBound(number), nil
	case errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist):
		return false, nil // gone
	case err != nil:
		return false, err
	}
	return false, device.Close()
}
