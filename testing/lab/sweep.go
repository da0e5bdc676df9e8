package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sweep removes all labs that nobody owns any more: those whose owner was
// killed, and those whose folder is gone. With kept also those that were kept
// after a failure. It returns the names of the labs it removed.
func Sweep(ctx context.Context, kept bool) ([]string, error) {
	unlock, err := lockRegistry()
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := slots()
	if err != nil {
		return nil, err
	}
	var (
		names []string
		errs  []error
	)
	for _, s := range all {
		_, err := os.Stat(s.Dir)
		gone := s.Dir == "" || errors.Is(err, fs.ErrNotExist)
		if !gone && (s.Owner.alive() || s.Keep && !(kept && s.Scratch)) {
			continue
		}
		if err := s.destroy(ctx); err != nil {
			errs = append(errs, fmt.Errorf("sweep lab %s: %w", s.prefix(), err))
			continue
		}
		names = append(names, s.prefix()+" "+s.Name)
	}
	return names, errors.Join(errs...)
}

// destroy removes everything that bears the slot's name, then the slot: it can
// be done again if it fails half way. Nothing of it being there is no error.
func (s slot) destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Processes first: all else is in use by them.
	if err := killGroups(ctx, s.prefix()); err != nil {
		return err
	}
	errs := []error{s.removeLinks(), s.removeTable(ctx), removeGroups(ctx, s.prefix())}
	if s.Dir != "" {
		errs = append(errs, removeMounts(s.Dir), detachLoops(ctx, s.Dir))
		if s.Scratch {
			errs = append(errs, os.RemoveAll(s.Dir))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(s.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeLinks removes the bridge and our ends of the hosts' links; their other
// ends go with them.
func (s slot) removeLinks() error {
	links, err := netlink.LinkList()
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ { // another lab's come and go
		links, err = netlink.LinkList()
	}
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if name != s.bridge() && !strings.HasPrefix(name, s.prefix()+"h") {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// networkInUse says whether something on this machine has the slot's network or
// its bridge's name.
func (s slot) networkInUse() bool {
	if _, err := netlink.LinkByName(s.bridge()); err == nil {
		return true
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		base := s.subnet().Addr().As4()
		return a.Contains(base[:]) || s.subnet().Contains(s.address(1)) && a.IPNet.IP.Mask(a.Mask).Equal(base[:])
	})
}

// removeMounts unmounts what stands below dir in our namespace. Hosts mount in
// their own; this is for what a test has mounted.
func removeMounts(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// detachLoops frees the loop devices whose file is below dir. A device names its
// file as the namespace of the host saw it, "/img", so files are told by inode.
func detachLoops(ctx context.Context, dir string) error {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil || len(devices) == 0 {
		return err
	}
	backing := map[inode]string{}
	for _, d := range devices {
		name := "/dev/" + strings.Split(d, "/")[3]
		if file, ok := backingOf(name); ok { // else detached meanwhile
			backing[file] = name
		}
	}
	var errs []error
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // gone meanwhile, or a folder
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if name := backing[inode{st.Dev, st.Ino}]; name != "" {
			out, err := exec.CommandContext(ctx, "losetup", "-d", name).CombinedOutput()
			if now, ok := backingOf(name); err != nil && ok && now == (inode{st.Dev, st.Ino}) { // else it went by itself meanwhile
				errs = append(errs, fmt.Errorf("detach %s: %w: %s", name, err, strings.TrimSpace(string(out))))
			}
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

type inode struct{ device, number uint64 }

// backingOf is the file behind a loop device, if there is one.
func backingOf(name string) (inode, bool) {
	f, err := os.Open(name)
	if err != nil {
		return inode{}, false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return inode{}, false
	}
	return inode{info.Device, info.Inode}, true
}
