package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// machinePort is a machine's place in the network of its workspace.
type machinePort struct {
	UID     string
	Address netip.Addr
	MAC     string
	PodCIDR netip.Prefix
}

// port is a machine's port on the bridge. What it is stands in the alias of the
// link, so that rules and routes can be made anew by an agent that knows
// nothing yet.
type port struct {
	machinePort
	index int // of the link; 0: not there yet
}

// hash stands for the machine in names of links, which have 15 letters. Not the
// beginning of the UID: those made in one go may begin alike.
func hash(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return hex.EncodeToString(sum[:6])
}

func (p machinePort) link() string      { return portPrefix + hash(p.UID) }
func (p machinePort) namespace() string { return machinePrefix + p.UID }

// MachineNamespacePath is the file of a machine's network namespace, whether it
// is there or not.
func MachineNamespacePath(uid string) string {
	return netns.Root + "/" + machinePort{UID: uid}.namespace()
}

func (p machinePort) alias() string {
	return strings.Join([]string{p.UID, p.Address.String(), p.MAC, p.PodCIDR.String()}, " ")
}

func parseAlias(s string) (p machinePort, ok bool) {
	f := strings.Fields(s)
	if len(f) != 4 {
		return p, false
	}
	address, err1 := netip.ParseAddr(f[1])
	mac, err2 := net.ParseMAC(f[2])
	pods, err3 := netip.ParsePrefix(f[3])
	return machinePort{f[0], address, mac.String(), pods}, err1 == nil && err2 == nil && err3 == nil
}

func (w *workspace) readPorts() error {
	links, err := linksWithPrefix(w.link, portPrefix)
	if err != nil {
		return err
	}
	w.ports = nil
	for _, l := range links {
		p, ok := parseAlias(l.Attrs().Alias)
		if !ok || p.link() != l.Attrs().Name {
			// Made by an agent that was killed before it could say what it is.
			if err := removeLink(w.link, l.Attrs().Name); err != nil {
				return err
			}
			continue
		}
		w.ports = append(w.ports, port{p, l.Attrs().Index})
	}
	return nil
}

// AttachMachine makes the machine's network namespace and its link to the
// workspace's network, which must be attached, and returns the file of the
// namespace. It is idempotent. The namespace has the machine's address on eth0,
// routes to the other machines' pods, and the link-local address of the
// platform's endpoints.
func (n *Network) AttachMachine(ctx context.Context, machine wire.Machine) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := machinePort{machine.UID, machine.Spec.Address, machine.Spec.MAC, machine.Spec.PodCIDR}
	want, ok := n.attached[machine.NetworkID]
	if !ok {
		return "", fmt.Errorf("attach machine %s: network %s is not attached", m.UID, machine.NetworkID)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := m.check(want); err != nil {
		return "", fmt.Errorf("attach machine %s: %w", m.UID, err)
	}
	if err := n.attachMachine(want, m); err != nil {
		return "", fmt.Errorf("attach machine %s to network %s: %w", m.UID, want.ID, err)
	}
	return MachineNamespacePath(m.UID), nil
}

func (p *machinePort) check(want wire.Network) error {
	mac, err := net.ParseMAC(p.MAC)
	switch {
	case checkUID(p.UID) != nil:
		return checkUID(p.UID)
	case err != nil:
		return err
	case !want.Plan.Nodes.Contains(p.Address) || p.Address == want.Plan.Plane || p.Address == want.Gateway.Addr():
		return fmt.Errorf("address %v is not a machine's in %v", p.Address, want.Plan.Nodes)
	case !p.PodCIDR.IsValid() || !want.Plan.Pods.Contains(p.PodCIDR.Addr()) || p.PodCIDR.Bits() < want.Plan.Pods.Bits():
		return fmt.Errorf("pod range %v is not in %v", p.PodCIDR, want.Plan.Pods)
	}
	p.MAC, p.PodCIDR = mac.String(), p.PodCIDR.Masked()
	return nil
}

func checkUID(uid string) error {
	if uid == "" || len(uid) > 128 || strings.Trim(uid, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return fmt.Errorf("machine UID %q: want letters, digits and dashes", uid)
	}
	return nil
}

func (n *Network) attachMachine(want wire.Network, m machinePort) error {
	host, err := n.openHost()
	if err != nil {
		return err
	}
	defer host.close()
	w, err := openWorkspace(want.ID, false)
	if err != nil {
		return err
	}
	defer w.close()
	mtu := n.inner(host)

	ns, err := netns.Create(m.namespace())
	if err != nil {
		return err
	}
	defer ns.Close()
	failpoint.Reach("network/machine/namespace-made")
	l, err := w.ensurePort(ns, m, mtu)
	if err != nil {
		return err
	}
	if err := w.readPorts(); err != nil {
		return err
	}
	// The port joins the bridge once the rules know what it may send.
	if err := n.protectWorkspace(w, want); err != nil {
		return err
	}
	if err := w.enslave(l); err != nil {
		return err
	}
	failpoint.Reach("network/machine/port-joined")
	if err := adjust(w.link, l, mtu, nil); err != nil {
		return err
	}
	if err := n.ensurePlaces(w, want); err != nil {
		return err
	}
	return n.ensureMachineLinks(want, port{machinePort: m}, mtu)
}

