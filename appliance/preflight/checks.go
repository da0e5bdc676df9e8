package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// root checks that we are root.
var root = Check{
	Name:   "root",
	Remedy: "start it as root, or by its systemd unit",
	Run: func(context.Context) error {
		if uid := os.Geteuid(); uid != 0 {
			return fmt.Errorf("runs as user %d, needs 0", uid)
		}
		return nil
	},
}

// capabilities checks for what namespaces, mounts and networks take, and for more.
func capabilities(more map[int]string) Check {
	return Check{
		Name:   "capabilities",
		Remedy: "start it with them: a container or a unit has taken them away",
		Run: func(context.Context) error {
			need := map[int]string{
				unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN",
				unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT",
				unix.CAP_KILL: "CAP_KILL", unix.CAP_CHOWN: "CAP_CHOWN",
				unix.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", unix.CAP_SETUID: "CAP_SETUID",
				unix.CAP_SETGID: "CAP_SETGID", unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
				unix.CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE", unix.CAP_FOWNER: "CAP_FOWNER",
			}
			maps.Copy(need, more)
			return needCaps(need)
		},
	}
}

// hostMounts checks that what is mounted can be seen by all of the host.
var hostMounts = Check{
	Name: "host-mounts",
	Remedy: "a unit with mounts of its own (ProtectSystem= and others) must set " + hostmount.Variable +
		"=/proc/1/ns/mnt and keep CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE, as the one that comes with multipaas does",
	Run: func(context.Context) error { return hostmount.Check() },
}

// oomPriority checks whether important processes can be kept from being killed
// first when memory runs out.
var oomPriority = Check{
	Name:   "oom-priority",
	Warn:   true,
	Remedy: "give it CAP_SYS_RESOURCE, or accept that the kernel may choose a control process when memory runs out",
	Run: func(context.Context) error {
		return needCaps(map[int]string{unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE"})
	},
}

func needCaps(caps map[int]string) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var missing []string
	for c, name := range caps {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		return fmt.Errorf("lacks %s", strings.Join(missing, ", "))
	}
	return nil
}

// lacking are those of names that are not there.
func lacking(names []string, there func(string) bool) []string {
	return slices.DeleteFunc(slices.Clone(names), there)
}

// cgroups checks that control groups with the needed controllers are mounted.
var cgroups = Check{
	Name:   "cgroups",
	Remedy: "mount control groups version 2 at /sys/fs/cgroup, and pass no cgroup_disable= to the kernel",
	Run: func(context.Context) error {
		have, err := cgroup.Controllers()
		if err != nil {
			return err
		}
		missing := lacking([]string{"cpu", "cpuset", "memory", "pids"}, func(c string) bool { return slices.Contains(have, c) })
		if len(missing) > 0 {
			return fmt.Errorf("controllers %s are missing; have %s", strings.Join(missing, ", "), strings.Join(have, ", "))
		}
		return nil
	},
}

// Ports checks that nobody listens on TCP addresses, "HOST:PORT" or ":PORT".
func Ports(addresses ...string) Check {
	return Check{
		Name:   "ports",
		Remedy: "stop what listens there (`ss -ltnp` names it), or set other addresses in the configuration",
		Run: func(ctx context.Context) error {
			var errs []string
			for _, a := range addresses {
				var lc net.ListenConfig
				ln, err := lc.Listen(ctx, "tcp", a)
				if err != nil {
					errs = append(errs, plain(a, err))
					continue
				}
				ln.Close()
			}
			if len(errs) > 0 {
				return errors.New(strings.Join(errs, ", "))
			}
			return nil
		},
	}
}

func plain(addr string, err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return addr + " is taken"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return addr + " is no address of this machine"
	case errors.Is(err, unix.EACCES):
		return addr + " may not be opened"
	}
	return err.Error()
}

