package machine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/netns"
)

// table is one of the kernel's whose entries nobody's memory is charged for. A tenant's
// pods can't fill it (modules/network); root in a machine can, in as many network
// namespaces as he likes.
type table struct {
	name  string
	every time.Duration                  // it is looked at; 0: each second
	most  int                            // of all entries: machines are looked at beyond
	share func(memory int64) int         // of a machine with so much memory: it is ended beyond
	all   func() (int, error)            // entries, of all namespaces
	in    func(n *netns.NS) (int, error) // entries of one namespace
}

// connectionBytes is what is memory enough for one connection: 320 bytes are 2 percent of it.
const connectionBytes = 16 << 10

// tables of a host with so much memory.
func tables(memory uint64) []table {
	return []table{
		// Half of what appliance/kernel.go makes room for, which a program of one thread adds in
		// a second. A machine knows the others of its workspace, 4,094 at most, and each pod takes two.
		{"neighbours", 0, 1 << 16, func(int64) int { return 1 << 13 }, allNeighbours, neighboursIn},
		// The kernel bounds them in each namespace by a quarter of this, of the host's memory.
		{"connections", 5 * time.Second, int(min(memory/connectionBytes, math.MaxInt32)),
			func(memory int64) int { return int(max(memory/connectionBytes, 1<<16)) }, allConnections, connectionsIn},
	}
}

// lookAtOne is how long a machine is looked through at most, for it may have made very
// much to look at. What was found counts.
const lookAtOne = 5 * time.Second

// WatchTables ends machines that fill the kernel's tables, until ctx is done. Such a
// machine is started again, as one that ended by itself is. crowded is told what is too
// full though no machine seems to be why, nil if nothing is.
func (s *Sandbox) WatchTables(crowded func(error)) func(ctx context.Context, ready func()) error {
	return func(ctx context.Context, ready func()) error {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return fmt.Errorf("read how much memory there is: %w", err)
		}
		watched := tables(info.Totalram * uint64(info.Unit))
		errs, looked := make([]error, len(watched)), make([]time.Time, len(watched))
		ready()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			for i, t := range watched {
				if time.Since(looked[i]) >= t.every {
					errs[i] = s.relieve(ctx, t)
					looked[i] = time.Now()
				}
			}
			if ctx.Err() != nil {
				return nil
			}
			crowded(errors.Join(errs...))
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

// relieve ends the machine that holds most of a table that is too full.
func (s *Sandbox) relieve(ctx context.Context, t table) error {
	all, err := t.all()
	if err != nil {
		return fmt.Errorf("count the kernel's %s: %w", t.name, err)
	}
	if all <= t.most {
		return nil
	}
	records, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", recordName))
	if err != nil {
		return err
	}
	seen, worst, most := 0, record{}, 0
	for _, file := range records {
		rec, err := readRecord(file)
		if err != nil {
			continue // it is being made, or removed
		}
		held, err := s.look(ctx, rec.Machine.UID, t)
		if err != nil && held <= t.most {
			s.cfg.Log.Warn("look for the namespaces of a machine", "machine", rec.Machine.Name, "err", err)
		}
		seen += held
		if held > most && held > t.share(rec.Machine.Spec.Size.MemoryBytes) {
			worst, most = rec, held
		}
	}
	if most == 0 {
		return fmt.Errorf("%d %s, of which machines show %d", all, t.name, seen)
	}
	why := fmt.Sprintf("ended because it held %d %s of the host's kernel: %d is its share, and all together have %d",
		most, t.name, t.share(worst.Machine.Spec.Size.MemoryBytes), all)
	s.cfg.Log.Warn("machine "+why, "machine", worst.Machine.Key, "uid", worst.Machine.UID)
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.kill(bounded, worst.Machine.UID); err != nil {
		return err
	}
	// Its report tells the last line.
	console, err := os.OpenFile(s.home(worst.Machine.UID).at(consoleName), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil // it was removed meanwhile
	}
	defer console.Close()
	_, err = fmt.Fprintf(console, "\n%s\n", why)
	return err
}

// look counts what a machine holds of a table. What it has made, a file system that never
// answers for one, may keep who looks waiting until it ends: that is waited for no longer
// than lookAtOne and a second, and there is one look at a machine at a time.
func (s *Sandbox) look(ctx context.Context, uid string, t table) (int, error) {
	if _, busy := s.looking.LoadOrStore(uid, true); busy {
		return 0, errors.New("what it has made keeps an earlier look waiting")
	}
	ctx, enough := context.WithTimeout(ctx, lookAtOne)
	defer enough()
	var held atomic.Int64
	done := make(chan error, 1)
	go func() {
		err := namespacesOf(ctx, uid, func(n *netns.NS) {
			if int(held.Load()) > t.most {
				enough()
			} else if count, err := t.in(n); err == nil {
				held.Add(int64(count))
			}
		})
		s.looking.Delete(uid)
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select { // it ends by itself, if nothing keeps it
		case err = <-done:
		case <-time.After(time.Second):
			err = ctx.Err()
		}
	}
	return int(held.Load()), err
}

// namespacesOf calls fn with each network namespace that a machine's processes live in,
// or keep: by a mount, an open file or a socket. One that is in a message only that nobody has
// received, or in a file of a thread that shares none with its process, or below another
// mount, isn't found.
func namespacesOf(ctx context.Context, uid string, fn func(*netns.NS)) error {
	pids, err := cgroup.Procs(cgroupName(uid))
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	seen := map[string]bool{own: true}
	// found opens what is called "net:[4026531840]". What is gone meanwhile is none.
	found := func(name string, open func() (*netns.NS, error)) {
		if !strings.HasPrefix(name, "net:[") || seen[name] || ctx.Err() != nil {
			return
		}
		n, err := open()
		if err != nil {
			return
		}
		defer n.Close()
		seen[name] = true
		fn(n)
	}
	at := func(path string) {
		name, _ := os.Readlink(path)
		found(name, func() (*netns.NS, error) { return netns.OpenPath(path) })
	}
	for _, pid := range pids {
		if ctx.Err() != nil {
			break
		}
		proc := fmt.Sprintf("/proc/%d", pid)
		tasks, _ := os.ReadDir(proc + "/task")
		for _, t := range tasks {
			task := proc + "/task/" + t.Name()
			at(task + "/ns/net")
			if mounts, err := os.Readlink(task + "/ns/mnt"); err == nil && !seen[mounts] {
				seen[mounts] = true
				mountedNamespaces(ctx, task, found)
			}
		}
		keptNamespaces(pid, found, at)
	}
	return ctx.Err()
}

type finder func(name string, open func() (*netns.NS, error))

// keptNamespaces finds those that a process has open, or has sockets in.
func keptNamespaces(pid int, found finder, at func(path string)) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, _ := os.ReadDir(dir)
	for _, file := range files {
		path := filepath.Join(dir, file.Name())
		kind, _ := os.Readlink(path)
		if !strings.HasPrefix(kind, "socket:[") {
			at(path)
			continue
		}
		number, err := strconv.Atoi(file.Name())
		if err != nil {
			continue
		}
		socket, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue
		}
		if ns, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS); err == nil {
			at(fmt.Sprintf("/proc/self/fd/%d", ns))
			unix.Close(ns)
		}
		unix.Close(socket)
	}
}

