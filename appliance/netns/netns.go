// Package netns makes, opens and removes named network namespaces and opens
// sockets inside them.
//
// A namespace is kept by a bind mount at /run/netns/NAME, as iproute2 does it,
// so `ip -n NAME` shows what stands in one of ours. It stays until Remove,
// whatever becomes of the process that made it.
//
// Parties: parts that serve or reach a workspace's network. Any package may
// import it; it imports nothing of ours.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	nl "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
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
func Create(name string) (*NS, error) {
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
		if err := makeNamed(path); err != nil {
			return nil, fmt.Errorf("create network namespace %s: %w", name, err)
		}
		n, err = Open(name)
	}
	if err != nil {
		return nil, err
	}
	if err := n.Do(loopbackUp); err != nil {
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
// than Path would name.
func OpenPath(path string) (*NS, error) { return openPath(path, path) }

// OpenPID opens the namespace that a process lives in.
func OpenPID(pid int) (*NS, error) {
	return openPath(fmt.Sprintf("of process %d", pid), fmt.Sprintf("/proc/%d/ns/net", pid))
}

func openPath(name, path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", name, err), f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		// A plain file: the mount went (a reboot, or a crash between making the
		// file and mounting on it). There is no namespace.
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w: nothing is mounted at %s", name, fs.ErrNotExist, path), f.Close())
	}
	return &NS{name: name, file: f}, nil
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
	for { // as often as something is mounted there: a crash may have left two
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("remove network namespace %s: unmount %s: %w", name, path, err)
		}
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
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Name is the name under which the namespace was opened.
func (n *NS) Name() string { return n.name }

// Path is the file that stands for a named namespace, for others to open.
func (n *NS) Path() string { return filepath.Join(Root, n.name) }

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
	return onThread(func() (clean bool, err error) {
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

// onThread runs fn on a goroutine of its own that is locked to its OS thread.
// If fn says that the thread is not clean, or panics, the thread ends with the
// goroutine instead of going on in the wrong namespace under somebody else's
// code.
//
// It is never the process's first thread: the runtime can't end that one, and
// /proc/PID/ns, by which others find our namespace, shows it.
func onThread(fn func() (clean bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held until the other is done, so that it gets another thread.
			done <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		clean, err := fn()
		if clean {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
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

// makeNamed makes a new namespace and mounts it at path.
func makeNamed(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = onThread(func() (clean bool, err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return false, fmt.Errorf("unshare: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
			return false, fmt.Errorf("mount at %s: %w", path, err)
		}
		return false, nil // the thread is in the new namespace
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func pathOf(name string) (string, error) {
	if name == "" || len(name) > 200 || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("network namespace %q: not a name", name)
	}
	return filepath.Join(Root, name), nil
}
