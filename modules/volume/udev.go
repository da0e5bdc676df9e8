package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// udevDir is where udev keeps what it knows, on hosts that have it.
const udevDir = "/run/udev"

// udevReads is how long after a rule was written udev knows it for certain: it looks for new ones before
// each event, unless it has within the last three seconds (systemd 252, event_queue_start).
const udevReads = 10 * time.Second

// unseenRule is of all loop devices that tenants are shown: their numbers have six digits and more (appliance/diskimage,
// Numbers), whatever pool their file is in.
const unseenRule = `SUBSYSTEM=="block", KERNEL=="loop[1-9][0-9][0-9][0-9][0-9][0-9]*", ` +
	`ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ` +
	`ENV{SYSTEMD_READY}="0", OPTIONS:="nowatch"` + "\n"

// unseen has a host's udev look at no raw block that is a tenant's. By itself it reads what is written on each disk, so a tenant
// who writes there what the host's own disk is called by would have that name (/dev/disk/by-uuid) lead to his; and LVM, md
// and btrfs take what looks like a part of theirs for one. On a host without udev nobody looks by himself: the kernel looks
// for partitions only (diskimage.CanShow). The error passes.
func unseen(udev string) error {
	file := filepath.Join(udev, "rules.d", "59-multipaas-blocks.rules")
	var since time.Duration
	err := hostmount.Do(func() error {
		if _, err := os.Stat(filepath.Join(udev, "control")); err != nil {
			return err
		}
		have, err := os.ReadFile(file)
		if err == nil && string(have) == unseenRule {
			info, err := os.Stat(file)
			if err == nil {
				since = time.Since(info.ModTime())
			}
			return err
		}
		return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), atomicfile.Write(file, []byte(unseenRule), 0o644))
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // nobody looks
	case err != nil:
		return fmt.Errorf("have udev not look at raw blocks: %w", err)
	case since >= 0 && since < udevReads:
		return saidf("its host has just started, and shows raw blocks some seconds later")
	}
	return nil
}
