package gluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/thread"
)

const (
	// mountPoint is where a client mounts its volume, in its own mounts.
	mountPoint = "/mnt"
	// clientLog is in the client's folder.
	clientLog = "log/client.log"
)

// found is a client that runs, with what it has mounted.
type found struct {
	pid    int
	proc   *os.File // of pidfd_open(2)
	device uint64

	answered time.Time // guarded by the host's mu
}

// alive says whether it runs still.
func (f *found) alive() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.proc.Fd()), Events: unix.POLLIN}}, 0)
	runtime.KeepAlive(f)
	return n == 0 && (err == nil || errors.Is(err, unix.EINTR))
}

// find returns what is mounted of a volume for a machine, ErrNotMounted if nothing is. It asks the file
// system nothing, and costs nothing as long as its client lives.
func (h *Host) find(ctx context.Context, m Mount) (*found, error) {
	h.mu.Lock()
	last := h.found[m]
	h.mu.Unlock()
	if last != nil && last.alive() {
		return last, nil
	}
	c := h.client(m)
	state, _, ok, err := c.running(ctx)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNotMounted
	}
	fd, err := unix.PidfdOpen(state.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrNotMounted
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", state.PID, err)
	}
	now := &found{pid: state.PID, proc: os.NewFile(uintptr(fd), "pidfd")}
	now.device, err = c.mounted(now.pid)
	if err == nil && !now.alive() {
		err = ErrNotMounted
	}
	if err != nil {
		now.proc.Close()
		return nil, err
	}
	h.remember(m, now)
	return now, nil
}

func (h *Host) remember(m Mount, now *found) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.found, m) // whose file is closed once nobody has it
	if now != nil {
		h.found[m] = now
	}
}

// mounted is the device of what the process of a container has mounted.
func (c container) mounted(pid int) (device uint64, err error) {
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && !strings.Contains(string(group), c.group) {
		err = fs.ErrNotExist // it ended, and its number is another's
	}
	var all []*mountinfo.Info
	if err == nil {
		var f *os.File
		if f, err = os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid)); err == nil {
			all, err = mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter(mountPoint))
			f.Close()
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL): // it has ended, or ends
		return 0, ErrNotMounted
	case err != nil:
		return 0, err
	case len(all) == 0 || !strings.HasPrefix(all[0].FSType, "fuse"):
		return 0, ErrNotMounted
	}
	return unix.Mkdev(uint32(all[0].Major), uint32(all[0].Minor)), nil
}

// Device is the number of the device that a volume is for a machine, by which it is known where it is
// shown. ErrNotMounted: it isn't mounted. No file system is asked.
func (h *Host) Device(ctx context.Context, m Mount) (uint64, error) {
	if err := m.check(); err != nil {
		return 0, err
	}
	now, err := h.find(ctx, m)
	if err != nil {
		return 0, err
	}
	return now.device, nil
}

// Take returns what is mounted of a volume for a machine, a mount that is nowhere yet and ends when it
// is closed, for who puts it where the machine sees it (move_mount(2)).
func (h *Host) Take(ctx context.Context, m Mount) (tree *os.File, err error) {
	err = m.check()
	var now *found
	if err == nil {
		now, err = h.find(ctx, m)
	}
	if err == nil {
		tree, err = now.take()
	}
	if err != nil {
		return nil, fmt.Errorf("mount of volume %v: %w", m, err)
	}
	return tree, nil
}

// take enters the client's mounts, which are of less privileged users than ours: nothing passes out of
// them by itself, and they can't be reached by /proc/PID/root.
func (f *found) take() (tree *os.File, err error) {
	err = thread.Do(func() (clean bool, err error) {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", f.pid))
		if err != nil {
			return true, err
		}
		defer ns.Close()
		if !f.alive() { // or it may be another's
			return true, ErrNotMounted
		}
		// A thread that shares its working directory with others can't go elsewhere.
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			return false, fmt.Errorf("enter the mounts of its client: %w", err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, mountPoint, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return false, fmt.Errorf("clone it: %w", err)
		}
		tree = os.NewFile(uintptr(fd), "mount")
		var st unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
			return false, err
		}
		if unix.Mkdev(st.Dev_major, st.Dev_minor) != f.device {
			return false, ErrNotMounted
		}
		return false, nil
	})
	if err != nil && tree != nil {
		tree.Close()
		tree = nil
	}
	return tree, err
}

// prepare makes what a client's container needs.
func (h *Host) prepare(c container, users *Users) error {
	first := 0
	if users != nil {
		first = int(users.First)
	}
	if err := os.MkdirAll(c.at("log"), 0o700); err != nil {
		return err
	}
	// Root of the machine passes through on the way to the container's root file system, and nowhere else: what
	// stands beside is root's.
	err := cmp.Or(os.Chmod(h.cfg.Dir, 0o711), os.Chmod(h.at("clients"), 0o711), os.Chown(c.dir, 0, first), os.Chmod(c.dir, 0o710))
	if err != nil {
		return err
	}
	// The host's own device is for root alone on some, and nobody makes one in a user namespace.
	return h.tmpfs("dev", unix.MS_NOSUID|unix.MS_NOEXEC, "size=64k,nr_inodes=16,mode=700", func(dir string) error {
		err := unix.Mknod(dir+"/fuse", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229)))
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		return cmp.Or(err, os.Chmod(dir+"/fuse", 0o666)) // whatever our umask is
	})
}

// asked are a client's arguments by which it asks these hosts for its volume.
func asked(volume string, servers []netip.Addr) (args []string) {
	for _, s := range servers {
		args = append(args, "--volfile-server="+s.String())
	}
	return append(args, "--volfile-id="+volume)
}

// clientSpec is the container of one mount. of are the arguments that say of what.
func (h *Host) clientSpec(c container, image string, users *Users, of []string) (*specs.Spec, error) {
	args := []string{"/usr/sbin/glusterfs", "--process-name=fuse", "--no-daemon", "--direct-io-mode=disable",
		"--log-file=/var/log/glusterfs/client.log", "--log-level=WARNING", "--fuse-mountopts=nosuid,nodev"}
	args = append(append(args, of...), mountPoint)
	device := bind(h.at("dev", "fuse"), "/dev/fuse")
	device.Options = []string{"bind", "nosuid", "noexec"}
	spec, err := c.base(image, args, cmp.Or(h.cfg.ClientMemory, 1<<30), []string{"CAP_SYS_ADMIN"},
		device, bind(c.at("log"), "/var/log/glusterfs"))
	if err != nil {
		return nil, err
	}
	// It has the host's processes: of who wants a file it has to know what groups he is in, and
	// that it reads by the number that the kernel gives it, which is 0 for a process that its
	// mounter can't see.
	spec.Linux.RootfsPropagation = "private"
	if users != nil {
		users.enter(spec)
	}
	return spec, mayMount(spec)
}

// enter has a container be in a user namespace. It sees its files as if they were there.
func (u *Users) enter(spec *specs.Spec) {
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace,
		Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), u.File.Fd())})
	for i, m := range spec.Mounts {
		switch m.Destination {
		case "/proc": // no other is to be had, of processes that aren't of those users
			spec.Mounts[i] = bind("/proc", "/proc")
			spec.Mounts[i].Options[0] = "rbind"
		case "/etc/multipaas", "/var/log/glusterfs": // identity.pem is root's alone
			to := []specs.LinuxIDMapping{{ContainerID: 0, HostID: u.First, Size: u.Count}}
			spec.Mounts[i].UIDMappings, spec.Mounts[i].GIDMappings = to, to
			spec.Mounts[i].Options = append(m.Options, "idmap")
		}
	}
}
