package diskimage

import (
	"fmt"
	"os"
	"path/filepath"
)

// hide has the kernel tell only root what an image is of: every container sees /sys, and a path or a name there has the UIDs of
// volumes that are others'. The mode is that of the file in all mounts of sysfs, as long as the device is set up, and root of a
// user namespace is not above it. An image is used without it too.
func hide(files ...string) {
	for _, file := range files {
		_ = os.Chmod(file, 0o400)
	}
}

// openHidden is openLoop, of which only root sees what file the device is.
func openHidden(backing string, direct bool) (device *os.File, err error) {
	if device, err = openLoop(backing, direct); err == nil {
		hideFile(device)
	}
	return device, err
}

func hideFile(device *os.File) {
	hide(fmt.Sprintf("/sys/block/%s/loop/backing_file", filepath.Base(device.Name())))
}