// mountedNamespaces finds those that are mounted where a process looks. The paths are the
// tenant's.
func mountedNamespaces(ctx context.Context, proc string, found finder) {
	root, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	text, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return
	}
	defer text.Close()
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 4<<20) // an overlay of 500 layers has a line of 512 KB at most
	for ctx.Err() == nil && lines.Scan() {
		f := strings.Fields(lines.Text()) // proc_pid_mountinfo(5)
		if len(f) < 5 {
			continue
		}
		found(f[3], func() (*netns.NS, error) {
			fd, err := findInside(root, escapes.Replace(f[4]), 0) // another may be mounted over it
			if err != nil {
				return nil, err
			}
			defer unix.Close(fd)
			return netns.OpenPath(fmt.Sprintf("/proc/self/fd/%d", fd))
		})
	}
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

// escapes are how /proc writes what would part its fields.
var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// allNeighbours is how many there are, of IPv4 and of IPv6, in all namespaces: those that
// are there for good too, which the kernel's own bound leaves out.
func allNeighbours() (sum int, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGHTBL, unix.NLM_F_DUMP)
	req.AddRawData(make([]byte, 4)) // struct ndtmsg: of any family
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGHTBL)
	if err != nil {
		return 0, err
	}
	for _, a := range answers {
		if len(a) < 4 {
			continue
		}
		attributes, err := nl.ParseRouteAttr(a[4:])
		if err != nil {
			return 0, err
		}
		for _, attribute := range attributes {
			const config = 5 // NDTA_CONFIG: struct ndt_config, with ndtc_entries behind two shorts
			if attribute.Attr.Type == config && len(attribute.Value) >= 8 {
				sum += int(binary.NativeEndian.Uint32(attribute.Value[4:]))
			}
		}
	}
	return sum, nil
}

// neighboursIn counts those of a namespace, 262,144 at most: more are enough of them.
func neighboursIn(n *netns.NS) (count int, err error) {
	const enough = 1 << 18
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddRawData(make([]byte, unix.SizeofNdMsg)) // of any family
		if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		for count < enough {
			k, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return err
			}
			for rest := buf[:k]; len(rest) >= unix.SizeofNlMsghdr; {
				length, kind := binary.NativeEndian.Uint32(rest), binary.NativeEndian.Uint16(rest[4:])
				switch kind {
				case unix.NLMSG_DONE, unix.NLMSG_ERROR:
					return nil
				case unix.RTM_NEWNEIGH:
					count++
				}
				if length = (length + 3) &^ 3; length < unix.SizeofNlMsghdr || int(length) > len(rest) {
					break
				}
				rest = rest[length:]
			}
		}
		return nil
	})
	return count, err
}

// allConnections is how many are tracked in all namespaces. The kernel says it of its own
// allocator only, roughly: 0 where it says nothing.
func allConnections() (int, error) {
	text, err := os.ReadFile("/proc/slabinfo")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "nf_conntrack" {
			return strconv.Atoi(f[1])
		}
	}
	return 0, nil
}

// connectionsIn counts those that are tracked in a namespace.
func connectionsIn(n *netns.NS) (count int, err error) {
	err = n.Do(func() error {
		// Of the namespace that the thread is in.
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			return err
		}
		count, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	return count, err
}
