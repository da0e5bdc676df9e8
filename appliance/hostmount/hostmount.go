// Package hostmount makes and takes away mounts where all of the host sees them.
//
// What a unit may write to is bounded by giving it a mount namespace of its own
// (ProtectSystem= and the like of systemd.exec(5)). What is mounted on the host shows
// there too; what is mounted there shows nowhere else and ends with the unit. The
// names of network namespaces and the file systems of machines must outlive it, and
// others must see them.
//
// Parties: parts that mount what outlives the process. Any package may import it;
// it imports leaves only.
package hostmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/thread"
)

// Variable is the environment variable in which who started us says by which file
// the host's mount namespace is had, if it has given us another: /proc/1/ns/mnt.
// Unset or empty: ours is the host's.
const Variable = "MULTIPAAS_HOST_MOUNTS"

// Do runs fn where what is mounted, and unmounted, is so for all of the host, and
// returns its error. All paths in fn must be absolute, and are the host's. In
// /proc it is seen by thread-self, not by self. fn must not block for long: it may hold
// an OS thread. It may be on another goroutine than the caller, but Do waits for it.
func Do(fn func() error) error {
	host := os.Getenv(Variable)
	if host == "" {
		return fn()
	}
	return thread.Do(func() (clean bool, err error) {
		ns, err := os.Open(host)
		if err != nil {
			return true, fmt.Errorf("open the host's mounts: %w", err)
		}
		defer ns.Close()
		// A thread that shares its working directory with others can't go elsewhere.
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			return false, fmt.Errorf("enter the host's mounts by %s: %w", host, err)
		}
		return false, fn()
	})
}

// Check says why Do can't do what it promises.
func Check() error { return Do(func() error { return nil }) }

// Below lists the host's mount points at and below dir, deepest first, without links in
// their paths.
func Below(dir string) (found []string, err error) {
	_, infos, err := Infos(dir)
	return points(infos), err
}

func points(infos []*mountinfo.Info) (found []string) {
	for _, info := range infos {
		found = append(found, info.Mountpoint)
	}
	return found
}

// Infos is Below with all that is known of each mount, and returns dir without links as
// well. No file system is asked, so none keeps it waiting.
func Infos(dir string) (real string, infos []*mountinfo.Info, err error) {
	err = Do(func() (err error) {
		if real, err = resolve(dir); err == nil {
			infos, err = mountinfo.GetMounts(mountinfo.PrefixFilter(real))
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil // nothing is mounted at what isn't there
		}
		return err
	})
	slices.Reverse(infos) // later mounts lie on top of earlier ones
	return real, infos, err
}

// resolve is dir without links. What is mounted at dir is not asked for anything.
func resolve(dir string) (string, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	real := filepath.Join(parent, filepath.Base(dir))
	if _, err := os.Readlink(real); err == nil {
		return filepath.EvalSymlinks(real)
	}
	return real, nil
}

// Has says whether something is mounted at dir, for all of the host.
func Has(dir string) (bool, error) {
	real, infos, err := Infos(dir)
	return slices.Contains(points(infos), real), err
}

// Unmount unmounts everything at and below dir. Where somebody looks at it, from a
// shell say, it goes when he leaves.
func Unmount(dir string) error {
	found, err := Below(dir)
	if err != nil {
		return err
	}
	for _, point := range found {
		err := Do(func() error {
			err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EBUSY) {
				err = unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
			return err
		})
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
