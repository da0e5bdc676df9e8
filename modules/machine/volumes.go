package machine

import (
	"cmp"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

// volumesDir is a tmpfs of its own on the host, in which modules/volume mounts what is attached to
// the machine. The machine has it as a slave: what is mounted on the host appears inside, what root in
// there mounts and unmounts is so for him alone.
const volumesDir = wire.VolumesOfMachine

// hasVolumes says whether it is there: it is from the start of a machine on, or never.
func hasVolumes(m home) bool {
	var f unix.Statfs_t
	return unix.Statfs(m.at(volumesDir), &f) == nil && f.Type == unix.TMPFS_MAGIC
}

// makeVolumes mounts it, unless it is there: what is attached stays when a machine is started anew.
func makeVolumes(m home, first int) error {
	dir := m.at(volumesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := hostmount.Has(dir)
	if err != nil {
		return err
	}
	if !mounted {
		// Root in the machine passes through as the group; nobody but the host makes anything in it.
		options := fmt.Sprintf("size=64k,mode=750,uid=0,gid=%d", first)
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	// Again, if who mounted it was killed: it is not everywhere that mounts are shared.
	return cmp.Or(os.Chown(dir, 0, first), unix.Mount("", dir, "", unix.MS_SHARED, ""))
}
