// Package netns makes, opens and removes named network namespaces and opens
// sockets inside them.
//
// A namespace is kept by a bind mount at /run/netns/NAME, as iproute2 does it,
// so `ip -n NAME` shows what stands in one of ours. It stays until Remove,
// whatever becomes of the process that made it.
//
// Parties: parts that serve or reach a workspace's network. Any package may
// import it; it knows appliance/hostmount, by which all of a host sees the names.
package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	nl "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/thread"
)

// Root is the folder in which the namespaces stand. It is a fixed place, not a
// setting: iproute2 and the kernel's other users look here too.
const Root = "/run/netns"

// NS is an open network namespace. It is safe for concurrent use.
type NS struct {
	name string

	mu   sync.RWMutex // held for reading while file is used, so that Close can't pull it away
	file *os.File     // nil once closed
}

// Create makes the namespace, or opens the one that is there. Its loopback
// interface is up.
func Create(name string) (*NS, error) { return create(name, makeNamed) }

// CreateOwned is Create of a namespace that belongs to a user namespace of its own:
// user and group 0 and up in it are first and up here, count of them. Who is root
// there may set up this network, and nothing else here. One that is there is
// opened as it is.
func CreateOwned(name string, first, count uint32) (*NS, error) {
	return create(name, func(path string) error { return makeOwned(path, first, count) })
}

func create(name string, make func(path string) error) (*NS, error) {
	path, err := pathOf(name)
	if err != nil {
		return nil, err
	}
	unlock, err := lockRoot()
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	defer unlock()
	n, err := Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = make(path); err == nil {
			n, err = Open(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	err = n.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set loopback of network namespace %s up: %w", name, err), n.Close())
	}
	return n, nil
}

// Open opens a namespace that is there. The error wraps fs.ErrNotExist if there
// is none.
func Open(name string) (*NS, error) {
	path, err := pathOf(name)
	if err != nil {
		return nil, err
	}
	return openPath(name, path)
}

// OpenPath opens a namespace by a file that stands for it, which is another
// than Path would name. Whatever stands there, a tenant's too, is not opened unless it
// is a network namespace: the error wraps fs.ErrNotExist if it is no namespace at all.
func OpenPath(path string) (*NS, error) { return openPath(path, path) }

// OpenPID opens the namespace that a process lives in.
func OpenPID(pid int) (*NS, error) {
	return openPath(fmt.Sprintf("of process %d", pid), fmt.Sprintf("/proc/%d/ns/net", pid))
}

func openPath(name, path string) (*NS, error) {
	f, err := openNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return &NS{name: name, file: f}, nil
}

func openNamespace(path string) (*os.File, error) {
	// Found, not opened: to open a pipe blocks for ever, and a terminal becomes the
	// process's own, whose owner ends it by hanging up.
	found, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	// By its device, which is told by no file system but the kernel's own: who asks a tenant's
	// for more may wait for ever too.
	var is, ours unix.Statx_t
	const cached = unix.AT_STATX_DONT_SYNC
	err = cmp.Or(unix.Statx(int(found.Fd()), "", unix.AT_EMPTY_PATH|cached, 0, &is),
		unix.Statx(unix.AT_FDCWD, "/proc/self/ns/net", cached, 0, &ours))
	if err != nil {
		return nil, err
	}
	if is.Dev_major != ours.Dev_major || is.Dev_minor != ours.Dev_minor {
		// A plain file: the mount went (a reboot, or a crash between making the
		// file and mounting on it). There is no namespace.
		return nil, fmt.Errorf("%w: nothing is mounted at %s", fs.ErrNotExist, path)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", found.Fd()), os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(fmt.Errorf("%s is a namespace of another kind", path), err, f.Close())
	}
	return f, nil
}

// Remove unmounts and removes the namespace. It is no error if there is none.
// The kernel keeps a namespace for as long as a process or an open socket is in
// it; Remove only takes the name away.
func Remove(name string) error {
	path, err := pathOf(name)
	if err != nil {
		return err
	}
	unlock, err := lockRoot()
	if err != nil {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	defer unlock()
	err = hostmount.Do(func() (err error) {
		for err == nil { // as often as something is mounted there: a crash may have left two
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		return err
	})
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: unmount %s: %w", name, path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// List returns the names of the namespaces that begin with prefix, sorted. It
// names half-made and half-removed ones too, so that they can be removed.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries { // sorted
		if strings.HasPrefix(e.Name(), prefix) && e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Name is the name under which the namespace was opened.
func (n *NS) Name() string { return n.name }

// Path is the file that stands for a named namespace, for others to open.
func (n *NS) Path() string { return filepath.Join(Root, n.name) }

// Fd is the namespace for netlink to put a link into, until Close.
func (n *NS) Fd() netlink.NsFd { return netlink.NsFd(n.file.Fd()) }

// Close closes the handle; the namespace stays. Sockets that were opened in it
// stay open.
func (n *NS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		return nil
	}
	err := n.file.Close()
	n.file = nil
	return err
}

// ErrClosed is returned when a closed NS is used.
var ErrClosed = errors.New("network namespace handle is closed")

// Do runs fn on an OS thread that is in the namespace and returns its error.
// Goroutines that fn starts are not in the namespace. fn must not block for
// long: it holds the thread.
func (n *NS) Do(fn func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return fmt.Errorf("network namespace %s: %w", n.name, ErrClosed)
	}
	return thread.Do(func() (clean bool, err error) {
		ours, err := nl.Get()
		if err != nil {
			return true, fmt.Errorf("open the thread's network namespace: %w", err)
		}
		defer ours.Close()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter network namespace %s: %w", n.name, err)
		}
		err = fn()
		return nl.Set(ours) == nil, err
	})
}

// Netlink returns a netlink handle that works in the namespace. The caller
// closes it.
func (n *NS) Netlink() (*netlink.Handle, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return nil, fmt.Errorf("network namespace %s: %w", n.name, ErrClosed)
	}
	// The fd is passed, not the NS: the library opens its sockets on a locked
	// thread in the namespace and keeps no reference to it.
	h, err := netlink.NewHandleAt(nl.NsHandle(n.file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in network namespace %s: %w", n.name, err)
	}
	return h, nil
}

// InNew runs fn in a new network namespace that nobody sees and that ends with fn.
func InNew(fn func() error) error {
	return thread.Do(func() (clean bool, err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return false, fmt.Errorf("make a network namespace: %w", err)
		}
		return false, fn()
	})
}

