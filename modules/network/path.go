package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// PathConfig is for WatchPaths.
type PathConfig struct {
	// Narrow is called for each host that shares a network with this one: with
	// what its path does not carry, or nil; and with nil when the host shares none any more.
	Narrow func(peer netip.Addr, err error)
	// Every is how often to look. 0 is 30 s: one large and one small packet to each host.
	Every time.Duration
}

const (
	smallPacket = 64
	// With 30 % lost each way half of the answers are missing: twelve in a row 1
	// time in 3,000.
	pathTries = 12
	// Sizes asked at once: three rounds of them find one of 1,000. An answer
	// that is lost each time makes a path look a little narrower, until the next look.
	pathRungs     = 16
	pathRungTries = 3
)

// WatchPaths is the part that finds out by ICMP echo whether the network between
// this host and the others carries what their interfaces send, and else gives the
// workspaces' networks an MTU that passes. Of hosts that answer none it can't know,
// and says nothing.
//
// Path MTU discovery of the kernel was no way: nobody routes between the hosts
// who could say that a packet is too large.
func (n *Network) WatchPaths(cfg PathConfig) func(ctx context.Context, ready func()) error {
	cfg.Every = cmp.Or(cfg.Every, 30*time.Second)
	return func(ctx context.Context, ready func()) error {
		ready()
		tick := time.NewTicker(cfg.Every)
		defer tick.Stop()
		known := map[netip.Addr]int{} // what the path to a host carries; 0: all
		failed := ""
		for {
			err := n.measurePaths(ctx, cfg, known)
			if ctx.Err() != nil {
				return nil
			}
			if text := fmt.Sprint(err); text != failed {
				if failed = text; err != nil {
					n.cfg.Log.Warn("measure the paths to other hosts", "err", err)
				}
			}
			for again := true; again; {
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
					again = false
				case <-n.look:
					again = !slices.ContainsFunc(n.peers(), func(a netip.Addr) bool { _, ok := known[a]; return !ok })
				}
			}
		}
	}
}

// peers are the hosts that share a network with this one.
func (n *Network) peers() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[netip.Addr]bool{}
	for _, w := range n.attached {
		for _, m := range w.Members {
			if m.Host != n.cfg.Underlay {
				all[m.Host] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), netip.Addr.Compare)
}

// measurePaths asks all peers once and makes the networks fit.
func (n *Network) measurePaths(ctx context.Context, cfg PathConfig, known map[netip.Addr]int) error {
	peers := n.peers()
	for a := range known {
		if !slices.Contains(peers, a) {
			delete(known, a)
			cfg.Narrow(a, nil)
		}
	}
	if len(peers) > 0 {
		host, err := n.readHost()
		if err != nil {
			return err
		}
		e, err := newEcho(n.cfg.Underlay)
		if err != nil {
			return err
		}
		defer e.conn.Close()
		defer context.AfterFunc(ctx, func() { e.conn.Close() })()
		carried, err := e.measure(peers, host.mtu)
		if err != nil {
			return err
		}
		for _, a := range peers {
			known[a] = carried[a]
			if carried[a] == host.mtu {
				known[a] = 0
				cfg.Narrow(a, nil)
				continue
			}
			cfg.Narrow(a, fmt.Errorf("packets of %d bytes, as the interface sends them, don't get from %v to %v and back; those of %d do",
				host.mtu, n.cfg.Underlay, a, carried[a]))
		}
	}
	least := 0
	for _, size := range known {
		if size > 0 && (least == 0 || size < least) {
			least = size
		}
	}
	return n.setPathMTU(ctx, least)
}

// setPathMTU makes every network fit through the narrowest path.
func (n *Network) setPathMTU(ctx context.Context, least int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.least == least {
		return nil
	}
	n.cfg.Log.Info("the paths to other hosts carry less or more than before", "bytes", least, "before", n.least)
	n.least = least
	var errs []error
	for _, want := range n.attached {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.attach(want); err != nil {
			errs = append(errs, fmt.Errorf("fit network %s into its paths: %w", want.ID, err))
		}
	}
	return errors.Join(errs...)
}

// inner is the MTU of a workspace's network.
func (n *Network) inner(h *host) int {
	if n.least != 0 && n.least < h.mtu {
		return n.least - overhead
	}
	return h.mtu - overhead
}

// echo asks hosts to send back packets.
type echo struct {
	conn  *net.IPConn
	id    uint16
	seq   uint16
	token [8]byte // who did not see a question can't answer it
}

