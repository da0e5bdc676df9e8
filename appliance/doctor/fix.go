package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/netns"
)

// fix removes orphans in place, in the order of their kinds: processes first,
// which use everything else.
func fix(ctx context.Context, cfg Config, inv inventory.Inventory, orphans []Orphan) {
	// Mounts deepest first, and a folder after what is in it.
	slices.SortStableFunc(orphans, func(a, b Orphan) int {
		if a.Kind != b.Kind {
			return a.Kind.Order() - b.Kind.Order()
		}
		return strings.Compare(b.Name, a.Name)
	})
	for n := range orphans {
		o := &orphans[n]
		if o.Kept {
			continue
		}
		err := remove(ctx, cfg, *o)
		// Removed with another, or by the appliance itself, is removed too.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			o.Error = err.Error()
		} else {
			o.Removed = true
		}
		if cfg.Removed != nil {
			cfg.Removed(*o)
		}
	}
}

// remove removes one orphan, if it is still the one that was judged.
func remove(ctx context.Context, cfg Config, o Orphan) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch o.Kind {
	case inventory.Process:
		return end(ctx, o)
	case inventory.Cgroup:
		return cgroup.Kill(ctx, o.Name)
	case inventory.Mount:
		return unmount(o)
	case inventory.Mapped:
		return diskimage.Release(o.Name)
	case inventory.Loop:
		return detach(o)
	case inventory.Link:
		return inventory.Inside(o.Namespace, func() error { return removeLink(o) })
	case inventory.Rules:
		return removeTable(o)
	case inventory.Netns:
		if err := unchanged(netns.Root+"/"+o.Name, o); err != nil {
			return err
		}
		return netns.Remove(o.Name)
	case inventory.Folder:
		return removeFolder(o)
	case inventory.File, inventory.Socket:
		if err := unchanged(o.Name, o); err != nil {
			return err
		}
		return os.Remove(o.Name)
	case inventory.EtcdKey, inventory.User:
		removed, err := inventory.RemoveOrphans(ctx, cfg.Paths.Socket(), []inventory.Item{o.Item})
		if err == nil && len(removed) == 0 {
			return nil // gone with another: a user with the keys of his plane
		}
		return err
	}
	return fmt.Errorf("a %s is not removed by itself: it goes with what it belongs to", o.Kind)
}

var errChanged = errors.New("it is another one now: look again")

// end ends a process by a handle, so that no other one that got its id is meant.
func end(ctx context.Context, o Orphan) error {
	fd, err := unix.PidfdOpen(o.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if inventory.ProcessIdentity(o.PID) != o.Identity {
		return nil // it has ended; the handle may be another's
	}
	if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil {
		return err
	}
	for ctx.Err() == nil {
		// The handle can be read once the process has ended.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("process %d does not end", o.PID)
}

func unmount(o Orphan) error {
	mounts, err := inventory.Mounts(o.Name)
	if err != nil {
		return err
	}
	mounts = slices.DeleteFunc(mounts, func(m inventory.MountPoint) bool { return m.Path != o.Name })
	if len(mounts) == 0 {
		return nil
	}
	if !slices.Contains(mounts, inventory.MountPoint{ID: o.Identity, Path: o.Name}) {
		return errChanged
	}
	if what, _ := o.Owner.Split(); what == "volume" { // of raw blocks: who has bound the node elsewhere has it still
		if err := diskimage.CloseNode(o.Name); err != nil {
			return err
		}
	}
	err = unix.Unmount(o.Name, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) { // somebody looks at it: it goes when he leaves
		err = unix.Unmount(o.Name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: o.Name, Err: err}
	}
	return nil
}

// detach frees a loop device. One that is in use frees itself when it no longer
// is.
func detach(o Orphan) error {
	f, err := os.Open(o.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil // free already
	} else if err != nil {
		return &os.PathError{Op: "look at", Path: o.Name, Err: err}
	}
	if o.Identity != "" && strconv.FormatUint(info.Inode, 10) != o.Identity {
		return errChanged
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return &os.PathError{Op: "detach", Path: o.Name, Err: err}
	}
	return cmp.Or(f.Close(), diskimage.Tidy())
}

func removeLink(o Orphan) error {
	l, err := netlink.LinkByName(o.Name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	} else if err != nil {
		return fmt.Errorf("find interface %s: %w", o.Name, err)
	}
	if strconv.Itoa(l.Attrs().Index) != o.Identity {
		return errChanged
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", o.Name, err)
	}
	return nil
}

// removeTable removes one of the host's two firewall tables. The chain called
// closed says that the host did not forward before the table was there: see
// modules/network.
func removeTable(o Orphan) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	_, name, _ := strings.Cut(o.Name, " ") // behind its family
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("list firewall chains: %w", err)
	}
	if slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == name && ch.Name == "closed" }) {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			return err
		}
	}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove firewall table %s: %w", o.Name, err)
	}
	return nil
}

// unchanged says that a file or folder is still the one that was judged. One that
// was mounted over has no identity of its own; its name is enough, for ids never
// come back.
func unchanged(name string, o Orphan) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if o.Identity != "" && inventory.FileIdentity(info) != o.Identity {
		return errChanged
	}
	return nil
}

// removeFolder never reaches into something that is mounted below.
func removeFolder(o Orphan) error {
	if err := unchanged(o.Name, o); err != nil {
		return err
	}
	mounts, err := inventory.Mounts(filepath.Clean(o.Name))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %s: still mounted: %v", o.Name, mounts)
	}
	return os.RemoveAll(o.Name)
}
