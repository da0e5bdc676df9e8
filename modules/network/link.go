package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// dump repeats a list that was interrupted by a change and would be incomplete.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		items, err := list()
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		return items, err
	}
}

// find returns the link, or nil if there is none.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := get(h, name)
	if errors.Is(err, errNoLink) {
		return nil, nil
	}
	return l, err
}

// errNoLink is no fs.ErrNotExist: that says that a namespace is not there.
var errNoLink = errors.New("there is none")

// get returns a link that must be there.
func get(h *netlink.Handle, name string) (netlink.Link, error) {
	links, err := dump(func() ([]netlink.Link, error) {
		l, err := h.LinkByName(name)
		return []netlink.Link{l}, err
	})
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		err = errNoLink
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return links[0], nil
}

// addLink adds a link and returns it as it stands then where in looks.
func addLink(h, in *netlink.Handle, l netlink.Link) (netlink.Link, error) {
	if err := h.LinkAdd(l); err != nil {
		return nil, fmt.Errorf("add interface %s: %w", l.Attrs().Name, err)
	}
	return get(in, l.Attrs().Name)
}

// ensureVeth makes a pair of links, if it is not there: v stands where outside
// looks, its peer where inside does.
func ensureVeth(outside, inside *netlink.Handle, v *netlink.Veth) (outer, inner netlink.Link, err error) {
	if outer, err = find(outside, v.Name); err != nil {
		return nil, nil, err
	}
	if inner, err = find(inside, v.PeerName); err != nil {
		return nil, nil, err
	}
	endOf := func(a, b netlink.Link) bool { return a.Attrs().ParentIndex == b.Attrs().Index } // of a veth: its other end
	if outer != nil && inner != nil && endOf(outer, inner) && endOf(inner, outer) {
		return outer, inner, nil
	}
	if err := removeLink(outside, v.Name); err != nil {
		return nil, nil, err
	}
	if err := removeLink(inside, v.PeerName); err != nil {
		return nil, nil, err
	}
	if outer, err = addLink(outside, outside, v); err != nil {
		return nil, nil, err
	}
	inner, err = get(inside, v.PeerName)
	return outer, inner, err
}

func linksWithPrefix(h *netlink.Handle, prefix string) ([]netlink.Link, error) {
	all, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return slices.DeleteFunc(all, func(l netlink.Link) bool { return !strings.HasPrefix(l.Attrs().Name, prefix) }), nil
}

func removeLink(h *netlink.Handle, name string) error {
	l, err := find(h, name)
	if l == nil {
		return err
	}
	if err := h.LinkDel(l); err != nil {
		if again, _ := find(h, name); again == nil {
			return nil // it went with its other end meanwhile
		}
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// adjust sets what differs and brings the link up. mac may be nil: as it is.
func adjust(h *netlink.Handle, l netlink.Link, mtu int, mac net.HardwareAddr) error {
	a := l.Attrs()
	if a.MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, a.Name, err)
		}
	}
	if mac != nil && !bytes.Equal(a.HardwareAddr, mac) {
		if err := h.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("set hardware address %v of %s: %w", mac, a.Name, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
	}
	return nil
}

// kernelTable is what the kernel holds of one kind: which value for each key.
type kernelTable[K, V comparable, T any] struct {
	name   string
	list   func() ([]T, error)
	read   func(T) (key K, value V, ours bool)
	remove func(*T) error
	set    func(K, V) error // adds it, or replaces the value
}

// settle makes the entries that are ours be just those that are wanted. Those that
// are right stay untouched.
func (t kernelTable[K, V, T]) settle(want map[K]V) error {
	have, err := dump(t.list)
	if err != nil {
		return fmt.Errorf("list %s: %w", t.name, err)
	}
	missing := maps.Clone(want)
	for i := range have {
		key, value, ours := t.read(have[i])
		wanted, ok := want[key]
		switch {
		case ok && ours && value == wanted:
			delete(missing, key)
		case !ok && ours:
			if err := t.remove(&have[i]); err != nil {
				return fmt.Errorf("%s: remove %v: %w", t.name, key, err)
			}
		}
	}
	for key, value := range missing {
		if err := t.set(key, value); err != nil {
			return fmt.Errorf("%s: set %v: %w", t.name, key, err)
		}
	}
	return nil
}

