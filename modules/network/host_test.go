package network

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// A test host is this test binary started again in a network and a mount
// namespace of its own. It does what it is told in JSON lines on its standard
// input and answers on its standard output.

// patience is how long a host waits for an answer that must not come. Those
// that must come take a thousandth of it, but the first packet on a new link may be
// lost, and TCP repeats it after a second: they have enough.
const patience, enough = 400 * time.Millisecond, 10 * time.Second

// bulk is how much a host sends when it sends much.
const bulk = 1 << 20

const hostEnv = "MULTIPAAS_NETWORK_TEST_HOST"

type order struct {
	Do        string // name of a method below
	ID        string // network
	NS        string // namespace, "" = the host's
	Network   wire.Network
	Egress    Egress
	Door      Door
	Machine   machinePort
	From, To  string
	Frame     []byte
	Link      string
	Arguments []string

	listening func() error
}

type answer struct {
	Out   string
	Error string
}

func TestMain(m *testing.M) {
	if address := os.Getenv(hostEnv); address != "" {
		if err := serveHost(address); err != nil {
			fmt.Fprintln(os.Stderr, "test host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveHost(address string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(netns.Root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", netns.Root, "tmpfs", 0, ""); err != nil {
		return err
	}
	// The other end puts eth0 here before it speaks.
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	n := New(Config{Underlay: netip.MustParseAddr(address)})
	var w, p, own *watched
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if o.Do == "restart" { // as a new agent on the same host
			n = New(n.cfg)
		}
		if o.Do == "receiveUDP" {
			o.listening = func() error { return out.Encode(answer{Out: "listening"}) }
		}
		var text string
		var err error
		switch o.Do {
		case "watchAddress":
			w = watchAddress(n.cfg.Underlay)
		case "watchPaths":
			p = watchPaths(n)
		case "watchOwn":
			own = watchOwn(n.cfg.Underlay)
		case "awaitOwn":
			text, err = own.await(o.To)
		case "awaitAddress":
			text, err = w.await(o.To)
		case "awaitPath":
			text, err = p.await(o.To)
		default:
			text, err = obey(n, o)
		}
		a := answer{Out: text}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// watched is what an AddressWatch says.
type watched struct{ said chan string }

func watchAddress(a netip.Addr) *watched {
	w := &watched{make(chan string, 1000)}
	say := func(before string) func(error) {
		return func(err error) {
			if err != nil {
				w.said <- before + err.Error()
			} else if before == "" {
				w.said <- "free"
			}
		}
	}
	go NewAddressWatch(AddressConfig{Address: a, Taken: say(""), Unwatched: say("unwatched: "), Every: 300 * time.Millisecond}).
		Run(context.Background(), func() {})
	return w
}

// watchOwn says which addresses the host has besides, at first and after each change.
func watchOwn(a netip.Addr) *watched {
	w := &watched{make(chan string, 1000)}
	own := NewOwnAddresses(a, nil)
	say := func() { w.said <- fmt.Sprint(own.List()) }
	own.OnChange(say)
	say()
	go own.Run(context.Background(), func() {})
	return w
}

func watchPaths(n *Network) *watched {
	w := &watched{make(chan string, 1000)}
	narrow := func(peer netip.Addr, err error) { w.said <- fmt.Sprintf("%v: %v", peer, err) }
	go n.WatchPaths(PathConfig{Narrow: narrow, Every: 300 * time.Millisecond})(context.Background(), func() {})
	return w
}

// await waits until the watch says something that holds words.
func (w *watched) await(words string) (string, error) {
	timeout := time.After(30 * time.Second)
	last := "nothing"
	for {
		select {
		case last = <-w.said:
			if strings.Contains(last, words) {
				return last, nil
			}
		case <-timeout:
			return "", fmt.Errorf("waited for %q; the watch says: %s", words, last)
		}
	}
}

func obey(n *Network, o order) (string, error) {
	ctx := context.Background()
	switch o.Do {
	case "restart":
		return "", nil
	case "attach":
		n.cfg.Egress, n.cfg.Door = o.Egress, func() Door { return o.Door }
		return "", n.Attach(ctx, o.Network)
	case "detach":
		return "", n.Detach(ctx, o.ID)
	case "attached":
		ids, err := n.Attached()
		return strings.Join(ids, " "), err
	case "machines":
		uids, err := n.Machines()
		return strings.Join(uids, " "), err
	case "attachMachine":
		return n.AttachMachine(ctx, wire.Machine{UID: o.Machine.UID, NetworkID: o.ID,
			Spec: resource.MachineSpec{Address: o.Machine.Address, MAC: o.Machine.MAC, PodCIDR: o.Machine.PodCIDR}})
	case "detachMachine":
		return "", n.DetachMachine(ctx, o.Machine.UID)
	}
	ns, err := netns.OpenPID(os.Getpid())
	if o.NS != "" {
		ns, err = netns.Open(o.NS)
	}
	if err != nil {
		return "", err
	}
	defer ns.Close()
	switch o.Do {
	case "run":
		var out []byte
		err := ns.Do(func() (err error) {
			out, err = exec.Command(o.Arguments[0], o.Arguments[1:]...).CombinedOutput()
			return err
		})
		return string(out), err
	case "address":
		h, err := ns.Netlink()
		if err != nil {
			return "", err
		}
		defer h.Close()
		l, err := h.LinkByName(o.Link)
		if err != nil {
			return "", err
		}
		a, err := netlink.ParseAddr(o.To)
		if err != nil {
			return "", err
		}
		return "", errors.Join(h.AddrAdd(l, a), h.LinkSetUp(l))
	case "ping":
		return "", ping(ns, o.From, o.To)
	case "reach": // a bridge port takes a moment to forward once its link is up
		for try := 0; ; try++ {
			if err := ping(ns, o.From, o.To); err == nil || try == 4 {
				return "", err
			}
		}
	case "listenTCP":
		ln, err := ns.Listen("tcp", o.To)
		if err != nil {
			return "", err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
				if io.WriteString(c, "hello from "+o.To); o.Link != "" { // who asks
					io.WriteString(c, " to "+from.Addr().String())
				}
				c.Close()
			}
		}()
		return "", nil
	case "listenBulk":
		ln, err := ns.Listen("tcp", o.To)
		if err != nil {
			return "", err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				n, _ := io.Copy(io.Discard, c)
				fmt.Fprint(c, n)
				c.Close()
			}
		}()
		return "", nil
	case "bulk":
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		c, err := ns.DialContext(ctx, "tcp", o.To)
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(make([]byte, bulk)); err != nil {
			return "", err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	case "floodTCP": // connections that are over at once, for as long as nobody must wait
		return flood(ns, o.To)
	case "floodUDP": // a packet from each of so many ports
		count, err := strconv.Atoi(o.Arguments[0])
		return "", errors.Join(err, floodUDP(ns, netip.MustParseAddrPort(o.To), count))
	case "takePorts": // of the host, as connections towards a destination have them
		return "", ns.Do(func() error { return takePorts(o) })
	case "scan": // a packet to each address of a network
		return "", scan(ns, netip.MustParsePrefix(o.To))
	case "dialTCP", "reachTCP":
		limit := patience
		if o.Do == "reachTCP" {
			limit = enough
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		c, err := dial(ctx, ns, o)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		b, err := io.ReadAll(c)
		return string(b), err
	case "dialAll": // says which of the arguments somebody answers at, be it by a refusal
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		answered := make([]string, len(o.Arguments))
		var all sync.WaitGroup
		for i, to := range o.Arguments {
			all.Go(func() {
				c, err := dial(ctx, ns, order{From: o.From, To: to})
				if err == nil {
					c.Close()
				}
				if err == nil || strings.Contains(err.Error(), "refused") {
					answered[i] = fmt.Sprintf("%s (%v)", to, err)
				}
			})
		}
		all.Wait()
		return strings.Join(slices.DeleteFunc(answered, func(s string) bool { return s == "" }), ", "), nil
	case "receiveUDP":
		return receive(ns, o)
	case "sendUDP":
		return "", ns.Do(func() error {
			c, err := net.Dial("udp", o.To)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(o.Frame)
			return err
		})
	case "send":
		return "", sendFrame(ns, o.Link, o.Frame)
	}
	return "", fmt.Errorf("unknown order %q", o.Do)
}

// dial connects, from an address or a port of its own if the order says one.
func dial(ctx context.Context, ns *netns.NS, o order) (c net.Conn, err error) {
	if o.From == "" {
		return ns.DialContext(ctx, "tcp", o.To)
	}
	from, err := net.ResolveTCPAddr("tcp4", o.From)
	if err != nil {
		return nil, err
	}
	free := func(_, _ string, c syscall.RawConn) (err error) { // the next from the same port comes at once
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return err
	}
	d := net.Dialer{LocalAddr: from, Control: free}
	err = ns.Do(func() (err error) { c, err = d.DialContext(ctx, "tcp", o.To); return err })
	return c, err
}

// flood makes connections that are over at once, and says how many. What is lost on
// the way is given up: on Linux 6.1 three of a hundred connections are, in all attempts
// for up to two minutes (docs/gaps.md).
func flood(ns *netns.NS, to string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait.Patience) // emulated processors take their time
	defer cancel()
	began := time.Now()
	var made atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil && (made.Load() < newBurst/2 || time.Since(began) < 1500*time.Millisecond) {
				dialing, cancel := context.WithTimeout(ctx, 2*time.Second)
				c, err := ns.DialContext(dialing, "tcp", to)
				cancel()
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, c)
				c.Close()
				made.Add(1)
			}
		})
	}
	wg.Wait()
	return fmt.Sprint(made.Load()), nil
}