// Disk checks that the file system of dir, or of the nearest folder above that
// is there, has room.
func Disk(dir string, freeBytes uint64) Check {
	return Check{
		Name:   "disk",
		Remedy: "free some space, or set data_dir to a larger disk",
		Run: func(context.Context) error {
			at := dir
			for {
				if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
					break
				}
				at = filepath.Dir(at)
			}
			var st unix.Statfs_t
			if err := unix.Statfs(at, &st); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			if st.Flags&unix.ST_RDONLY != 0 {
				return fmt.Errorf("%s is read-only", at)
			}
			free := st.Bavail * uint64(st.Bsize)
			if free < freeBytes {
				return fmt.Errorf("%s has %.1f GiB free, needs %.1f", at, gib(free), gib(freeBytes))
			}
			if st.Files > 0 && st.Ffree < 10000 {
				return fmt.Errorf("%s has %d inodes free, needs 10000", at, st.Ffree)
			}
			return nil
		},
	}
}

func gib(n uint64) float64 { return float64(n) / (1 << 30) }

// Memory checks for the machine's memory.
func Memory(totalBytes uint64) Check {
	return Check{
		Name:   "memory",
		Warn:   true,
		Remedy: "add memory, or expect processes to be killed under load",
		Run: func(context.Context) error {
			var si unix.Sysinfo_t
			if err := unix.Sysinfo(&si); err != nil {
				return fmt.Errorf("read memory size: %w", err)
			}
			if total := si.Totalram * uint64(si.Unit); total < totalBytes {
				return fmt.Errorf("has %.1f GiB, needs %.1f", gib(total), gib(totalBytes))
			}
			return nil
		},
	}
}

// stamp is the time of the commit this program was built from; if the build did
// not record it, a date on which no such program was there yet.
func stamp() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				return t
			}
		}
	}
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
}

// clock checks that the clock is not before built, when this program was made:
// every certificate would seem to be from the future.
func clock(built time.Time, now func() time.Time) Check {
	return Check{
		Name:   "clock",
		Remedy: "set it, with a time server if there is one (`timedatectl set-time`)",
		Run: func(context.Context) error {
			t := now()
			if t.Before(built.Add(-24 * time.Hour)) {
				return fmt.Errorf("says %s, which is before this program was made", t.Format(time.DateTime))
			}
			if t.After(built.AddDate(30, 0, 0)) {
				return fmt.Errorf("says %s, which can't be", t.Format(time.DateTime))
			}
			return nil
		},
	}
}

// OpenFiles checks the hard limit of open files; the Go runtime raises the soft
// limit to it by itself.
func OpenFiles(need uint64) Check {
	return Check{
		Name:   "open-files",
		Remedy: "raise LimitNOFILE of its unit, or `ulimit -Hn`",
		Run: func(context.Context) error {
			var lim unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
				return fmt.Errorf("read limit: %w", err)
			}
			if lim.Max < need {
				return fmt.Errorf("the limit is %d, needs %d", lim.Max, need)
			}
			return nil
		},
	}
}

// InotifyInstances is what a role raises the number of file watches of a user
// to, when it starts, if it may.
const InotifyInstances = 8192

// Inotify checks the number of file watches that each user may have: every
// kubelet takes some.
func Inotify(instances int) Check {
	return Check{
		Name:   "inotify",
		Warn:   true,
		Remedy: fmt.Sprintf("`sysctl -w fs.inotify.max_user_instances=%d`", instances),
		Run: func(context.Context) error {
			const file = "/proc/sys/fs/inotify/max_user_instances"
			data, rerr := os.ReadFile(file)
			n, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err := cmp.Or(rerr, err); err != nil {
				return &Skipped{err.Error()}
			}
			raised := instances <= InotifyInstances && unix.Access(file, unix.W_OK) == nil
			if n < instances && !raised {
				return fmt.Errorf("fs.inotify.max_user_instances is %d, needs %d", n, instances)
			}
			return nil
		},
	}
}
