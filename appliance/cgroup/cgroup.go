// Package cgroup makes, fills and ends control groups on hosts with version 2,
// with version 1, and with both.
//
// A group is named by a path relative to /multipaas, in the root of each
// hierarchy. The name stays the same over a restart, so a part finds what it
// left running.
//
// Parties: whoever runs processes that must be limited, or ended whole. Any
// package may import it; it imports nothing of ours.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mountPoint = "/sys/fs/cgroup"
	// parent is the group below which ours are. It stands beside the init
	// system's, not in our unit's group: what must outlive us is in it, and an
	// init system can start a unit again only in a group that has no groups with
	// controllers below.
	parent = "/multipaas"
)

// ErrNone is returned when no control groups are mounted.
var ErrNone = errors.New("no control groups are mounted at " + mountPoint)

// Path is the path of a group from the root of the hierarchy, as runc takes it.
func Path(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "/") || path.Clean(name) != name || name == "." || strings.HasPrefix(name, "..") {
		return "", fmt.Errorf("cgroup %q: not a relative path", name)
	}
	return path.Join(parent, name), nil
}

// Controllers are the controllers that limit processes here, sorted.
func Controllers() ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range hs {
		if !h.v2 {
			names = append(names, h.controllers...)
			continue
		}
		data, err := os.ReadFile(filepath.Join(h.dir, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		names = append(names, strings.Fields(string(data))...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	dir         string // where it is mounted
	v2          bool
	controllers []string // v1 only
}

// hierarchies reads what is mounted below /sys/fs/cgroup. ErrNone: nothing is.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	hs := parseMounts(string(data))
	if len(hs) == 0 {
		return nil, ErrNone
	}
	return hs, nil
}

// parseMounts takes the text of a mountinfo file. See proc(5).
func parseMounts(mountinfo string) []hierarchy {
	var hs []hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(rest) < 3 {
			continue
		}
		dir := fields[4]
		if dir != mountPoint && path.Dir(dir) != mountPoint {
			continue
		}
		h := hierarchy{dir: dir}
		switch rest[0] {
		case "cgroup2":
			h.v2 = true
		case "cgroup":
			for _, opt := range strings.Split(rest[2], ",") {
				if slices.Contains(knownV1, opt) {
					h.controllers = append(h.controllers, opt)
				}
			}
		default:
			continue
		}
		if !slices.ContainsFunc(hs, func(o hierarchy) bool { return o.dir == dir }) {
			hs = append(hs, h)
		}
	}
	return hs
}

// knownV1 tells controllers from other mount options.
var knownV1 = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"}

func readPIDs(file string) ([]int, error) {
	data, err := os.ReadFile(file)
	// ENODEV: the group went while we were reading.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// writeFile writes to a control file. It must be there: os.WriteFile would try
// to make it, and say something misleading.
func writeFile(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
