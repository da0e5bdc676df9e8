package network

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// AddressConfig is for an AddressWatch.
type AddressConfig struct {
	Address netip.Addr // this host's on the platform's network
	// Taken is called after each look: with who else uses the address, or nil.
	Taken func(error)
	// Unwatched is called with why nobody can look, or nil.
	Unwatched func(error)
	// Every is how often to look. 0 is 10 s: one small broadcast frame per host.
	Every time.Duration
}

// AddressWatch is the part that finds out whether another host has taken this
// host's address, by RFC 5227: it asks who else has it, and while somebody does
// it tells the neighbours again and again that it is ours (2.4, case c: a
// host that others depend on keeps its address). It never gives it up.
//
// The kernel does none of this: two Linux hosts with one address both answer, and
// each neighbour goes to the one it heard last.
type AddressWatch struct {
	cfg   AddressConfig
	taken bool
	quiet int // looks since another host was last heard
}

// NewAddressWatch changes nothing on the host.
func NewAddressWatch(cfg AddressConfig) *AddressWatch {
	cfg.Every = cmp.Or(cfg.Every, 10*time.Second) // RFC 5227's DEFEND_INTERVAL: announced no more often than that
	return &AddressWatch{cfg: cfg}
}

const (
	firstLooks = 3               // PROBE_NUM, a second or two apart
	firstEvery = 1 * time.Second // PROBE_MIN
	// quietLooks without an answer and it is over: each is one frame and one
	// answer, and one in ten may be lost.
	quietLooks = 3
	// heardAtMost bounds what one look reads, whatever arrives.
	heardAtMost = 32
)

// Run looks until ctx is done. It is ready at once: the address is in use, and
// nothing waits for whether it is somebody else's too.
func (w *AddressWatch) Run(ctx context.Context, ready func()) error {
	ready()
	for looks := 1; ; looks++ {
		every := w.cfg.Every
		if looks <= firstLooks {
			every = min(every, firstEvery)
		}
		// Hosts that were switched on together do not ask together for ever.
		every += rand.N(every/5 + 1)
		over := time.After(every)
		others, err := w.look(ctx, time.Now().Add(every))
		if ctx.Err() != nil {
			return nil
		}
		w.cfg.Unwatched(err)
		if err == nil {
			w.judge(others)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-over:
		}
	}
}

// judge says what a look has shown.
func (w *AddressWatch) judge(others []string) {
	if len(others) > 0 {
		w.taken, w.quiet = true, 0
		w.cfg.Taken(fmt.Errorf("%v is used by %s too", w.cfg.Address, strings.Join(others, " and ")))
		return
	}
	if w.quiet++; w.taken && w.quiet < quietLooks {
		return
	}
	w.taken = false
	w.cfg.Taken(nil)
}

