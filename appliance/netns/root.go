package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockName is a hidden file, so no namespace can have its name.
const lockName = ".multipaas.lock"

// lockRoot makes Root if need be and locks it among processes of ours. unlock
// must be called.
func lockRoot() (unlock func(), err error) {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(Root, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	// The lock goes with the file, also when the process is killed.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	if err := shareRoot(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// shareRoot makes Root a shared mount of its own. Otherwise a mount namespace
// that was made earlier would keep each namespace alive by its copy of the bind
// mount, and removing it there would not reach it. iproute2 does the same, and
// both find what the other did.
func shareRoot() error {
	err := unix.Mount("", Root, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point
		return fmt.Errorf("share %s: %w", Root, err)
	}
	if err := unix.Mount(Root, Root, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", Root, err)
	}
	if err := unix.Mount("", Root, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share %s: %w", Root, err)
	}
	return nil
}
