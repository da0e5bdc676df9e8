package network

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// routeProtocol marks routes that are ours, so that those of the kernel and of
// CNI plugins stay.
const routeProtocol = 0x6d

// allZero is the FDB entry by which a VXLAN device finds where broadcasts go.
var allZero = net.HardwareAddr{0, 0, 0, 0, 0, 0}

// ensureMembers makes the namespace know where each member is: on which host,
// behind which port, by which hardware address, with which pods behind it.
func (n *Network) ensureMembers(w *workspace, want wire.Network) error {
	if err := n.ensureTunnels(w, want); err != nil {
		return err
	}
	if err := n.ensurePlaces(w, want); err != nil {
		return err
	}
	br, err := find(w.link, bridgeName)
	if err != nil || br == nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	neighbours := map[netip.Addr]net.HardwareAddr{}
	routes := map[netip.Prefix]netip.Addr{}
	for _, m := range want.Members {
		neighbours[m.Address] = mustMAC(m.MAC)
		if m.PodCIDR.IsValid() {
			routes[m.PodCIDR.Masked()] = m.Address
		}
	}
	if err := setNeighbours(w.link, br, neighbours); err != nil {
		return err
	}
	return setRoutes(w.link, br, routes)
}

// ensureTunnels keeps the VXLAN device's table: which member is behind which
// host, and to which hosts broadcasts go.
func (n *Network) ensureTunnels(w *workspace, want wire.Network) error {
	l, err := find(w.link, vxlanName)
	if err != nil || l == nil {
		return fmt.Errorf("find VXLAN device: %w", err)
	}
	type entry struct {
		mac  string
		host netip.Addr
	}
	missing := map[entry]bool{}
	for _, m := range want.Members {
		if m.Host != n.cfg.Underlay {
			missing[entry{string(mustMAC(m.MAC)), m.Host}] = true
			missing[entry{string(allZero), m.Host}] = true
		}
	}
	have, err := dump(func() ([]netlink.Neigh, error) { return w.link.NeighList(l.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list tunnels: %w", err)
	}
	for _, e := range have {
		if e.Flags&netlink.NTF_SELF == 0 || e.IP == nil {
			continue
		}
		host, _ := netip.AddrFromSlice(e.IP)
		key := entry{string(e.HardwareAddr), host.Unmap()}
		if missing[key] {
			delete(missing, key)
			continue
		}
		if err := w.link.NeighDel(&e); err != nil {
			return fmt.Errorf("remove tunnel for %v to %v: %w", e.HardwareAddr, e.IP, err)
		}
	}
	for key := range missing {
		e := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, IP: key.host.AsSlice(), HardwareAddr: net.HardwareAddr(key.mac)}
		// Only the all-zero address may have several hosts.
		add := w.link.NeighSet
		if bytes.Equal(e.HardwareAddr, allZero) {
			add = w.link.NeighAppend
		}
		if err := add(e); err != nil {
			return fmt.Errorf("add tunnel for %v to %v: %w", e.HardwareAddr, key.host, err)
		}
	}
	return nil
}

// ensurePlaces keeps the bridge's table: which member is behind which port.
// Entries are static, so no frame can move one.
func (n *Network) ensurePlaces(w *workspace, want wire.Network) error {
	br, err := find(w.link, bridgeName)
	if err != nil || br == nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	vx, err := find(w.link, vxlanName)
	if err != nil || vx == nil {
		return fmt.Errorf("find VXLAN device: %w", err)
	}
	missing := map[string]int{} // hardware address -> port
	for _, m := range want.Members {
		if m.Host != n.cfg.Underlay {
			missing[string(mustMAC(m.MAC))] = vx.Attrs().Index
		}
	}
	for _, p := range w.ports {
		// The kernel takes entries for ports of the bridge only. One that is none
		// yet, since an agent was killed before it joined, is AttachMachine's.
		if l, err := w.link.LinkByIndex(p.index); err == nil && l.Attrs().MasterIndex == br.Attrs().Index {
			missing[string(mustMAC(p.MAC))] = p.index
		}
	}
	have, err := dump(func() ([]netlink.Neigh, error) { return w.link.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list bridge entries: %w", err)
	}
	for _, e := range takePlaces(missing, have, br.Attrs().Index) {
		e.Flags = netlink.NTF_MASTER
		// Gone: the kernel has removed it with the one of no VLAN.
		if err := w.link.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove bridge entry %v: %w", e.HardwareAddr, err)
		}
	}
	for mac, port := range missing {
		e := &netlink.Neigh{LinkIndex: port, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
			State: netlink.NUD_NOARP, HardwareAddr: net.HardwareAddr(mac)}
		if err := w.link.NeighSet(e); err != nil {
			return fmt.Errorf("add bridge entry %v: %w", e.HardwareAddr, err)
		}
	}
	return nil
}

// takePlaces takes out of missing what a bridge has already, and returns what it
// has and should not. A kernel that can filter VLANs keeps an entry twice, for no
// VLAN and for the bridge's own VLAN 1, and writes and removes both at once.
func takePlaces(missing map[string]int, have []netlink.Neigh, bridge int) (wrong []netlink.Neigh) {
	wanted := maps.Clone(missing)
	for _, e := range have {
		// "Permanent" are the ports' and the bridge's own addresses.
		if e.MasterIndex != bridge || e.Flags&netlink.NTF_SELF != 0 || e.State&netlink.NUD_PERMANENT != 0 {
			continue
		}
		mac := string(e.HardwareAddr)
		if port, ok := wanted[mac]; !ok || port != e.LinkIndex || e.State&netlink.NUD_NOARP == 0 {
			wrong = append(wrong, e)
			continue
		}
		if e.Vlan == 0 { // the one that counts, for the bridge filters none
			delete(missing, mac)
		}
	}
	return wrong
}

// setNeighbours makes the link have just these permanent neighbours.
func setNeighbours(h *netlink.Handle, l netlink.Link, want map[netip.Addr]net.HardwareAddr) error {
	name, index := l.Attrs().Name, l.Attrs().Index
	have, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(index, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", name, err)
	}
	right := map[netip.Addr]bool{}
	for _, e := range have {
		if e.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		address, _ := netip.AddrFromSlice(e.IP)
		mac, ok := want[address.Unmap()]
		if ok && bytes.Equal(mac, e.HardwareAddr) {
			right[address.Unmap()] = true
			continue
		}
		if !ok {
			if err := h.NeighDel(&e); err != nil {
				return fmt.Errorf("remove neighbour %v of %s: %w", address, name, err)
			}
		}
	}
	for address, mac := range want {
		if right[address] {
			continue
		}
		e := &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
			IP: address.AsSlice(), HardwareAddr: mac}
		if err := h.NeighSet(e); err != nil {
			return fmt.Errorf("set neighbour %v of %s: %w", address, name, err)
		}
	}
	return nil
}

// setRoutes makes just these routes of ours go through the link.
func setRoutes(h *netlink.Handle, l netlink.Link, want map[netip.Prefix]netip.Addr) error {
	name, index := l.Attrs().Name, l.Attrs().Index
	filter := &netlink.Route{LinkIndex: index, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	have, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", name, err)
	}
	right := map[netip.Prefix]bool{}
	for _, r := range have {
		to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			to = prefixOf(r.Dst)
		}
		via, _ := netip.AddrFromSlice(r.Gw)
		gw, ok := want[to]
		if ok && gw == via.Unmap() {
			right[to] = true
			continue
		}
		if !ok {
			if err := h.RouteDel(&r); err != nil {
				return fmt.Errorf("remove route to %v of %s: %w", to, name, err)
			}
		}
	}
	for to, via := range want {
		if right[to] {
			continue
		}
		r := &netlink.Route{LinkIndex: index, Protocol: routeProtocol, Dst: netOf(to), Gw: via.AsSlice()}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("set route to %v via %v of %s: %w", to, via, name, err)
		}
	}
	return nil
}