// setAddress makes the link have just this IPv4 address, loopback at least this one.
func setAddress(h *netlink.Handle, l netlink.Link, want netip.Prefix) error {
	add := func(p netip.Prefix, _ bool) error {
		// No broadcast address: with a /31 there is none, and none is needed.
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: netOf(p)}); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	}
	return kernelTable[netip.Prefix, bool, netlink.Addr]{
		name: "addresses of " + l.Attrs().Name,
		list: func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_V4) },
		read: func(a netlink.Addr) (netip.Prefix, bool, bool) {
			p := prefixOf(a.IPNet)
			return p, true, p == want || l.Attrs().Flags&net.FlagLoopback == 0
		},
		remove: func(a *netlink.Addr) error {
			// An interface that loses its last address loses its routes.
			if err := add(want, true); err != nil {
				return err
			}
			return h.AddrDel(l, a)
		},
		set: add,
	}.settle(map[netip.Prefix]bool{want: true})
}

// anywhere is where the default route leads.
var anywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), bits)
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func mustMAC(s string) net.HardwareAddr {
	mac, _ := net.ParseMAC(s) // checked before
	return mac
}

// ensureBridge makes the bridge that is this host's own place in the network.
func (w *workspace) ensureBridge(want wire.Network, mtu int) error {
	l, err := find(w.link, bridgeName)
	if err == nil && l == nil {
		off := false
		br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &off}
		br.Name, br.HardwareAddr, br.MTU = bridgeName, mustMAC(want.MAC), mtu
		l, err = addLink(w.link, w.link, br)
	}
	if err != nil {
		return err
	}
	if err := adjust(w.link, l, mtu, mustMAC(want.MAC)); err != nil {
		return err
	}
	// Members are known one by one: nobody else is to be looked for.
	if err := setAddress(w.link, l, single(want.Gateway.Addr())); err != nil {
		return err
	}
	return setUnreachable(w.link, want.Plan.Nodes, want.Plan.Pods)
}

// ensureVXLAN makes the device that reaches the other hosts. It is created by
// the host's namespace straight into the workspace's: its packets go out
// through the former for ever, and there is no step at which only half is done.
func (n *Network) ensureVXLAN(host *host, w *workspace, want wire.Network, mtu int) error {
	l, err := find(w.link, vxlanName)
	if err != nil {
		return err
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || v.VxlanId != int(want.VNI) || !v.SrcAddr.Equal(n.cfg.Underlay.AsSlice()) || v.Port != VXLANPort || v.Learning {
		if err := removeLink(w.link, vxlanName); err != nil {
			return err
		}
		v = &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: int(want.VNI),
			SrcAddr: n.cfg.Underlay.AsSlice(), Port: VXLANPort, Learning: false}
		v.Name, v.MTU, v.Namespace = vxlanName, mtu, w.ns.Fd()
		if l, err = addLink(host.link, w.link, v); err != nil {
			return fmt.Errorf("VNI %d: %w", want.VNI, err)
		}
	}
	if err := w.enslave(l); err != nil {
		return err
	}
	return adjust(w.link, l, mtu, nil)
}

// enslave puts a link onto the bridge. The bridge learns nothing and floods no
// unknown unicast: who is where is known, and what a machine claims to be must
// not change it.
func (w *workspace) enslave(l netlink.Link) error {
	br, err := get(w.link, bridgeName)
	if err != nil {
		return err
	}
	name := l.Attrs().Name
	if l.Attrs().MasterIndex != br.Attrs().Index {
		if err := w.link.LinkSetMaster(l, br); err != nil {
			return fmt.Errorf("put %s onto the bridge: %w", name, err)
		}
	}
	info, err := w.link.LinkGetProtinfo(l)
	if err != nil {
		return fmt.Errorf("read bridge port %s: %w", name, err)
	}
	if info.Learning {
		if err := w.link.LinkSetLearning(l, false); err != nil {
			return fmt.Errorf("set bridge port %s: learning off: %w", name, err)
		}
	}
	if info.Flood {
		if err := w.link.LinkSetFlood(l, false); err != nil {
			return fmt.Errorf("set bridge port %s: flooding off: %w", name, err)
		}
	}
	return nil
}

// route makes a namespace a router for IPv4 that takes no packet from where its
// answer would not go, and nothing for IPv6. Entries of IPv6 and of br_netfilter may
// be missing.
func route(ns *netns.NS, more map[string]string) error {
	values := map[string]string{
		"ipv4/ip_forward":                  "1",
		"ipv4/conf/all/rp_filter":          "1",
		"ipv4/conf/default/rp_filter":      "1",
		"ipv4/conf/all/arp_ignore":         "1",
		"ipv4/conf/all/arp_announce":       "2",
		"ipv4/conf/all/send_redirects":     "0",
		"ipv4/conf/default/send_redirects": "0",
		"ipv4/conf/all/accept_redirects":   "0",
		"ipv6/conf/all/disable_ipv6":       "1",
		"ipv6/conf/default/disable_ipv6":   "1",
	}
	maps.Copy(values, more)
	return ns.Do(func() error { return setSysctls(values) })
}

