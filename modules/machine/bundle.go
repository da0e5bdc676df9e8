package machine

import (
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	var names []string
	for name, number := range capabilities {
		if capable(number) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Where things stand inside a machine.
const (
	insideInit     = "/opt/multipaas/init"
	insideRuntime  = "/opt/multipaas/runtime"
	insideKube     = "/opt/multipaas/kube"
	insideConfig   = "/etc/multipaas"
	insideCNI      = "/opt/cni/bin"
	insideCNIConf  = "/etc/cni/net.d"
	containerdSock = "/run/containerd/containerd.sock"
	initState      = "/run/multipaas-init.json"
	searchPath     = insideRuntime + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// bundle is the OCI runtime specification of a machine.
func (s *Sandbox) bundle(spec order, m places, cgroupsPath string) *specs.Spec {
	size := spec.Machine.Spec.Size
	nofile, caps := maxOpenFiles(), grantable()
	tasks := pidsFor(size.MemoryBytes)
	period := uint64(100_000)
	quota := size.MilliCPU * int64(period) / 1000
	shares := uint64(max(2, size.MilliCPU*1024/1000))
	memory := size.MemoryBytes

	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: append([]string{"rbind", "nosuid", "nodev"}, options...)}
	}
	program := func(from, to string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"rbind", "ro", "nosuid", "nodev"}}
	}
	kernel := func(kind, to string, options ...string) specs.Mount {
		return specs.Mount{Type: kind, Source: kind, Destination: to, Options: append([]string{"nosuid", "noexec"}, options...)}
	}
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: spec.Name,
		Root:     &specs.Root{Path: m.root},
		Process: &specs.Process{
			Args: []string{insideInit, "--config", insideConfig + "/init.json"},
			Env:  []string{"PATH=" + searchPath, "HOME=/root", "TERM=dumb"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps,
				Effective: caps, Permitted: caps},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: nofile, Soft: nofile}},
		},
		Mounts: []specs.Mount{
			kernel("proc", "/proc", "nodev"),
			kernel("tmpfs", "/dev", "strictatime", "mode=755", "size=64k"),
			kernel("devpts", "/dev/pts", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			kernel("tmpfs", "/dev/shm", "nodev", "mode=1777", "size=64m"),
			kernel("mqueue", "/dev/mqueue", "nodev"),
			kernel("sysfs", "/sys", "nodev", "ro"),
			kernel("cgroup", "/sys/fs/cgroup", "nodev", "relatime", "rw"),
			kernel("tmpfs", "/run", "nodev", "mode=755", "size=64m"),
			// kubelet wants to read the kernel's messages, which tell of the host
			// and of other tenants. It reads that there are none.
			{Type: "bind", Source: "/dev/null", Destination: "/dev/kmsg", Options: []string{"bind", "nosuid", "noexec"}},
			{Type: "bind", Source: m.containerd, Destination: "/var/lib/containerd", Options: []string{"rbind", "nodev"}},
			{Type: "bind", Source: m.kubelet, Destination: "/var/lib/kubelet", Options: []string{"rbind", "nodev"}},
			bind(m.logs, "/var/log", "noexec"),
			bind(m.config, insideConfig, "ro", "noexec"),
			bind(filepath.Join(m.config, "cni"), insideCNIConf, "ro", "noexec"),
			bind(filepath.Join(m.config, "resolv.conf"), "/etc/resolv.conf", "ro", "noexec"),
			bind(filepath.Join(m.config, "hosts"), "/etc/hosts", "ro", "noexec"),
			bind(filepath.Join(m.config, "hostname"), "/etc/hostname", "ro", "noexec"),
			bind(filepath.Join(m.config, "machine-id"), "/etc/machine-id", "ro", "noexec"),
			bind(filepath.Join(m.config, "protocols"), "/etc/protocols", "ro", "noexec"),
			program(s.cfg.payload("runtime", "init"), insideInit),
			program(s.cfg.payload("runtime"), insideRuntime),
			program(s.cfg.payload("runtime", "cni"), insideCNI),
			program(s.cfg.payload("kube", spec.KubernetesVersion, "kube"), insideKube),
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
				{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, // the GlusterFS client
			},
			Resources: &specs.LinuxResources{
				// runc adds null, zero, full, random, urandom, tty and ptmx.
				Devices: []specs.LinuxDeviceCgroup{
					{Allow: false, Access: "rwm"},
					device(10, 229, "rwm"),
					device(136, -1, "rwm"), // pseudo terminals
					// console and tun: runc gives them to every pod, so they must be ours to give.
					device(5, 1, "rwm"),
					device(10, 200, "rwm"),
					// Making any node, opening none: runc gives that to every pod.
					{Allow: true, Type: "c", Access: "m"},
					{Allow: true, Type: "b", Access: "m"},
				},
				Memory: &specs.LinuxMemory{Limit: &memory},
				CPU:    &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period},
				Pids:   &specs.LinuxPids{Limit: tasks},
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
}

func device(major, minor int64, access string) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: access}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

// pidsFor is how many tasks a machine may have: 1024 for each GiB, a MiB for each
// task, but never fewer than the services (100) and fifty pods (40 each, their
// shims' 12 among them) need. 4096 for each GiB was tried: making and ending so
// many costs the host more than the machine's CPUs, since what the kernel does
// later it does for nobody. A fork bomb had 3,400 tasks in a pod, and on two
// cores other tenants waited for more than 10 s.
func pidsFor(memoryBytes int64) *int64 {
	n := min(max(memoryBytes>>20, 2048), 65536)
	return &n
}

// maxOpenFiles is what a machine's processes may open: what containerd asks for
// by default, or what we have, if we may not raise it.
func maxOpenFiles() uint64 {
	const want = 1 << 20
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 1 << 16
	}
	if capable(unix.CAP_SYS_RESOURCE) {
		return max(want, have.Max)
	}
	return min(want, have.Max)
}