// ensurePort makes the veth pair from the bridge into the machine's namespace.
func (w *workspace) ensurePort(ns *netns.NS, m machinePort, mtu int) (netlink.Link, error) {
	inside, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	l, err := find(w.link, m.link())
	if err != nil {
		return nil, err
	}
	peer, err := find(inside, machineLink)
	if err != nil {
		return nil, err
	}
	// ParentIndex of a veth is its other end.
	if l != nil && (peer == nil || l.Attrs().ParentIndex != peer.Attrs().Index || peer.Attrs().ParentIndex != l.Attrs().Index) {
		if err := removeLink(w.link, m.link()); err != nil {
			return nil, err
		}
		l = nil
	}
	if l == nil {
		if err := removeLink(inside, machineLink); err != nil {
			return nil, err
		}
		file, err := os.Open(ns.Path())
		if err != nil {
			return nil, err
		}
		defer file.Close()
		v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: machineLink,
			PeerHardwareAddr: mustMAC(m.MAC), PeerNamespace: netlink.NsFd(file.Fd())}
		v.Name, v.MTU = m.link(), mtu
		if err := w.link.LinkAdd(v); err != nil {
			return nil, fmt.Errorf("add port %s: %w", m.link(), err)
		}
		if l, err = find(w.link, m.link()); err != nil || l == nil {
			return nil, fmt.Errorf("add port %s: it is gone: %w", m.link(), err)
		}
	}
	failpoint.Reach("network/machine/port-made")
	if l.Attrs().Alias != m.alias() {
		if err := w.link.LinkSetAlias(l, m.alias()); err != nil {
			return nil, fmt.Errorf("set alias of %s: %w", m.link(), err)
		}
	}
	return l, nil
}

// ensureMachineLinks keeps what is inside a machine's namespace.
func (n *Network) ensureMachineLinks(want wire.Network, m port, mtu int) error {
	ns, err := netns.Open(m.namespace())
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	err = setSysctls(ns, map[string]string{
		"ipv4/ip_forward":                  "1",
		"ipv4/conf/all/rp_filter":          "0",
		"ipv4/conf/default/rp_filter":      "0",
		"ipv4/conf/all/arp_ignore":         "1",
		"ipv4/conf/all/arp_announce":       "2",
		"ipv4/conf/all/send_redirects":     "0",
		"ipv4/conf/default/send_redirects": "0",
		"ipv4/conf/all/accept_redirects":   "0",
		"ipv6/conf/all/disable_ipv6":       "1",
		"ipv6/conf/default/disable_ipv6":   "1",
		// A pod's answer to a pod on the same bridge that asked a Service must
		// pass connection tracking to be translated back.
		"bridge/bridge-nf-call-iptables": "1",
	})
	if err != nil {
		return err
	}
	lo, err := find(h, "lo")
	if err != nil || lo == nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := setAddresses(h, lo, netip.PrefixFrom(wire.LinkLocal, 32)); err != nil {
		return err
	}
	l, err := find(h, machineLink)
	if err != nil || l == nil {
		return fmt.Errorf("find %s in %s: %w", machineLink, m.namespace(), errOr(err, os.ErrNotExist))
	}
	if err := adjust(h, l, mtu, mustMAC(m.MAC)); err != nil {
		return err
	}
	if err := setAddresses(h, l, netip.PrefixFrom(m.Address, want.Plan.Nodes.Bits())); err != nil {
		return err
	}
	neighbours := map[netip.Addr]net.HardwareAddr{want.Gateway.Addr(): mustMAC(want.MAC)}
	routes := map[netip.Prefix]netip.Addr{netip.PrefixFrom(netip.IPv4Unspecified(), 0): want.Gateway.Addr()}
	for _, o := range want.Members {
		if o.Address == m.Address {
			continue
		}
		neighbours[o.Address] = mustMAC(o.MAC)
		if o.PodCIDR.IsValid() {
			routes[o.PodCIDR.Masked()] = o.Address
		}
	}
	if err := setNeighbours(h, l, neighbours); err != nil {
		return err
	}
	return setRoutes(h, l, routes)
}

// DetachMachine takes a machine's namespace and link away. It is no error if
// there is none. Processes that are still in the namespace lose their network.
func (n *Network) DetachMachine(ctx context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkUID(uid); err != nil {
		return fmt.Errorf("detach machine: %w", err)
	}
	if err := n.detachMachine(machinePort{UID: uid}); err != nil {
		return fmt.Errorf("detach machine %s: %w", uid, err)
	}
	return nil
}

// Machines returns the UIDs of the machines that have a network namespace,
// whole or not, sorted.
func (n *Network) Machines() ([]string, error) {
	names, err := netns.List(machinePrefix)
	if err != nil {
		return nil, err
	}
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], machinePrefix)
	}
	return names, nil
}

func (n *Network) detachMachine(m machinePort) error {
	ids, err := n.Attached()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := n.removePort(id, m); err != nil {
			return err
		}
	}
	failpoint.Reach("network/machine/port-removed")
	return netns.Remove(m.namespace())
}

func (n *Network) removePort(id string, m machinePort) error {
	w, err := openWorkspace(id, false)
	if err != nil {
		return nil // half a namespace holds no port
	}
	defer w.close()
	l, err := find(w.link, m.link())
	if err != nil || l == nil {
		return err
	}
	if err := removeLink(w.link, m.link()); err != nil {
		return err
	}
	want, ok := n.attached[id]
	if !ok {
		return nil // the next Attach drops the rules
	}
	if err := w.readPorts(); err != nil {
		return err
	}
	return n.protectWorkspace(w, want)
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
