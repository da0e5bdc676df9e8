package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// watch calls Exited when the machine's first process ends. Watching it already
// is no error.
func (s *Sandbox) watch(uid string, pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[uid] != nil {
		return nil
	}
	// Not one of ours, so wait(2) is of no use.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	s.watched[uid] = f
	go func() {
		awaitExit(f)
		s.mu.Lock()
		ours := s.watched[uid] == f
		if ours {
			delete(s.watched, uid)
		}
		s.mu.Unlock()
		f.Close()
		if ours {
			s.cfg.Log.Warn("machine ended by itself", "uid", uid)
			s.cfg.Exited(uid)
		}
	}()
	return nil
}

func (s *Sandbox) unwatch(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.watched[uid]; f != nil {
		delete(s.watched, uid)
		f.SetReadDeadline(time.Now()) // wakes the goroutine, which closes it
	}
}

// awaitExit returns when the process has ended or the file's deadline passed.
func awaitExit(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	// The runtime's poller says "readable" when the process has ended.
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// inNamespace says whether the process is in the network namespace that stands
// at path.
func inNamespace(pid int, path string) (bool, error) {
	want, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // ended meanwhile
	}
	return err == nil && os.SameFile(want, have), err
}

// linkMTU is the MTU of a machine's link to its network.
func linkMTU(path string) (mtu int, err error) {
	ns, err := netns.OpenPath(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return fmt.Errorf("network namespace %s: eth0: %w", path, err)
		}
		mtu = l.MTU
		return nil
	})
	return mtu, err
}

// emptyNamespace takes away what an earlier run of a machine left in its network
// namespace: pods' ends of links, the bridge, and rules for ports of pods that
// are no more.
func emptyNamespace(path string) error {
	ns, err := netns.OpenPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("network namespace %s: list links: %w", path, err)
	}
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "bridge" || strings.HasPrefix(a.Name, "veth") {
			if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("network namespace %s: remove %s: %w", path, a.Name, err)
			}
		}
	}
	return ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		if err := c.Flush(); err != nil {
			return fmt.Errorf("network namespace %s: remove rules: %w", path, err)
		}
		return nil
	})
}

// serviceTrouble says which of the machine's services don't run, "" if all do,
// as its init tells. What is inside is the tenant's: it is read within bounds,
// and no link in it leads out.
func serviceTrouble(pid int) string {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(root)
	data, err := readInMemory(root, initState)
	if err != nil {
		return "starting"
	}
	var st struct {
		Services []struct {
			Name, State string
			Restarts    int
			LastExit    string `json:"last_exit"`
		}
	}
	if json.Unmarshal(data, &st) != nil {
		return ""
	}
	var troubles []string
	for _, svc := range st.Services[:min(len(st.Services), 16)] {
		if svc.State == "ready" {
			continue
		}
		t := printable(svc.Name, 100) + " " + printable(svc.State, 100)
		if svc.LastExit != "" {
			t += fmt.Sprintf(" (%s, %d restarts)", printable(svc.LastExit, 100), svc.Restarts)
		}
		troubles = append(troubles, t)
	}
	return strings.Join(troubles, ", ")
}

// readInMemory reads 64 KB at most of a file at a path below root, a folder of a tenant's, if
// it lies in a tmpfs. Who reads a pipe, a terminal or a file of the tenant's own file system
// may wait for ever.
func readInMemory(root int, path string) ([]byte, error) {
	dir, err := findInside(root, filepath.Dir(path), 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	var in unix.Statfs_t
	if err := unix.Fstatfs(dir, &in); err != nil || in.Type != unix.TMPFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("%s: not in memory", path), err)
	}
	file, err := findInside(dir, filepath.Base(path), unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.Join(fmt.Errorf("%s: not a plain file", path), err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// findInside finds what stands at a path below root, a folder of a tenant's, without opening
// it (O_PATH): to open a pipe blocks for ever, and a terminal becomes the process's own, whose
// owner ends it by hanging up. No link on the path leads out. The caller closes it.
func findInside(root int, path string, resolve uint64) (fd int, err error) {
	return unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS | resolve,
	})
}

// printable takes out of what a machine says what a terminal would act on, and
// keeps it short.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), most)]
}