// makeNamed makes a new namespace and mounts it at path.
func makeNamed(path string) error {
	return thread.Do(func() (clean bool, err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return false, fmt.Errorf("unshare: %w", err)
		}
		// The thread is in the new namespace.
		return false, name(path, fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	})
}

// makeOwned makes a new namespace that belongs to a new user namespace, and mounts it at path.
func makeOwned(path string, first, count uint32) error {
	return inUsers(0, first, count, unix.CLONE_NEWNET, func(proc string) error { return name(path, proc+"/ns/net") })
}

// NewUsers makes a user namespace in which users and groups 0 and up are first and up
// here, count of them. It is there until the file is closed.
func NewUsers(first, count uint32) (*os.File, error) { return ShiftUsers(0, first, count) }

// ShiftUsers makes a user namespace in which users and groups from and up are first and up here, count
// of them: for a mount (MOUNT_ATTR_IDMAP) of what belongs to the ones on the disk, and shall to the
// others. It is there until the file is closed.
func ShiftUsers(from, first, count uint32) (users *os.File, err error) {
	err = inUsers(from, first, count, 0, func(proc string) (err error) {
		users, err = os.Open(proc + "/ns/user")
		return err
	})
	return users, err
}

// inUsers calls fn with the folder in /proc of a process in new namespaces, a user
// namespace among them. Both end with the process, after fn, unless fn keeps them.
func inUsers(from, first, count uint32, flags uintptr, fn func(proc string) error) error {
	return thread.Do(func() (clean bool, err error) {
		// What is counted per user in the new namespace (inotify, pending signals,
		// namespaces) is counted for who made it too: user_namespaces(7) says so of the
		// limits in /proc/sys/user. That must not be root, who would be one pot for all.
		if err := becomeUser(first); err != nil {
			return false, err
		}
		// A process of several threads, as ours is, can't make a user namespace for
		// itself. A child can, and as it is traced it stops before it runs anything.
		ids := []syscall.SysProcIDMap{{ContainerID: int(from), HostID: int(first), Size: int(count)}}
		child, err := os.StartProcess("/proc/self/exe", []string{"netns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | flags,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		}})
		if err != nil {
			return false, fmt.Errorf("make a user namespace: %w", err)
		}
		err = fn(fmt.Sprintf("/proc/%d", child.Pid))
		_ = child.Kill() // it can't have ended: it is stopped
		_, waited := child.Wait()
		return false, errors.Join(err, waited) // the thread is another user
	})
}

// becomeUser makes the calling thread another user, with the capabilities of root.
func becomeUser(uid uint32) error {
	const noFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP, capabilities(7)
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	const same = ^uintptr(0)
	// Not Go's setresuid, which is for all threads.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	// The kernel has taken the whole process for one that changed its user.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
}

// name mounts the namespace that stands at from at path.
func name(path, from string) error {
	// Opened here: another thread may not look at a process that is another user's.
	ns, err := os.Open(from)
	if err != nil {
		return err
	}
	defer ns.Close()
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = hostmount.Do(func() error {
		return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return errors.Join(fmt.Errorf("mount at %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// Owner opens the user namespace that the network namespace belongs to. ours says
// that it is the one of this process. The caller closes it.
func (n *NS) Owner() (user *os.File, ours bool, err error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return nil, false, fmt.Errorf("network namespace %s: %w", n.name, ErrClosed)
	}
	fd, err := unix.IoctlRetInt(int(n.file.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, false, fmt.Errorf("find whose network namespace %s is: %w", n.name, err)
	}
	unix.CloseOnExec(fd)
	user = os.NewFile(uintptr(fd), "user namespace of "+n.name)
	is, err1 := user.Stat()
	own, err2 := os.Stat("/proc/self/ns/user")
	if err := cmp.Or(err1, err2); err != nil {
		return nil, false, errors.Join(err, user.Close())
	}
	return user, os.SameFile(is, own), nil
}

func pathOf(name string) (string, error) {
	if name == "" || len(name) > 200 || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("network namespace %q: not a name", name)
	}
	return filepath.Join(Root, name), nil
}

// lockName is a hidden file, so no namespace can have its name.
const lockName = ".multipaas.lock"

// lockRoot makes Root if need be and locks it among processes of ours. unlock
// must be called.
func lockRoot() (unlock func(), err error) {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(Root, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	// The lock goes with the file, also when the process is killed.
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		err = fmt.Errorf("lock %s: %w", f.Name(), err)
	} else {
		err = hostmount.Do(shareRoot)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// shareRoot makes Root a shared mount of its own. Otherwise a mount namespace
// that was made earlier would keep each namespace alive by its copy of the bind
// mount, and removing it there would not reach it. iproute2 does the same, and
// both find what the other did.
func shareRoot() error {
	share := func() error { return unix.Mount("", Root, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // not a mount point
		if err := unix.Mount(Root, Root, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", Root, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", Root, err)
	}
	return nil
}

// DialContext connects from inside the namespace. The address must be an IP
// literal with a port: names would be resolved outside. A socket belongs to the
// namespace in which it was made, so the connection works for anybody.
//
// No OS thread waits meanwhile: Go ends a process at 10,000 of them, and whoever
// owns the far end can let connections hang. Only the socket is made inside. A
// ctx without a deadline is given 30 seconds.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s in network namespace %s: not an IP address and port", address, n.name)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	var conn net.Conn
	if network == "tcp" && to.Addr().Unmap().Is4() {
		conn, err = n.dialTCP(ctx, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	} else {
		// No keep-alive setting here: the dialer's default is what users of
		// net.Dialer get elsewhere. No fallback: one literal is one attempt, so the
		// dialer makes its socket on this very goroutine.
		d := net.Dialer{FallbackDelay: -1}
		err = n.Do(func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("dial in network namespace %s: %w", n.name, err)
	}
	return conn, nil
}

// dialTCP makes a socket inside and connects it from here.
func (n *NS) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fail(os.NewSyscallError("socket", err))
	}
	// What does not block is waited for by the runtime's poller.
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // net.FileConn has one of its own
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fail(os.NewSyscallError("connect", err))
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return fail(err)
	}
	var failure error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			failure = os.NewSyscallError("connect", err)
			return true
		}
		// No error yet may be no answer yet.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if err := cmp.Or(ctx.Err(), failure, err); err != nil {
		return fail(err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return fail(err)
	}
	return conn, nil
}

// Listen listens inside the namespace, on a TCP address.
func (n *NS) Listen(network, address string) (net.Listener, error) {
	return listen(n, net.Listen, network, address)
}

// ListenPacket listens inside the namespace, on a UDP address.
func (n *NS) ListenPacket(network, address string) (net.PacketConn, error) {
	return listen(n, net.ListenPacket, network, address)
}

func listen[T any](n *NS, open func(network, address string) (T, error), network, address string) (opened T, err error) {
	err = n.Do(func() (err error) {
		opened, err = open(network, address)
		return err
	})
	if err != nil {
		err = fmt.Errorf("network namespace %s: %w", n.name, err)
	}
	return opened, err
}
