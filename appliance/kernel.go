package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/preflight"
)

// setting is a kernel setting that is raised if it is lower, for the whole host.
// What was raised stays until the host is booted again, also when nothing of ours runs:
// it takes no memory by itself.
type setting struct {
	name  string // below /proc/sys
	least int
}

// atLeast are the settings of a host with so many bytes of memory. Each kubelet,
// containerd and plane watches files; a distribution's limits are for a few programs
// of one user.
//
// What the kernel counts once for all, all tenants draw from. Where it charges the
// memory to who takes it, the count is made so large that his memory ends first:
// a divisor is less than what one costs, in bytes. For what it charges to nobody
// (connections, neighbours) modules/network bounds what each tenant can have, and
// these make room for all of them.
func atLeast(memory uint64) []setting {
	share := func(bytes uint64) int { return int(min(memory/bytes, math.MaxInt32)) }
	return []setting{
		// A connection whose full packets vanish on the way tries smaller ones after
		// three seconds (RFC 4821), and without that setting never: what nodes and
		// servers say to each other goes on over a switch with a smaller MTU.
		{"net/ipv4/tcp_mtu_probing", 1},

		{"fs/inotify/max_user_instances", preflight.InotifyInstances},
		{"fs/inotify/max_user_watches", 524288},

		{"fs/aio-max-nr", share(64)},    // two events of 32 bytes each are made room for
		{"fs/file-max", share(128)},     // a struct file is 176 bytes and more
		{"kernel/pty/max", share(1024)}, // 3 KiB measured; before Linux 5.19 the inode, the name and the file only
		{"kernel/pid_max", 1 << 22},     // as many as there can be; machines have a bound on tasks

		// Per user, of which each workspace has its own. runc makes a keyring for each
		// container, as the machine's root: the kernel's 200 are a hundred pods of all the
		// workspace's machines on a host. A task holds one at most, and tasks are bounded.
		{"kernel/keys/maxkeys", maxKeys},
		{"kernel/keys/maxbytes", maxKeys * 100}, // "_ses.", 64 digits, and what else they may be called

		// Half a percent of the memory at most, of 320 bytes each, in each network namespace.
		// A workspace's way out holds 16,192 at most (modules/network), which is less than
		// there are for each GiB. The buckets first: the longest chains are of 100.
		{"net/netfilter/nf_conntrack_buckets", share(1 << 18)},
		{"net/netfilter/nf_conntrack_max", share(1 << 16)},

		// Two for each pod, and the operator's own networks. Members of a workspace's
		// network are none of them. 131,072 take 50 MB.
		{"net/ipv4/neigh/default/gc_thresh1", 1 << 13},
		{"net/ipv4/neigh/default/gc_thresh2", 1 << 16},
		{"net/ipv4/neigh/default/gc_thresh3", 1 << 17},
		{"net/ipv6/neigh/default/gc_thresh1", 1 << 13},
		{"net/ipv6/neigh/default/gc_thresh2", 1 << 16},
		{"net/ipv6/neigh/default/gc_thresh3", 1 << 17},
	}
}

const maxKeys = 1 << 16

// prepareKernel loads the kernel modules that nothing loads by itself and
// raises limits. What it can't do is no error yet: the preflight checks say
// what of it is needed.
func prepareKernel(ctx context.Context, modules []preflight.Module) (errs []error) {
	for _, m := range modules {
		if m.Loaded() {
			continue
		}
		if out, err := exec.CommandContext(ctx, "modprobe", m.Name).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("load kernel module %s: %w: %s", m.Name, err, bytes.TrimSpace(out)))
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return append(errs, fmt.Errorf("read how much memory there is: %w", err))
	}
	return append(errs, raise("/proc/sys", atLeast(info.Totalram*uint64(info.Unit)))...)
}

// raise writes the settings below dir that are lower than they should be.
func raise(dir string, settings []setting) (errs []error) {
	for _, s := range settings {
		file := filepath.Join(dir, s.name)
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a kernel without it, or of a network namespace that isn't the kernel's first
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if have, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && have >= s.least {
			continue
		}
		if info, err := os.Stat(file); err == nil && info.Mode()&0o200 == 0 {
			continue // it is shown to this network namespace, and belongs to the kernel's first
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(s.least)), 0); err != nil {
			errs = append(errs, fmt.Errorf("raise kernel setting %s to %d: %w", s.name, s.least, err))
		}
	}
	return errs
}