func takePorts(o order) error {
	to := netip.MustParseAddrPort(o.To)
	first, err1 := strconv.Atoi(o.Arguments[0])
	last, err2 := strconv.Atoi(o.Arguments[1])
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	inside, outside := net.IPv4(100, 64, 255, 1).To4(), to.Addr().AsSlice()
	for port := first; port <= last; port++ {
		err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET, TimeOut: 600,
			Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: inside, DstIP: outside, SrcPort: uint16(port), DstPort: to.Port()},
			Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: outside, DstIP: net.ParseIP(o.From).To4(), SrcPort: to.Port(), DstPort: uint16(port)},
		})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

func floodUDP(ns *netns.NS, to netip.AddrPort, count int) error {
	return ns.Do(func() error {
		for i := range count {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = cmp.Or(unix.Bind(fd, &unix.SockaddrInet4{Port: 1024 + i}),
				unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
			unix.Close(fd)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func scan(ns *netns.NS, network netip.Prefix) error {
	pc, err := ns.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		return err
	}
	defer pc.Close()
	for a := network.Addr().Next(); network.Contains(a); a = a.Next() {
		_, _ = pc.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	}
	return nil
}

func ping(ns *netns.NS, from, to string) error {
	if from == "" {
		from = "0.0.0.0"
	}
	var c *icmp.PacketConn
	err := ns.Do(func() (err error) { c, err = icmp.ListenPacket("ip4:icmp", from); return })
	if err != nil {
		return err
	}
	defer c.Close()
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("multipaas")}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1500)
	for {
		k, peer, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		r, err := icmp.ParseMessage(1, buf[:k])
		if err == nil && r.Type == ipv4.ICMPTypeEchoReply && peer.String() == to {
			return nil
		}
	}
}

// receive says that it listens, and then what comes first.
func receive(ns *netns.NS, o order) (string, error) {
	pc, err := ns.ListenPacket("udp4", o.To)
	if err != nil {
		return "", err
	}
	defer pc.Close()
	if err := o.listening(); err != nil {
		return "", err
	}
	pc.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 1500)
	k, _, err := pc.ReadFrom(buf)
	return string(buf[:k]), err
}

func sendFrame(ns *netns.NS, link string, frame []byte) error {
	return ns.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index})
	})
}