// look asks who else has the address and listens until the deadline, or until
// somebody was heard. It returns the hardware addresses of the others.
//
// Its socket lives for one look: the address may have moved to another interface
// meanwhile, and what a flood has left in the socket's buffer is no news later.
func (w *AddressWatch) look(ctx context.Context, until time.Time) ([]string, error) {
	host := &host{link: &netlink.Handle{}}
	links, addresses, err := host.links()
	if err != nil {
		return nil, err
	}
	on := slices.IndexFunc(addresses, func(a netlink.Addr) bool { return prefixOf(a.IPNet).Addr() == w.cfg.Address })
	if on < 0 {
		return nil, fmt.Errorf("no interface has the address %v", w.cfg.Address)
	}
	link := links[addresses[on].LinkIndex]
	if link == nil {
		return nil, fmt.Errorf("the interface with the address %v has gone", w.cfg.Address)
	}
	if len(link.HardwareAddr) != 6 || link.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || link.RawFlags&unix.IFF_NOARP != 0 {
		return nil, nil // no neighbours there, or none that ARP finds
	}
	conn, err := listenARP(link, w.cfg.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(until); err != nil {
		return nil, err
	}

	// From nobody, so that it changes no neighbour's table; from ourselves, so that it
	// does.
	send := func(sender netip.Addr) error {
		_, err := conn.WriteTo(arpRequest(link.HardwareAddr, sender, w.cfg.Address), &packet.Addr{HardwareAddr: broadcast})
		if err != nil {
			return fmt.Errorf("send ARP from %v for %v on %s: %w", sender, w.cfg.Address, link.Name, err)
		}
		return nil
	}
	if w.taken { // also when nobody was heard any more: it brings the neighbours back
		err = send(w.cfg.Address)
	}
	if err := cmp.Or(err, send(netip.IPv4Unspecified())); err != nil {
		return nil, err
	}
	others, err := hear(conn, w.cfg.Address, ownOf(links))
	if err != nil {
		return nil, fmt.Errorf("listen for ARP on %s: %w", link.Name, err)
	}
	if len(others) > 0 { // an interface of ours may have been made meanwhile
		if links, _, err = host.links(); err != nil {
			return nil, err
		}
		own := ownOf(links)
		others = slices.DeleteFunc(others, func(o string) bool { return own[o] })
	}
	if len(others) > 0 && !w.taken {
		if err := send(w.cfg.Address); err != nil {
			return nil, err
		}
	}
	for i := range others {
		others[i] += " on " + link.Name
	}
	return others, nil
}

// ownOf are all hardware addresses of the host: a bond may answer by each of its own.
func ownOf(links map[int]*netlink.LinkAttrs) map[string]bool {
	own := map[string]bool{}
	for _, l := range links {
		own[l.HardwareAddr.String()] = true
	}
	return own
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// listenARP opens a socket for the ARP that speaks for the address; the kernel
// throws away the rest of it.
func listenARP(link *netlink.LinkAttrs, address netip.Addr) (*packet.Conn, error) {
	a := address.As4()
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}, // of a VLAN that is not this one
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: 3},
		bpf.LoadAbsolute{Off: senderAddress, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(a[:]), SkipFalse: 1},
		bpf.RetConstant{Val: arpLength},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	conn, err := packet.Listen(&net.Interface{Index: link.Index, Name: link.Name, HardwareAddr: link.HardwareAddr},
		packet.Datagram, unix.ETH_P_ARP, &packet.Config{Filter: filter})
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: it takes CAP_NET_RAW", err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for ARP on %s: %w", link.Name, err)
	}
	return conn, nil
}

// hear returns the hardware addresses that speak for the address and are not
// ours. Who was heard first need not be alone: it reads on for a moment.
func hear(conn *packet.Conn, address netip.Addr, own map[string]bool) (others []string, err error) {
	buf := make([]byte, 128) // ARP has 28 bytes; behind it there is padding
	for range heardAtMost {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, err
		}
		mac, sender, err := arpSender(buf[:n])
		if err != nil || sender != address || own[mac.String()] {
			continue
		}
		if len(others) == 0 {
			if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				return nil, err
			}
		}
		if name := mac.String(); len(others) < 3 && !slices.Contains(others, name) {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	return others, nil
}

// ARP for IPv4 on Ethernet (RFC 826): kind of hardware, of protocol, their
// lengths, operation, then sender and target, each a hardware address and an address.
const (
	arpLength     = 28
	senderAddress = 14
)

var arpHeader = []byte{0, 1, 8, 0, 6, 4}

// arpRequest asks who has target. From the target itself it is an announcement,
// from nobody a probe.
func arpRequest(mac net.HardwareAddr, sender, target netip.Addr) []byte {
	b := append(slices.Clone(arpHeader), 0, 1)
	b = append(b, mac...)
	b = append(b, sender.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, target.AsSlice()...)
}

// arpSender returns who says in a request or an answer to have which address.
func arpSender(b []byte) (net.HardwareAddr, netip.Addr, error) {
	if len(b) < arpLength || !bytes.Equal(b[:len(arpHeader)], arpHeader) {
		return nil, netip.Addr{}, errors.New("no ARP for IPv4 on Ethernet")
	}
	return net.HardwareAddr(bytes.Clone(b[8:senderAddress])), netip.AddrFrom4([4]byte(b[senderAddress:])), nil
}
