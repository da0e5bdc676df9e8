package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// process is one that is none of our children.
type process struct {
	pid      int
	*os.File // of pidfd_open(2)
}

// watch calls Exited when the machine's first process ends. Watching it already
// is no error.
func (s *Sandbox) watch(uid string, pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[uid].File != nil {
		return nil
	}
	// Not one of ours, so wait(2) is of no use.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	s.watched[uid] = process{pid, f}
	go func() {
		awaitExit(f)
		s.mu.Lock()
		ours := s.watched[uid].File == f
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
	if f := s.watched[uid].File; f != nil {
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

// The file by which a machine's init tells the host which of its services run. It lies in a
// tmpfs of its own on the host, and is mounted into the machine. No path that a tenant has a say in
// leads to it; what he can do to it is write to it. His write may never end (from memory whose page
// his own FUSE never delivers) and holds the file's lock meanwhile: who reads a file of a tmpfs needs
// no such lock, as one of XFS does. Nor may it be asked for its size, which some kernels' tmpfs
// (6.12) tells under the lock.
const (
	stateDir   = "state"
	stateName  = stateDir + "/init.json"
	stateBytes = 16 << 10 // embed/init writes so much, always
)

// makeState mounts the file anew, blank, for root in the machine to write.
func makeState(m home, first int) error {
	dir, file := m.at(stateDir), m.at(stateName)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// As large as a machine's root can make it.
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=64k,nr_inodes=4,mode=700"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte(" "), stateBytes))
	// It is never the machine's root's own: an owner may ask for a lease, and keep waiting who opens it.
	return errors.Join(err, f.Chown(0, first), f.Chmod(0o660), f.Close())
}

// readState reads what a machine's init has written, or root in the machine.
func readState(m home) ([]byte, error) {
	fd, err := unix.Open(m.at(stateName), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: m.at(stateName), Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, stateBytes)
	n, err := unix.Read(fd, data)
	return data[:max(n, 0)], err
}

// serviceTrouble says which of the machine's services don't run, "" if all do, as its init
// tells. It never waits for the machine. Of one that was started before there was such a file
// nothing is known until it is started again: "".
func serviceTrouble(m home) string {
	var st struct {
		Services []struct {
			Name, State string
			Restarts    int
			LastExit    string `json:"last_exit"`
		}
	}
	for try := 1; ; try++ {
		data, err := readState(m)
		if errors.Is(err, fs.ErrNotExist) {
			return ""
		}
		// What stands behind the first value was there before it.
		if err == nil {
			err = json.NewDecoder(bytes.NewReader(data)).Decode(&st)
		}
		switch {
		case errors.Is(err, io.EOF):
			return "starting"
		case err == nil:
		case try < 3: // it was being written
			continue
		default:
			return "what its init says can't be read"
		}
		break
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