func setSysctls(values map[string]string) error {
	var errs []error
	for name, value := range values {
		errs = append(errs, setSysctl(name, value))
	}
	return errors.Join(errs...)
}

// setSysctl writes what differs below /proc/sys/net, which shows the namespace
// of the thread that looks.
func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && (strings.HasPrefix(name, "ipv6/") || strings.HasPrefix(name, "bridge/")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", path, value, err)
	}
	return nil
}

// ensureUplink makes the way to the outside: a veth pair between the host and
// the workspace, with two addresses of its own. It carries what the workspace's network
// does, so that the host itself, which hears no ICMP from there, sends nothing larger.
func (w *workspace) ensureUplink(host *host, mtu int) error {
	name := uplinkPrefix + w.id
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: uplinkName, PeerNamespace: w.ns.Fd()}
	v.Name, v.MTU = name, mtu
	// udev gives a link a lasting address of its own choice, a moment after the
	// other side has learned the first one, unless it was given one.
	v.HardwareAddr, v.PeerHardwareAddr = uplinkMAC(w.id, 0), uplinkMAC(w.id, 1)
	outer, inner, err := ensureVeth(host.link, w.link, v)
	if err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	hostSide, err := uplinkAddress(host, w.id)
	if err != nil {
		return err
	}
	err = setSysctls(map[string]string{
		"ipv4/conf/" + name + "/rp_filter":    "1",
		"ipv4/conf/" + name + "/accept_local": "0",
		// Nothing inside has IPv6, and our rules are of IPv4: the host listens to
		// nobody there.
		"ipv6/conf/" + name + "/disable_ipv6": "1",
	})
	if err != nil {
		return err
	}
	for _, side := range []struct {
		in          *netlink.Handle
		link, other netlink.Link
		address, to netip.Addr
	}{{host.link, outer, inner, hostSide, hostSide.Next()}, {w.link, inner, outer, hostSide.Next(), hostSide}} {
		if err := adjust(side.in, side.link, mtu, nil); err != nil {
			return err
		}
		if err := setAddress(side.in, side.link, netip.PrefixFrom(side.address, 31)); err != nil {
			return err
		}
		// Known for good, so that both find each other when the kernel's table of neighbours is full.
		other := map[netip.Addr]string{side.to: side.other.Attrs().HardwareAddr.String()}
		if err := setNeighbours(side.in, side.link, other); err != nil {
			return err
		}
	}
	return setRoutes(w.link, inner, map[netip.Prefix]netip.Addr{anywhere: hostSide})
}

// uplinkMAC is the hardware address of the host's side (0) or the workspace's (1)
// of an uplink: local, as a member's are, but of another range.
func uplinkMAC(id string, side byte) net.HardwareAddr {
	vni := vniOf(id)
	return net.HardwareAddr{0x02, 0x6e, side, byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

// uplinkAddress is the host's address on the uplink of a workspace. What is
// taken is read from the links that are there, so nothing needs to be kept. A
// new one begins at a place computed from the id, so that it comes back as it
// was after a reboot, mostly; its ports are no other workspace's while there are such.
func uplinkAddress(host *host, id string) (netip.Addr, error) {
	links, err := linksWithPrefix(host.link, uplinkPrefix)
	if err != nil {
		return netip.Addr{}, err
	}
	taken, places := map[netip.Prefix]bool{}, map[int]bool{}
	for _, l := range links {
		addresses, err := dump(func() ([]netlink.Addr, error) { return host.link.AddrList(l, netlink.FAMILY_V4) })
		if err != nil {
			return netip.Addr{}, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addresses {
			p := prefixOf(a.IPNet)
			if l.Attrs().Name == uplinkPrefix+id && p.Bits() == 31 && uplinks.Contains(p.Addr()) && p.Masked() == p {
				return p.Addr(), nil
			}
			taken[p.Masked()] = true
			places[placeOf(p.Addr())] = true
		}
	}
	pairs := uint32(1) << (31 - uplinks.Bits())
	base := uplinks.Masked().Addr().As4()
	for _, alone := range []bool{true, false} {
		for i := range pairs {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+2*((vniOf(id)+i)%pairs))
			a := netip.AddrFrom4(b)
			if !taken[netip.PrefixFrom(a, 31)] && !(alone && places[placeOf(a)]) {
				return a, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("no uplink address is free in %v", uplinks)
}