// testHost is the other end of a test host.
type testHost struct {
	t       *testing.T
	address netip.Addr
	cmd     *exec.Cmd
	in      *json.Encoder
	out     *json.Decoder
}

// switchName is the namespace that the hosts' switch is in.
func switchName() string { return fmt.Sprintf("mptest-network-%d", os.Getpid()) }

// newHosts starts hosts 10.99.0.1, 10.99.0.2... on one switch.
func newHosts(t *testing.T, count int) []*testHost {
	t.Helper()
	name := switchName()
	sw, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close(); netns.Remove(name) })
	h, err := sw.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = "sw0"
	if err := errors.Join(h.LinkAdd(br), h.LinkSetUp(br)); err != nil {
		t.Fatal(err)
	}
	var hosts []*testHost
	for i := range count {
		x := &testHost{t: t, address: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)})}
		x.cmd = exec.Command("/proc/self/exe")
		x.cmd.Env = append(os.Environ(), hostEnv+"="+x.address.String())
		x.cmd.Stderr = os.Stderr
		// It ends with its input. No Pdeathsig: that would follow the thread which forked, and threads end as
		// namespaces are made (golang/go#27505).
		x.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
		in, err := x.cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := x.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		x.in, x.out = json.NewEncoder(in), json.NewDecoder(out)
		if err := x.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); x.cmd.Wait() })
		v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsPid(x.cmd.Process.Pid)}
		v.Name = fmt.Sprintf("v%d", i+1)
		v.MasterIndex = br.Index
		if err := errors.Join(h.LinkAdd(v), h.LinkSetUp(v)); err != nil {
			t.Fatal(err)
		}
		if l, err := h.LinkByName(v.Name); err != nil || h.LinkSetMaster(l, br) != nil {
			t.Fatal("put host onto the switch", err)
		}
		x.must(order{Do: "address", Link: "eth0", To: x.address.String() + "/24"})
		hosts = append(hosts, x)
	}
	return hosts
}

