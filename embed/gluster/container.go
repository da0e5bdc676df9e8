package gluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/runc"
)

// Groups is the control group that those of storage are in, each in one of its host's ID.
const Groups = "storage"

// container is one of a host's, running or not.
type container struct {
	host  *Host
	id    string // runc's
	dir   string // root, bundle, console.log
	group string // control group
	// patience is how long it may take to end when it is asked to.
	patience time.Duration
}

func (h *Host) server() container {
	// Bricks say goodbye, so that nobody waits for them. Then they may as well be killed.
	return container{host: h, id: "server", dir: h.at("server"), group: h.group("server"), patience: 10 * time.Second}
}

func (h *Host) client(m Mount) container {
	id := "client-" + m.name()
	return container{host: h, id: id, dir: h.at("clients", m.name()), group: h.group(id), patience: 2 * time.Second}
}

// group is the name of a control group of this host's.
func (h *Host) group(name string) string { return path.Join(Groups, h.cfg.ID, name) }

func (c container) at(name string) string { return filepath.Join(c.dir, name) }

// network is the file of the namespace that it is to be in.
func (h *Host) network() string { return cmp.Or(h.cfg.Network, "/proc/thread-self/ns/net") }

// running returns what runs of it, in the network that it shall be in. bundle is what it was
// started by.
func (c container) running(ctx context.Context) (now runc.Container, bundle []byte, ok bool, err error) {
	now, ok, err = c.host.runc.State(ctx, c.id)
	if err != nil || !ok || !now.Running() {
		return now, nil, false, err
	}
	if ok, err = now.InNetwork(c.host.network()); err != nil || !ok {
		return now, nil, false, err
	}
	bundle, err = os.ReadFile(c.at("bundle/config.json"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil // another, then
	}
	return now, bundle, true, err
}

// ensure has it run. prepare is called before it is started.
func (c container) ensure(
	ctx context.Context, spec *specs.Spec, image string, replace bool, prepare func() error,
) (started, old bool, err error) {
	want, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return false, false, err
	}
	_, bundle, ok, err := c.running(ctx)
	if err != nil {
		return false, false, err
	}
	old = ok && !bytes.Equal(bundle, want)
	if ok && (!old || !replace) {
		return false, old, nil
	}
	if err := c.end(ctx); err != nil {
		return false, old, err
	}
	if err := prepare(); err != nil {
		return false, old, err
	}
	if err := c.start(ctx, want, image); err != nil {
		return false, old, errors.Join(err, c.end(context.WithoutCancel(ctx)))
	}
	c.host.prune() // it may have been the last of a former image
	return true, false, nil
}

func (c container) start(ctx context.Context, bundle []byte, image string) error {
	for _, name := range []string{"root", "bundle"} {
		if err := os.MkdirAll(c.at(name), 0o700); err != nil {
			return err
		}
	}
	err := hostmount.Do(func() error {
		// Mounted, the image counts as used.
		if err := unix.Mount(image, c.at("root"), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount root file system %s: %w", c.at("root"), err)
		}
		const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
		return unix.Mount("", c.at("root"), "", flags, "")
	})
	if err != nil {
		return err
	}
	g, err := cgroup.Create(c.group) // makes the parents pass their controllers on
	if err == nil {
		err = g.Close()
	}
	if err != nil {
		return err
	}
	if err := atomicfile.Write(c.at("bundle/config.json"), bundle, 0o600); err != nil {
		return err
	}
	// From the host's mounts, with which it then shares what it is told to: what is mounted
	// in a copy of ours would end with us.
	return hostmount.Do(func() error { return c.host.runc.Start(ctx, c.id, c.at("bundle"), c.at("console.log")) })
}

