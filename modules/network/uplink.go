package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
)

// ensureUplink makes the way to the outside: a veth pair between the host and
// the workspace, with two addresses of its own.
func (n *Network) ensureUplink(host *host, w *workspace) error {
	name := uplinkPrefix + w.id
	outer, err := find(host.link, name)
	if err != nil {
		return err
	}
	inner, err := find(w.link, uplinkName)
	if err != nil {
		return err
	}
	if outer != nil && (inner == nil || outer.Attrs().ParentIndex != inner.Attrs().Index) {
		if err := removeLink(host.link, name); err != nil {
			return err
		}
		outer = nil
	}
	if outer == nil {
		if err := removeLink(w.link, uplinkName); err != nil {
			return err
		}
		v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: uplinkName, PeerNamespace: netlink.NsFd(w.file.Fd())}
		v.Name, v.MTU = name, host.mtu
		// udev gives a link a lasting address of its own choice, a moment after the
		// other side has learned the first one, unless it was given one.
		v.HardwareAddr, v.PeerHardwareAddr = uplinkMAC(w.id, 0), uplinkMAC(w.id, 1)
		if err := host.link.LinkAdd(v); err != nil {
			return fmt.Errorf("add uplink: %w", err)
		}
		if outer, err = find(host.link, name); err != nil || outer == nil {
			return fmt.Errorf("add uplink: it is gone: %w", err)
		}
		if inner, err = find(w.link, uplinkName); err != nil || inner == nil {
			return fmt.Errorf("add uplink: it is not in the namespace: %w", err)
		}
	}
	hostSide, err := n.uplinkAddress(host, w.id)
	if err != nil {
		return err
	}
	ownSide := netip.PrefixFrom(hostSide.Addr().Next(), 31)
	if err := setSysctl("ipv4/conf/"+name+"/rp_filter", "1"); err != nil {
		return err
	}
	if err := setSysctl("ipv4/conf/"+name+"/accept_local", "0"); err != nil {
		return err
	}
	// Nothing inside has IPv6, and our rules are of IPv4: the host listens to
	// nobody there.
	if err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := adjust(host.link, outer, host.mtu, nil); err != nil {
		return err
	}
	if err := setAddresses(host.link, outer, hostSide); err != nil {
		return err
	}
	if err := adjust(w.link, inner, host.mtu, nil); err != nil {
		return err
	}
	if err := setAddresses(w.link, inner, ownSide); err != nil {
		return err
	}
	return setRoutes(w.link, inner, map[netip.Prefix]netip.Addr{netip.PrefixFrom(netip.IPv4Unspecified(), 0): hostSide.Addr()})
}

// uplinkMAC is the hardware address of the host's side (0) or the workspace's (1)
// of an uplink: local, as a member's are, but of another range.
func uplinkMAC(id string, side byte) net.HardwareAddr {
	vni, _ := strconv.ParseUint(id, 16, 32)
	return net.HardwareAddr{0x02, 0x6e, side, byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

// uplinkAddress is the host's address on the uplink of a workspace. What is
// taken is read from the links that are there, so nothing needs to be kept. A
// new one begins at a place computed from the id, so that it comes back as it
// was after a reboot, mostly.
func (n *Network) uplinkAddress(host *host, id string) (netip.Prefix, error) {
	links, err := linksWithPrefix(host.link, uplinkPrefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	taken := map[netip.Prefix]bool{}
	for _, l := range links {
		addresses, err := dump(func() ([]netlink.Addr, error) { return host.link.AddrList(l, netlink.FAMILY_V4) })
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addresses {
			p := prefixOf(a.IPNet)
			if l.Attrs().Name == uplinkPrefix+id && p.Bits() == 31 && n.cfg.Uplinks.Contains(p.Addr()) && p.Masked() == p {
				return p, nil
			}
			taken[p.Masked()] = true
		}
	}
	vni, _ := strconv.ParseUint(id, 16, 32)
	pairs := uint32(1) << (31 - n.cfg.Uplinks.Bits())
	base := n.cfg.Uplinks.Masked().Addr().As4()
	for i := range pairs {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+2*((uint32(vni)+i)%pairs))
		if p := netip.PrefixFrom(netip.AddrFrom4(b), 31); !taken[p] {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no uplink address is free in %v", n.cfg.Uplinks)
}
