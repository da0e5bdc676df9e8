package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryBound is what the control groups that this process is in let it take, in
// bytes; at most what the machine has.
func MemoryBound() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	least := int64(min(info.Totalram*uint64(info.Unit), math.MaxInt64))
	hs, err := hierarchies()
	if err != nil {
		return least, nil // nothing bounds it then
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	for _, h := range hs {
		group, ok := "", h.v2
		if h.v2 {
			for line := range strings.Lines(string(data)) {
				if of, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
					group = of
				}
			}
		} else if slices.Contains(h.controllers, "memory") {
			group, ok = groupOf(string(data), h)
		}
		if ok {
			least = min(least, boundOf(h.dir, group))
		}
	}
	return least, nil
}

// boundOf is the lowest bound of a group and of those that it is in.
func boundOf(root, group string) int64 {
	least := int64(math.MaxInt64)
	for dir := filepath.Clean("/" + group); ; dir = filepath.Dir(dir) {
		for _, file := range []string{"memory.max", "memory.high", "memory.limit_in_bytes"} {
			data, err := os.ReadFile(filepath.Join(root, dir, file))
			if err != nil {
				continue // of the other version, or the root group
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 { // "max" is none
				least = min(least, n)
			}
		}
		if dir == "/" {
			return least
		}
	}
}