func newEcho(from netip.Addr) (*echo, error) {
	conn, err := net.ListenIP("ip4:icmp", &net.IPAddr{IP: from.AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("open a socket for ICMP: %w", err)
	}
	e := &echo{conn: conn}
	rand.Read(e.token[:])
	e.id = binary.BigEndian.Uint16(e.token[:])
	var filter ipv4.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv4.ICMPTypeEchoReply)
	err = ipv4.NewPacketConn(conn).SetICMPFilter(&filter)
	if raw, rawErr := conn.SyscallConn(); rawErr == nil {
		// "Don't fragment", whatever the kernel believes to know of the path.
		err = errors.Join(err, raw.Control(func(fd uintptr) {
			rawErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		}), rawErr)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("set up a socket for ICMP: %w", err)
	}
	return e, nil
}

// question is one packet to one host.
type question struct {
	host netip.Addr
	size int
}

const (
	echoHeaders = 20 + 8                 // of IPv4 and ICMP
	echoData    = 8 + 2                  // token and size
	echoWait    = 500 * time.Millisecond // for how long an answer may take
)

// ask sends each question and returns those that came back in time.
func (e *echo) ask(questions map[question]bool) (map[question]bool, error) {
	for q := range questions {
		e.seq++
		data := make([]byte, q.size-echoHeaders)
		copy(data, e.token[:])
		binary.BigEndian.PutUint16(data[len(e.token):], uint16(q.size))
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.id), Seq: int(e.seq), Data: data}}
		b, err := m.Marshal(nil)
		if err != nil {
			return nil, err
		}
		// Of a host that can't be reached, or a packet that the interface no
		// longer takes, there is no answer, which says enough.
		if _, err := e.conn.WriteTo(b, &net.IPAddr{IP: q.host.AsSlice()}); errors.Is(err, net.ErrClosed) {
			return nil, err
		}
	}
	if err := e.conn.SetReadDeadline(time.Now().Add(echoWait)); err != nil {
		return nil, err
	}
	answered := map[question]bool{}
	buf := make([]byte, 128) // the rest of a packet is not looked at
	for i := 0; i < 4*len(questions) && len(answered) < len(questions); i++ {
		k, from, err := e.conn.ReadFromIP(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, err
		}
		q, ok := e.parse(buf[:k])
		if q.host, _ = netip.AddrFromSlice(from.IP.To4()); ok && questions[q] {
			answered[q] = true
		}
	}
	return answered, nil
}

// parse returns which question is answered, without the host.
func (e *echo) parse(b []byte) (q question, ok bool) {
	if len(b) < 8+echoData || b[0] != byte(ipv4.ICMPTypeEchoReply) ||
		binary.BigEndian.Uint16(b[4:]) != e.id || [8]byte(b[8:]) != e.token {
		return q, false
	}
	return question{size: int(binary.BigEndian.Uint16(b[16:]))}, true
}

// measure returns how large packets may be on the way to each host: full, unless
// full ones don't come back where smaller ones do.
func (e *echo) measure(hosts []netip.Addr, full int) (map[netip.Addr]int, error) {
	carried := map[netip.Addr]int{}
	small := map[netip.Addr]int{}
	for range pathTries {
		questions := map[question]bool{}
		for _, a := range hosts {
			if carried[a] == 0 {
				questions[question{a, full}], questions[question{a, smallPacket}] = true, true
			}
		}
		if len(questions) == 0 {
			return carried, nil
		}
		answered, err := e.ask(questions)
		if err != nil {
			return nil, err
		}
		for q := range answered {
			if q.size == full {
				carried[q.host] = full
			} else {
				small[q.host]++
			}
		}
	}
	for _, a := range hosts {
		switch {
		case carried[a] != 0:
		case small[a] < pathTries/4:
			carried[a] = full // it answers nothing, or next to nothing: that is another matter
		default:
			size, err := e.largest(a, full)
			if err != nil {
				return nil, err
			}
			carried[a] = size
		}
	}
	return carried, nil
}

// largest finds the largest packet below full that a path carries.
func (e *echo) largest(a netip.Addr, full int) (int, error) {
	low, high := 576+overhead, full // low is taken as carried: nothing runs over less
	for high-low > 1 {
		questions := map[question]bool{}
		for i := 1; i <= pathRungs; i++ {
			if size := low + (high-low)*i/(pathRungs+1); size > low {
				questions[question{a, size}] = true
			}
		}
		for range pathRungTries {
			answered, err := e.ask(questions)
			if err != nil {
				return 0, err
			}
			for q := range answered {
				low = max(low, q.size)
			}
			maps.DeleteFunc(questions, func(q question, _ bool) bool { return q.size <= low })
		}
		for q := range questions {
			high = min(high, q.size)
		}
	}
	return low, nil
}
