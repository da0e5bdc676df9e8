package machine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

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
	files func(memory int64) int         // open files of such a machine that are looked at: who has more hides something
}

// connectionBytes is what is memory enough for one connection: 320 bytes are 2 percent of it.
const connectionBytes = 16 << 10

// tables of a host with so much memory.
func tables(memory uint64) []table {
	return []table{
		// Half of what appliance/kernel.go makes room for, which a program of one thread adds in
		// a second. A machine knows the others of its workspace, 4,094 at most, and each pod takes two.
		{"neighbours", 0, 1 << 16, func(int64) int { return 1 << 13 }, allNeighbours, neighboursIn, filesOf},
		// The kernel bounds them in each namespace by a quarter of this, of the host's memory.
		{"connections", 5 * time.Second, int(min(memory/connectionBytes, math.MaxInt32)),
			func(memory int64) int { return int(max(memory/connectionBytes, 1<<16)) }, allConnections, connectionsIn, filesOf},
	}
}

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

// relieve ends the machine that holds most of a table that is too full. If none shows more than
// its share, it is one that hides what it holds.
func (s *Sandbox) relieve(ctx context.Context, t table) error {
	sum, err := t.all()
	if errors.Is(err, fs.ErrPermission) {
		if _, said := s.uncounted.LoadOrStore(t.name, true); !said {
			s.cfg.Log.Warn("the kernel does not say how full a table is: machines that fill it are not ended", "table", t.name, "err", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("count the kernel's %s: %w", t.name, err)
	}
	if sum <= t.most {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", recordName))
	if err != nil {
		return err
	}
	var all []*holding
	for _, file := range files {
		if rec, err := readRecord(file); err == nil { // else it is being made, or removed
			all = append(all, &holding{record: rec})
		}
	}
	suspects := func(is func(h *holding) bool) []*holding {
		found := slices.DeleteFunc(slices.Clone(all), func(h *holding) bool { return !is(h) })
		slices.SortFunc(found, func(a, b *holding) int { return b.count - a.count })
		return found
	}
	exceeds := func(h *holding) bool { return h.count > h.share(t) }
	s.countLived(ctx, t, all)
	worst := suspects(exceeds)
	if len(worst) == 0 {
		s.countAll(ctx, t, all)
		worst = suspects(exceeds)
	}
	shown := t.ofHost()
	for _, h := range all {
		shown += h.count
	}
	if len(worst) == 0 {
		// Not for what others show: each may have less than its share, and there may be many.
		worst = suspects(func(h *holding) bool { return h.hides != "" && sum-shown > h.share(t) })
		worst = worst[:min(1, len(worst))]
	}
	var errs []error
	for _, h := range worst {
		why := fmt.Sprintf("ended because it held %d %s of the host's kernel: %d is its share, and all together have %d",
			h.count, t.name, h.share(t), sum)
		if !exceeds(h) {
			why = fmt.Sprintf("ended because it keeps from being counted (%s), and the host's kernel has too many %s: %d, "+
				"of which are seen %d", h.hides, t.name, sum, shown)
		}
		err := s.endFor(ctx, h, why)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return cmp.Or(errors.Join(errs...), fmt.Errorf("%d %s, of which the host and its machines show %d", sum, t.name, shown))
}

// ofHost counts those of the host's own namespace. 0: it can't be told.
func (t table) ofHost() int {
	own, err := netns.OpenPath("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	defer own.Close()
	count, err := t.in(own)
	if err != nil {
		return 0
	}
	return count
}

// endFor ends a machine, which is started again as one that ended by itself is.
func (s *Sandbox) endFor(ctx context.Context, h *holding, why string) error {
	s.cfg.Log.Warn("machine "+why, "machine", h.Machine.Key, "uid", h.Machine.UID)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.kill(ctx, h.Machine.UID); err != nil {
		return err
	}
	s.quiet.Delete(h.Machine.UID) // it starts anew
	// Its report tells the last line.
	console, err := os.OpenFile(s.home(h.Machine.UID).at(consoleName), os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // it was removed meanwhile
	}
	defer console.Close()
	_, err = fmt.Fprintf(console, "\n%s\n", why)
	return err
}

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
