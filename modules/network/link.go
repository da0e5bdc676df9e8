package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// dump repeats a netlink list that was interrupted by a change: its result
// would be incomplete.
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
	for try := 0; ; try++ {
		l, err := h.LinkByName(name)
		var none netlink.LinkNotFoundError
		switch {
		case errors.As(err, &none):
			return nil, nil
		case errors.Is(err, netlink.ErrDumpInterrupted) && try < 10:
			continue
		case err != nil:
			return nil, fmt.Errorf("find interface %s: %w", name, err)
		}
		return l, nil
	}
}

func linksWithPrefix(h *netlink.Handle, prefix string) ([]netlink.Link, error) {
	all, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var links []netlink.Link
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			links = append(links, l)
		}
	}
	return links, nil
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

// setAddresses makes the link have just these IPv4 addresses, loopback at least
// these.
func setAddresses(h *netlink.Handle, l netlink.Link, want ...netip.Prefix) error {
	name := l.Attrs().Name
	have, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	missing := map[netip.Prefix]bool{}
	for _, p := range want {
		missing[p] = true
	}
	for _, a := range have {
		p := prefixOf(a.IPNet)
		if missing[p] {
			delete(missing, p)
			continue
		}
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue // what else is on loopback is not ours
		}
		if err := h.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %v of %s: %w", p, name, err)
		}
	}
	for p := range missing {
		// No broadcast address: with a /31 there is none, and none is needed.
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: netOf(p)}); err != nil {
			return fmt.Errorf("add address %v to %s: %w", p, name, err)
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
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
	if err != nil {
		return err
	}
	if l == nil {
		off := false
		br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &off}
		br.Name, br.HardwareAddr, br.MTU = bridgeName, mustMAC(want.MAC), mtu
		if err := w.link.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		if l, err = find(w.link, bridgeName); err != nil || l == nil {
			return fmt.Errorf("add bridge: it is gone: %w", err)
		}
	}
	if err := adjust(w.link, l, mtu, mustMAC(want.MAC)); err != nil {
		return err
	}
	return setAddresses(w.link, l, want.Gateway)
}

// ensureVXLAN makes the device that reaches the other hosts. It is created by
// the host's namespace straight into the workspace's: its packets go out
// through the former for ever, and there is no step at which only half is done.
func (n *Network) ensureVXLAN(host *host, w *workspace, want wire.Network, mtu int) error {
	l, err := find(w.link, vxlanName)
	if err != nil {
		return err
	}
	if l != nil {
		v, ok := l.(*netlink.Vxlan)
		if !ok || v.VxlanId != int(want.VNI) || !v.SrcAddr.Equal(n.cfg.Underlay.AsSlice()) || v.Port != VXLANPort || v.Learning {
			if err := removeLink(w.link, vxlanName); err != nil {
				return err
			}
			l = nil
		}
	}
	if l == nil {
		v := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: int(want.VNI),
			SrcAddr: n.cfg.Underlay.AsSlice(), Port: VXLANPort, Learning: false}
		v.Name, v.MTU = vxlanName, mtu
		v.Namespace = netlink.NsFd(w.file.Fd())
		if err := host.link.LinkAdd(v); err != nil {
			return fmt.Errorf("add VXLAN device for VNI %d: %w", want.VNI, err)
		}
		if l, err = find(w.link, vxlanName); err != nil || l == nil {
			return fmt.Errorf("add VXLAN device: it is not in its namespace: %w", err)
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
	br, err := find(w.link, bridgeName)
	if err != nil || br == nil {
		return fmt.Errorf("find bridge: %w", err)
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

// setSysctls makes the namespace a router for IPv4 and nothing for IPv6.
func (w *workspace) setSysctls() error {
	return setSysctls(w.ns, map[string]string{
		"ipv4/ip_forward":                  "1",
		"ipv4/conf/all/rp_filter":          "1",
		"ipv4/conf/default/rp_filter":      "1",
		"ipv4/conf/all/arp_ignore":         "1",
		"ipv4/conf/all/arp_announce":       "2",
		"ipv4/conf/all/send_redirects":     "0",
		"ipv4/conf/default/send_redirects": "0",
		"ipv4/conf/all/accept_redirects":   "0",
		"ipv4/conf/all/route_localnet":     "0",
		"ipv6/conf/all/disable_ipv6":       "1",
		"ipv6/conf/default/disable_ipv6":   "1",
		// Members' frames to each other are no business of the IPv4 rules, which
		// would drop them as not addressed to the outside.
		"bridge/bridge-nf-call-iptables":  "0",
		"bridge/bridge-nf-call-ip6tables": "0",
		"bridge/bridge-nf-call-arptables": "0",
	})
}

// setSysctls writes what differs below /proc/sys/net, which shows the namespace
// of the thread that looks. Entries of IPv6 and of br_netfilter may be missing.
func setSysctls(ns *netns.NS, values map[string]string) error {
	return ns.Do(func() error {
		var errs []error
		for name, value := range values {
			errs = append(errs, setSysctl(name, value))
		}
		return errors.Join(errs...)
	})
}

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
	// No O_CREATE, O_TRUNC: it is not a file.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", path, value, err)
	}
	return nil
}