// end asks its first process to end, kills what is left and takes away what it was made of.
func (c container) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	now, ok, err := c.host.runc.State(ctx, c.id)
	if err != nil {
		return err
	}
	if ok && now.Running() {
		c.ask(ctx, now.PID)
	}
	// All at once, and whether runc knows the container or not.
	if err := cgroup.KillAll(ctx, c.group); err != nil {
		return err
	}
	if ok {
		if err := c.host.runc.Delete(ctx, c.id); err != nil {
			return err
		}
	} else if err := os.RemoveAll(filepath.Join(c.host.cfg.Runc, c.id)); err != nil {
		return err
	}
	if err := hostmount.Unmount(c.at("root")); err != nil {
		return err
	}
	// What was starting something in it when it was killed may leave a process there still.
	for {
		err := cgroup.Kill(ctx, c.group)
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ask has the first process end, and returns when it has, or shows no sign of it.
func (c container) ask(ctx context.Context, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// It may be another's by now.
	if now, ok, err := c.host.runc.State(ctx, c.id); err != nil || !ok || now.PID != pid || !now.Running() {
		return
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return
	}
	for end := time.Now().Add(c.patience); ctx.Err() == nil && time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
	c.host.cfg.Log.Warn("storage does not end when it is asked to, and is killed", "container", c.id, "after", c.patience)
}

// said is the last line of a container's console.
func (c container) said() string {
	text, _ := os.ReadFile(c.at("console.log"))
	return runc.LastLine(string(text))
}

// base is what all containers of storage have. They are root, of the host or of a machine, with
// capabilities; DESIGN.md has what that comes to.
func (c container) base(image string, args []string, memory int64, caps []string, mounts ...specs.Mount) (*specs.Spec, error) {
	groupPath, err := cgroup.Path(c.group)
	if err != nil {
		return nil, err
	}
	h := c.host
	kernel := func(kind, to string, options ...string) specs.Mount {
		return specs.Mount{Type: kind, Source: kind, Destination: to, Options: append([]string{"nosuid", "noexec"}, options...)}
	}
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    "storage",
		Annotations: map[string]string{"image": filepath.Base(image)},
		Root:        &specs.Root{Path: c.at("root"), Readonly: true},
		Process: &specs.Process{
			Args: args, Cwd: "/",
			Env:             []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true,
		},
		Mounts: append([]specs.Mount{
			kernel("proc", "/proc", "nodev"),
			kernel("tmpfs", "/dev", "strictatime", "mode=755", "size=64k"),
			kernel("tmpfs", "/run", "nodev", "mode=755", "size=16m"),
			kernel("tmpfs", "/tmp", "nodev", "mode=1777", "size=16m"),
			bind(h.at("etc"), "/etc/multipaas", "ro"),
		}, mounts...),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace}},
			CgroupsPath: groupPath,
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: &memory},
				Pids:    &specs.LinuxPids{Limit: new(int64(tasks))},
			},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/scsi", "/proc/sysrq-trigger"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"},
		},
	}
	if h.cfg.Network != "" {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: h.cfg.Network})
	}
	return spec, nil
}

// tasks bounds the threads of a container: a brick has up to some forty, and a process of many
// hundred bricks shares most.
const tasks = 8192

func bind(from, to string, options ...string) specs.Mount {
	options = append([]string{"bind", "nosuid", "nodev", "noexec"}, options...)
	return specs.Mount{Type: "bind", Source: from, Destination: to, Options: options}
}

// serverSpec is the container of glusterd and bricks.
func (h *Host) serverSpec(c container, image string, files map[string][]byte) (*specs.Spec, error) {
	bricks := bind(h.at("bricks"), "/bricks", "rslave")
	bricks.Options[0] = "rbind"
	program := bind(filepath.Join(h.cfg.Payload, "runtime", "init"), "/opt/multipaas/init", "ro")
	program.Options = slices.DeleteFunc(program.Options, func(o string) bool { return o == "noexec" })
	// Bricks read and write files as those who ask, and as the owner of all. SYS_ADMIN for the
	// extended attributes trusted.*, in which they keep what they know of a file.
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN"}
	spec, err := c.base(image, []string{"/opt/multipaas/init", "--config", "/etc/multipaas/init.json"},
		cmp.Or(h.cfg.Memory, 4<<30), caps, program, bricks,
		bind(h.at("lib"), "/var/lib/glusterd"), bind(h.at("log"), "/var/log/glusterfs"))
	if err != nil {
		return nil, err
	}
	spec.Annotations["files"] = digest(files)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	spec.Linux.RootfsPropagation = "rslave"
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	return spec, mayMount(spec) // glusterd mounts a volume for a moment to replace one of its bricks
}

// mayMount lets a container that has the device mount what FUSE serves.
func mayMount(spec *specs.Spec) (err error) {
	spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices,
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rw"})
	spec.Linux.Seccomp, err = syscalls(spec)
	return err
}

// syscalls are what a container that has not got CAP_SYS_ADMIN commonly may, and to mount: ours
// has it for extended attributes and FUSE, and not to make and enter namespaces, to load programs into
// the kernel and what else comes with it.
func syscalls(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	caps := *spec.Process.Capabilities
	caps.Bounding = slices.DeleteFunc(slices.Clone(caps.Bounding), func(c string) bool { return c == "CAP_SYS_ADMIN" })
	filter, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &caps}})
	if err != nil {
		return nil, err
	}
	refused := []string{"socket", "socketcall", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"}
	for i := range filter.Syscalls {
		s := &filter.Syscalls[i]
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool {
			return slices.Contains(refused, name) || strings.HasPrefix(name, "io_uring")
		})
	}
	filter.Syscalls = slices.DeleteFunc(filter.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Names) == 0 })
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_NETLINK} {
		filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}}})
	}
	filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: []string{"mount", "umount2"}, Action: specs.ActAllow})
	return filter, nil
}