func (x *testHost) do(o order) (string, error) {
	x.t.Helper()
	if err := x.in.Encode(o); err != nil {
		x.t.Fatalf("host %v: %v", x.address, err)
	}
	var a answer
	if err := x.out.Decode(&a); err != nil {
		x.t.Fatalf("host %v: %v", x.address, err)
	}
	if a.Error != "" {
		return a.Out, errors.New(a.Error)
	}
	return a.Out, nil
}

func (x *testHost) must(o order) string {
	x.t.Helper()
	out, err := x.do(o)
	if err != nil {
		x.t.Fatalf("host %v: %s %s%s: %v\n%s", x.address, o.Do, o.To, o.Machine.UID, err, out)
	}
	return out
}

// tracked is how many connections a namespace keeps track of.
func (x *testHost) tracked(ns string) int {
	x.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(x.must(order{Do: "run", NS: ns, Arguments: []string{"cat", "/proc/sys/net/netfilter/nf_conntrack_count"}})))
	if err != nil {
		x.t.Fatal(err)
	}
	return n
}

// attribute is what follows a word in what ip says of a link. Not from /sys, which
// shows the namespace that it was mounted in.
func (x *testHost) attribute(ns, link, word string) string {
	x.t.Helper()
	fields := strings.Fields(x.must(order{Do: "run", NS: ns, Arguments: []string{"ip", "-o", "link", "show", "dev", link}}))
	if i := slices.Index(fields, word); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	x.t.Fatalf("host %v: no %s of %s in %v", x.address, word, link, fields)
	return ""
}

// dump shows everything of the host's and the named namespaces that Attach may
// set, with handles and indexes: what is replaced shows.
func (x *testHost) dump(namespaces ...string) string {
	x.t.Helper()
	var b strings.Builder
	for _, ns := range append([]string{""}, namespaces...) {
		for _, command := range []string{"ip -d -o link", "ip -o addr", "ip route show table all", "ip neigh show nud permanent", "bridge fdb", "nft -a list ruleset"} {
			fmt.Fprintf(&b, "## %s: %s\n%s\n", ns, command, x.must(order{Do: "run", NS: ns, Arguments: strings.Fields(command)}))
		}
	}
	return timers.ReplaceAllString(b.String(), "")
}

// timers are what changes by itself: what is in meters goes when connections have ended.
var timers = regexp.MustCompile(`timer +[0-9.]+|\s*elements = \{[^}]* ct count [^}]*\}`)
