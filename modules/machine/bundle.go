package machine

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// capabilities are what containerd, runc, the CNI plugins, kubelet and
// kube-proxy need to run pods, and pods without extras to get their own; found
// by taking away. Left out are those that reach through to the host:
// SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME, SYSLOG, MAC_*, AUDIT_CONTROL, and
// DAC_READ_SEARCH, which opens any file of the file systems that the payload is
// mounted from by its handle; and SYS_RESOURCE, which lifts limits.
var capabilities = map[string]int{
	"CAP_AUDIT_WRITE":      unix.CAP_AUDIT_WRITE,
	"CAP_CHOWN":            unix.CAP_CHOWN,
	"CAP_DAC_OVERRIDE":     unix.CAP_DAC_OVERRIDE,
	"CAP_FOWNER":           unix.CAP_FOWNER,
	"CAP_FSETID":           unix.CAP_FSETID,
	"CAP_KILL":             unix.CAP_KILL,
	"CAP_MKNOD":            unix.CAP_MKNOD,
	"CAP_NET_ADMIN":        unix.CAP_NET_ADMIN, // CNI, nftables
	"CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
	"CAP_NET_RAW":          unix.CAP_NET_RAW,
	"CAP_SETFCAP":          unix.CAP_SETFCAP,
	"CAP_SETGID":           unix.CAP_SETGID,
	"CAP_SETPCAP":          unix.CAP_SETPCAP,
	"CAP_SETUID":           unix.CAP_SETUID,
	"CAP_SYS_ADMIN":        unix.CAP_SYS_ADMIN, // mounts, namespaces
	"CAP_SYS_CHROOT":       unix.CAP_SYS_CHROOT,
	"CAP_SYS_PTRACE":       unix.CAP_SYS_PTRACE, // entering the namespaces of a pod's processes
}

// capable says whether this process can have, and give, a capability.
func capable(number int) bool {
	have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0)
	return err == nil && have == 1
}

// grantable are the names of the capabilities that are ours to give.
func grantable() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(capabilities)), func(name string) bool {
		return !capable(capabilities[name])
	})
}

