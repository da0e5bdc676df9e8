package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The lab makes its hosts' control groups itself and not by appliance/cgroup:
// that one works below the group of the process it runs in, a lab's groups stand
// at the top, and a test should not stand on what it tests.

const cgroupRoot = "/sys/fs/cgroup"

// groupName is the group of a host, below the root of every hierarchy; a host
// sees it as the root.
func (s slot) groupName(host string) string { return filepath.Join("multipaas-"+s.prefix(), host) }

// unified says whether this machine has control groups version 2 alone.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	Dir  string `json:"dir"`
	Type string `json:"type"` // cgroup or cgroup2
	Opts string `json:"opts"` // what to mount it with
}

// hierarchies lists what is mounted at /sys/fs/cgroup.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != cgroupRoot && filepath.Dir(f[1]) != cgroupRoot {
			continue
		}
		h := hierarchy{Dir: f[1], Type: f[2]}
		switch f[2] {
		case "cgroup2":
		case "cgroup":
			var opts []string
			for _, o := range strings.Split(f[3], ",") {
				switch {
				case strings.HasPrefix(o, "name="):
					opts = append(opts, "none", o)
				case slices.Contains([]string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"}, o):
					opts = append(opts, o)
				}
			}
			h.Opts = strings.Join(opts, ",")
		default:
			continue
		}
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups are mounted at " + cgroupRoot)
	}
	return all, nil
}

// makeGroups makes the group name in every hierarchy and returns the folders.
func makeGroups(name string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hs {
		dir := h.Dir
		for part := range strings.SplitSeq(name, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if h.Type == "cgroup2" {
				passOn(parent)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if h.Opts != "cpuset" {
					continue
				}
				data, err := os.ReadFile(filepath.Join(parent, file))
				if err != nil {
					return nil, err
				}
				if err := writeControl(filepath.Join(dir, file), strings.TrimSpace(string(data))); err != nil {
					return nil, err
				}
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// passOn gives the groups below dir every controller that dir has.
func passOn(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(data)) {
		_ = writeControl(filepath.Join(dir, "cgroup.subtree_control"), "+"+c) // some can't be passed on
	}
}

// initGroups are the folders that a host's process 1, and commands that are run
// on it, belong to. On version 2 a group with controllers to pass on holds no
// process itself, so it is a leaf.
func initGroups(dirs []string) ([]string, error) {
	if !unified() {
		return dirs, nil
	}
	leaf := filepath.Join(dirs[0], "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return []string{leaf}, nil
}

func enterGroups(dirs []string, pid int) error {
	for _, dir := range dirs {
		if err := writeControl(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("put process %d into %s: %w", pid, dir, err)
		}
	}
	return nil
}

// groupTree lists the groups of that name, and all below, the deepest first.
func groupTree(name string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hs {
		err := filepath.WalkDir(filepath.Join(h.Dir, name), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // it has gone meanwhile
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Reverse(dirs)
	return dirs, nil
}

// killGroups ends every process in the lab's, or the host's, groups.
func killGroups(ctx context.Context, prefix string) error { return killTree(ctx, "multipaas-"+prefix) }

func killTree(ctx context.Context, name string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		dirs, err := groupTree(name)
		if err != nil {
			return err
		}
		left := 0
		for _, dir := range dirs {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				continue // the group has gone
			}
			for f := range strings.FieldsSeq(string(data)) {
				pid, err := strconv.Atoi(f)
				if err != nil || pid == os.Getpid() {
					continue
				}
				left++
				_ = writeControl(filepath.Join(dir, "freezer.state"), "THAWED") // version 1
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%d processes of %s do not end: %w", left, name, ctx.Err())
		}
	}
}

func removeGroups(ctx context.Context, prefix string) error {
	return removeTree(ctx, "multipaas-"+prefix)
}

func removeTree(ctx context.Context, name string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		dirs, err := groupTree(name)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if rerr := unix.Rmdir(dir); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
				err = fmt.Errorf("remove group %s: %w", dir, rerr)
			}
		}
		if err == nil {
			return nil
		}
		// Busy for a moment after its last process has ended.
		if wait > 8*time.Second {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

func writeControl(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
