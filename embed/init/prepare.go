package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the container runtime mounts the machine's control
// groups: as the root, since the machine has a cgroup namespace of its own.
const cgroupRoot = "/sys/fs/cgroup"

// prepare makes this process fit to be the parent of a machine. Outside a
// machine it only becomes the reaper of what is started below it.
func prepare(first bool) error {
	if !first {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become subreaper: %w", err)
		}
		return nil
	}
	if err := shareMounts(); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	if err := delegate(cgroupRoot, os.Getpid()); err != nil {
		return fmt.Errorf("delegate control groups: %w", err)
	}
	return nil
}

// shareMounts makes mounts propagate between the machine and its pods: kubelet
// mounts volumes that pods with Bidirectional or HostToContainer mounts must
// see. Container runtimes start with private mounts unless told otherwise.
func shareMounts() error {
	shared, err := isShared("/proc/self/mountinfo", "/")
	if err != nil || shared {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// isShared says whether the topmost mount at mountPoint is shared. Fields of
// a line: id, parent, device, root, mount point, options, optional fields
// up to a dash.
func isShared(mountinfo, mountPoint string) (bool, error) {
	data, err := os.ReadFile(mountinfo)
	shared := false
	for line := range strings.Lines(string(data)) {
		before, _, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); len(fields) >= 6 && fields[4] == mountPoint {
			shared = slices.ContainsFunc(fields[6:], func(f string) bool { return strings.HasPrefix(f, "shared:") })
		}
	}
	return shared, err
}

// delegate moves this process out of the root of the machine's control
// groups, so that kubelet may give controllers to the groups of pods: cgroup
// v2 refuses that to a group that has processes itself. There is nothing to
// do on v1.
func delegate(root string, pid int) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	leaf := filepath.Join(root, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return err
	}
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(controllers)) {
		// One by one: a controller that can't be passed on must not take the
		// others with it. kubelet says which one it misses.
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	return nil
}