// Where things stand inside a machine.
const (
	insideInit     = "/opt/multipaas/init"
	insideRuntime  = "/opt/multipaas/runtime"
	insideKube     = "/opt/multipaas/kube"
	insideConfig   = "/etc/multipaas"
	insideCNI      = "/opt/cni/bin"
	insideCNIConf  = "/etc/cni/net.d"
	policyDir      = "/run/multipaas" // where the CNI plugin and kube-proxy meet
	containerdSock = "/run/containerd/containerd.sock"
	initState      = "/run/multipaas-init.json"
	searchPath     = insideRuntime + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// insideCNIName is the folder of the CNI plugins' configuration. A machine that runs
// reads what was mounted at its start: one that has other plugins has another name.
const insideCNIName = "cni-ptp"

// bundle is the OCI runtime specification of a machine. owner is the user namespace
// that it lives in, open until runc has started it; nil is the host's.
func (s *Sandbox) bundle(spec order, m home, cgroupsPath string, owner *os.File) (*specs.Spec, error) {
	size := spec.Machine.Spec.Size
	nofile, caps := maxOpenFiles(), grantable()
	const period = 100_000 // microseconds
	sysfs := []string{"nodev"}
	if owner == nil { // in a user namespace root may write what is of its network, and a privileged pod must
		sysfs = append(sysfs, "ro")
	}

	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: append([]string{"rbind", "nosuid", "nodev"}, options...)}
	}
	config := func(name, to string) specs.Mount {
		return bind(filepath.Join(m.at("config"), name), to, "ro", "noexec")
	}
	kernel := func(kind, to string, options ...string) specs.Mount {
		return specs.Mount{Type: kind, Source: kind, Destination: to, Options: append([]string{"nosuid", "noexec"}, options...)}
	}
	b := &specs.Spec{
		Version:  specs.Version,
		Hostname: spec.Name,
		Root:     &specs.Root{Path: m.at("root")},
		Process: &specs.Process{
			Args: []string{insideInit, "--config", insideConfig + "/init.json"},
			Env:  []string{"PATH=" + searchPath, "HOME=/root", "TERM=dumb"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps,
				Effective: caps, Permitted: caps},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: nofile, Soft: min(softOpenFiles, nofile)}},
		},
		Mounts: []specs.Mount{
			kernel("proc", "/proc", "nodev"),
			kernel("tmpfs", "/dev", "strictatime", "mode=755", "size=64k"),
			kernel("devpts", "/dev/pts", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			kernel("tmpfs", "/dev/shm", "nodev", "mode=1777", "size=64m"),
			kernel("mqueue", "/dev/mqueue", "nodev"),
			kernel("sysfs", "/sys", sysfs...),
			kernel("cgroup", "/sys/fs/cgroup", "nodev", "relatime", "rw"),
			kernel("tmpfs", "/run", "nodev", "mode=755", "size=64m"),
			// kubelet wants to read the kernel's messages, which tell of the host
			// and of other tenants. It reads that there are none.
			{Type: "bind", Source: "/dev/null", Destination: "/dev/kmsg", Options: []string{"bind", "nosuid", "noexec"}},
			{Type: "bind", Source: m.at("disk/containerd"), Destination: "/var/lib/containerd", Options: []string{"rbind", "nodev"}},
			{Type: "bind", Source: m.at("disk/kubelet"), Destination: "/var/lib/kubelet", Options: []string{"rbind", "nodev"}},
			bind(m.at("disk/log"), "/var/log", "noexec"),
			bind(m.at(stateName), initState, "noexec"), // in the tmpfs of above
			bind(m.at(volumesDir), wire.VolumesInMachine, "rslave"),
			config("", insideConfig),
			config(insideCNIName, insideCNIConf),
			config("resolv.conf", "/etc/resolv.conf"),
			config("hosts", "/etc/hosts"),
			config("hostname", "/etc/hostname"),
			config("machine-id", "/etc/machine-id"),
			config("protocols", "/etc/protocols"),
			bind(s.cfg.payload("runtime", "init"), insideInit, "ro"),
			bind(s.cfg.payload("runtime"), insideRuntime, "ro"),
			bind(s.cfg.payload("runtime", "cni"), insideCNI, "ro"),
			bind(s.cfg.payload("kube", spec.KubernetesVersion, "kube"), insideKube, "ro"),
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: spec.netns},
			},
			// What init mounts and shares inside stays inside.
			RootfsPropagation: "rslave",
			CgroupsPath:       cgroupsPath,
			Devices: []specs.LinuxDevice{
				{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, // for what tenants mount by FUSE
			},
			Resources: &specs.LinuxResources{
				// runc adds null, zero, full, random, urandom, tty and ptmx.
				Devices: []specs.LinuxDeviceCgroup{
					{Allow: false, Access: "rwm"},
					device(10, new(int64(229))),
					device(136, nil),            // pseudo terminals
					device(10, new(int64(200))), // tun: runc gives it to every pod, so it must be ours to give
					// Making any node, opening none: runc gives that to every pod.
					{Allow: true, Type: "c", Access: "m"},
					{Allow: true, Type: "b", Access: "m"},
				},
				Memory: &specs.LinuxMemory{Limit: &size.MemoryBytes},
				CPU: &specs.LinuxCPU{
					Shares: new(uint64(max(2, size.MilliCPU*1024/1000))),
					Quota:  new(size.MilliCPU * period / 1000),
					Period: new(uint64(period)),
				},
				Pids: &specs.LinuxPids{Limit: new(pidsFor(size.MemoryBytes))},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
				"/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/security",
			},
			// What is left of /proc/sys is the namespaces' own: net, kernel/shm*...
			ReadonlyPaths: []string{
				"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs", "/proc/sys/dev",
				"/proc/sys/debug", "/proc/sys/abi", "/proc/sys/user",
			},
		},
	}
	if owner != nil {
		// Raw blocks of volumes (modules/volume): he makes no nodes, and what opens them is given to him by the host.
		b.Linux.Resources.Devices = append(b.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: "b", Major: new(int64(7)), Access: "rw"})
		if !capable(unix.CAP_SYS_RESOURCE) {
			b.Process.Rlimits = nil // ours, which are the same: runc may not set them for another user
		}
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace,
			Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), owner.Fd())})
	}
	var err error
	b.Linux.Seccomp, err = syscalls(b, owner != nil)
	return b, err
}

// device allows all of a character device; no minor is all of the major's.
func device(major int64, minor *int64) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: minor, Access: "rwm"}
}

// pidsFor is how many tasks a machine may have: 1024 for each GiB, a MiB for each
// task, but never fewer than the services (100) and fifty pods (40 each, their
// shims' 12 among them) need. 4096 for each GiB was tried: making and ending so
// many costs the host more than the machine's CPUs, since what the kernel does
// later it does for nobody. A fork bomb had 3,400 tasks in a pod, and on two
// cores other tenants waited for more than 10 s.
func pidsFor(memoryBytes int64) int64 { return min(max(memoryBytes>>20, 2048), 65536) }

// softOpenFiles is what a machine's processes may open unless they ask for more, as on
// any Linux. Pods inherit it: there are databases that make room for each file they
// could open, and programs that close each. What runs the machine itself is written in
// Go, which takes as many as it can get for itself and passes on what it had.
const softOpenFiles = 1024

// maxOpenFiles is what a machine's processes may ask for, as with Docker; or what we
// have, if we may not raise it.
func maxOpenFiles() uint64 {
	const want = 524288
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 1 << 16
	}
	if capable(unix.CAP_SYS_RESOURCE) {
		return want
	}
	return min(want, have.Max)
}
