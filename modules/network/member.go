package network

import (
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
const allZero = "00:00:00:00:00:00"

// ensureMembers makes the namespace know where each member is: on which host,
// behind which port, by which hardware address, with which pods behind it.
func (n *Network) ensureMembers(w *workspace, want wire.Network) error {
	if err := n.ensureTunnels(w, want); err != nil {
		return err
	}
	if err := n.ensurePlaces(w, want); err != nil {
		return err
	}
	br, err := get(w.link, bridgeName)
	if err != nil {
		return err
	}
	return setMembers(w.link, br, want.Members, map[netip.Addr]string{}, map[netip.Prefix]netip.Addr{})
}

// setMembers makes members be known on a link, beside other neighbours and routes. Each
// neighbour has a route of its own: the link's address is alone there, for whoever
// else is looked for takes a place in the kernel's table of neighbours, which is one for all tenants.
func setMembers(
	h *netlink.Handle, l netlink.Link, members []wire.Member, neighbours map[netip.Addr]string, routes map[netip.Prefix]netip.Addr,
) error {
	for a := range neighbours {
		routes[single(a)] = netip.Addr{}
	}
	for _, m := range members {
		neighbours[m.Address] = mustMAC(m.MAC).String()
		routes[single(m.Address)] = netip.Addr{}
		if m.PodCIDR.IsValid() {
			routes[m.PodCIDR.Masked()] = m.Address
		}
	}
	if err := setNeighbours(h, l, neighbours); err != nil {
		return err
	}
	return setRoutes(h, l, routes)
}

// ensureTunnels keeps the VXLAN device's table: which member is behind which
// host, and to which hosts broadcasts go.
func (n *Network) ensureTunnels(w *workspace, want wire.Network) error {
	l, err := get(w.link, vxlanName)
	if err != nil {
		return err
	}
	type entry struct {
		mac  string
		host netip.Addr
	}
	wanted := map[entry]bool{}
	for _, m := range want.Members {
		if m.Host != n.cfg.Underlay {
			wanted[entry{mustMAC(m.MAC).String(), m.Host}] = true
			wanted[entry{allZero, m.Host}] = true
		}
	}
	return kernelTable[entry, bool, netlink.Neigh]{
		name: "tunnels",
		list: func() ([]netlink.Neigh, error) { return w.link.NeighList(l.Attrs().Index, unix.AF_BRIDGE) },
		read: func(e netlink.Neigh) (entry, bool, bool) {
			return entry{e.HardwareAddr.String(), addrOf(e.IP)}, true, e.Flags&netlink.NTF_SELF != 0 && e.IP != nil
		},
		remove: w.link.NeighDel,
		set: func(k entry, _ bool) error {
			e := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
				State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, IP: k.host.AsSlice(), HardwareAddr: mustMAC(k.mac)}
			if k.mac == allZero { // only this one may have several hosts
				return w.link.NeighAppend(e)
			}
			return w.link.NeighSet(e)
		},
	}.settle(wanted)
}

// ensurePlaces keeps the bridge's table: which member is behind which port.
// Entries are static, so no frame can move one.
func (n *Network) ensurePlaces(w *workspace, want wire.Network) error {
	br, err := get(w.link, bridgeName)
	if err != nil {
		return err
	}
	vx, err := get(w.link, vxlanName)
	if err != nil {
		return err
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
func setNeighbours(h *netlink.Handle, l netlink.Link, want map[netip.Addr]string) error {
	index := l.Attrs().Index
	return kernelTable[netip.Addr, string, netlink.Neigh]{
		name: "neighbours of " + l.Attrs().Name,
		list: func() ([]netlink.Neigh, error) { return h.NeighList(index, netlink.FAMILY_V4) },
		read: func(e netlink.Neigh) (netip.Addr, string, bool) {
			return addrOf(e.IP), e.HardwareAddr.String(), e.State&netlink.NUD_PERMANENT != 0
		},
		remove: h.NeighDel,
		set: func(address netip.Addr, mac string) error {
			return h.NeighSet(&netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
				IP: address.AsSlice(), HardwareAddr: mustMAC(mac)})
		},
	}.settle(want)
}

// goneMetric is higher, so worse, than that of any other route.
const goneMetric = 1 << 20

// setUnreachable has the answer for what has no other route be "unreachable", at
// once, instead of none: it would go out by the default.
func setUnreachable(h *netlink.Handle, networks ...netip.Prefix) error {
	for _, p := range networks {
		gone := &netlink.Route{Dst: netOf(p), Type: unix.RTN_UNREACHABLE, Priority: goneMetric}
		if err := h.RouteReplace(gone); err != nil {
			return fmt.Errorf("route for what is not in %v: %w", p, err)
		}
	}
	return nil
}

// setRoutes makes just these routes of ours go through the link, each by a neighbour, or
// by none: to one.
func setRoutes(h *netlink.Handle, l netlink.Link, want map[netip.Prefix]netip.Addr) error {
	index := l.Attrs().Index
	filter := &netlink.Route{LinkIndex: index, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	return kernelTable[netip.Prefix, netip.Addr, netlink.Route]{
		name: "routes of " + l.Attrs().Name,
		list: func() ([]netlink.Route, error) {
			return h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		},
		read: func(r netlink.Route) (netip.Prefix, netip.Addr, bool) {
			if r.Dst == nil {
				return anywhere, addrOf(r.Gw), true
			}
			return prefixOf(r.Dst), addrOf(r.Gw), true
		},
		remove: h.RouteDel,
		set: func(to netip.Prefix, via netip.Addr) error {
			r := &netlink.Route{LinkIndex: index, Protocol: routeProtocol, Dst: netOf(to), Scope: netlink.SCOPE_LINK}
			if via.IsValid() { // "on link": in whatever order, the neighbour's own route may come later
				r.Gw, r.Flags, r.Scope = via.AsSlice(), int(netlink.FLAG_ONLINK), netlink.SCOPE_UNIVERSE
			}
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("via %v: %w", via, err)
			}
			return nil
		},
	}.settle(want)
}
