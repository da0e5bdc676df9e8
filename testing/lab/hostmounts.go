package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountHost gives the host its own view of the file system. It shows the
// machine's own below everything that is the host's own.
func mountHost(cfg initConfig) error {
	// Nothing that is mounted here shows outside, and what is mounted outside
	// later does not show here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Held open now: both may lie below a folder that is covered soon.
	dir, err := openPath(cfg.Dir)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	bin := -1
	if cfg.Binary != "" {
		if bin, err = openPath(cfg.Binary); err != nil {
			return err
		}
		defer unix.Close(bin)
	}
	// What ip netns has mounted on this machine would be in the host's table of
	// mounts, below the /run that covers it, and be taken for the host's own.
	for unix.Unmount("/run/netns", unix.MNT_DETACH) == nil {
	}
	m := &mounter{}
	m.mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mkdir("/run/lab/home", 0o700)
	m.mkdir("/run/lab/bin", 0o755)
	m.mkdir("/run/lab/host", 0o700)
	m.bind(dir, "/run/lab/host")
	if bin >= 0 {
		m.touch("/run/lab/bin/multipaas")
		m.bind(bin, "/run/lab/bin/multipaas")
		m.symlink("multipaas", "/run/lab/bin/mp")
	}
	m.mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	m.mount("tmpfs", "/var/log", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	// The host's own /etc and /var/lib, over the machine's; what it writes there
	// is forgotten when it goes off, except below the two folders on its disk.
	m.overlay("/etc")
	m.overlay("/var/lib")
	m.disk("data", "/var/lib/multipaas")
	m.disk("etc", "/etc/multipaas")
	m.write("/etc/hosts", cfg.Hosts)
	m.write("/etc/hostname", cfg.Host+"\n")
	// Nobody to ask: names that are not in /etc/hosts don't resolve, at once.
	m.write("/etc/resolv.conf", "")

	// A new sysfs shows the devices of our network namespace.
	m.mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if !cfg.Unified {
		m.mount("tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
	}
	for _, h := range cfg.Groups {
		m.mkdir(h.Dir, 0o755)
		m.mount(h.Type, h.Dir, h.Type, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Opts)
	}
	if cfg.Unified && m.err == nil {
		passOn(cgroupRoot)
	}
	// As systemd has it: services with mounts of their own see what is mounted later.
	m.mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	return m.err
}

func openPath(name string) (int, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// mounter does one thing after the other until one fails.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, opts string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, opts); err != nil {
		m.err = fmt.Errorf("mount %s at %s (%s): %w", kind, target, opts, err)
	}
}

func (m *mounter) bind(fd int, target string) {
	m.mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND, "")
}

func (m *mounter) mkdir(name string, mode os.FileMode) {
	if m.err == nil {
		m.err = os.MkdirAll(name, mode)
	}
}

func (m *mounter) touch(name string) { m.write(name, "") }

// write writes a file of the host. What is there is removed first: it may be a
// link into a folder that is not the host's.
func (m *mounter) write(name, text string) {
	if m.err == nil {
		m.err = os.RemoveAll(name)
	}
	if m.err == nil {
		m.err = os.WriteFile(name, []byte(text), 0o644)
	}
}

func (m *mounter) symlink(to, name string) {
	if m.err == nil {
		m.err = os.Symlink(to, name)
	}
}

// overlay covers a folder of the machine, so that the host can change what it
// sees there.
func (m *mounter) overlay(dir string) {
	base := filepath.Join("/run/lab/over", dir)
	m.mkdir(base+"/upper", 0o755)
	m.mkdir(base+"/work", 0o755)
	m.mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", dir, base, base))
}

// disk puts a folder of the host's disk at target, over anything that the
// machine itself has there.
func (m *mounter) disk(name, target string) {
	m.mkdir(target, 0o755)
	m.mount("/run/lab/host/"+name, target, "", unix.MS_BIND, "")
}
