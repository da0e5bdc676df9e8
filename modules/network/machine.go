package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// machinePort is a machine's place in the network of its workspace. What it is
// stands in the alias of the link, so that rules and routes can be made anew by an
// agent that knows nothing yet.
type machinePort struct {
	UID     string
	Address netip.Addr
	MAC     string
	PodCIDR netip.Prefix
	// FirstUID is the host's user that is root in it and may set up its network; 0 is the host's root.
	FirstUID uint32
	index    int // of the link on the bridge; 0: not there yet
}

// hash stands for the machine in names of links, which have 15 letters. Not the
// beginning of the UID: those made in one go may begin alike.
func hash(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return hex.EncodeToString(sum[:6])
}

func (p machinePort) link() string      { return portPrefix + hash(p.UID) }
func (p machinePort) namespace() string { return machinePrefix + p.UID }

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
	return machinePort{UID: f[0], Address: address, MAC: mac.String(), PodCIDR: pods}, err1 == nil && err2 == nil && err3 == nil
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
		p.index = l.Attrs().Index
		w.ports = append(w.ports, p)
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
	m := machinePort{UID: machine.UID, Address: machine.Spec.Address, MAC: machine.Spec.MAC, PodCIDR: machine.Spec.PodCIDR,
		FirstUID: machine.Spec.FirstUID}
	want, ok := n.attached[machine.NetworkID]
	if !ok {
		return "", fmt.Errorf("attach machine %s: network %s is not attached", m.UID, machine.NetworkID)
	}
	if err := cmp.Or(m.check(want), ctx.Err()); err != nil {
		return "", fmt.Errorf("attach machine %s: %w", m.UID, err)
	}
	if err := n.attachMachine(want, m); err != nil {
		return "", fmt.Errorf("attach machine %s to network %s: %w", m.UID, want.ID, err)
	}
	return filepath.Join(netns.Root, m.namespace()), nil
}

func (p *machinePort) check(want wire.Network) error {
	mac, err := net.ParseMAC(p.MAC)
	if err := cmp.Or(checkUID(p.UID), err); err != nil {
		return err
	}
	switch {
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
	host, err := n.readHost()
	if err != nil {
		return err
	}
	w, err := openWorkspace(want.ID, netns.Open)
	if err != nil {
		return err
	}
	defer w.close()
	mtu := n.inner(host)

	ns, err := n.makeNamespace(m)
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
	if err := w.protect(host, want, n.door()); err != nil {
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
	return ensureMachineLinks(want, m, mtu)
}

// makeNamespace makes the machine's namespace, or opens the one there is. One that
// belongs to other users than the machine's is none that it can run in: an agent made it
// that knew less of the machine. It is made anew.
func (n *Network) makeNamespace(m machinePort) (*netns.NS, error) {
	create := func() (*netns.NS, error) {
		if m.FirstUID == 0 {
			return netns.Create(m.namespace())
		}
		return netns.CreateOwned(m.namespace(), m.FirstUID, resource.MachineUIDs)
	}
	ns, err := create()
	if err != nil {
		return nil, err
	}
	users, ours, err := ns.Owner()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	users.Close()
	if ours == (m.FirstUID == 0) {
		return ns, nil
	}
	ns.Close()
	if err := n.detachMachine(m); err != nil {
		return nil, err
	}
	return create()
}

// ensurePort makes the veth pair from the bridge into the machine's namespace.
func (w *workspace) ensurePort(ns *netns.NS, m machinePort, mtu int) (netlink.Link, error) {
	inside, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: machineLink,
		PeerHardwareAddr: mustMAC(m.MAC), PeerNamespace: ns.Fd()}
	v.Name, v.MTU = m.link(), mtu
	l, _, err := ensureVeth(w.link, inside, v)
	if err != nil {
		return nil, err
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
func ensureMachineLinks(want wire.Network, m machinePort, mtu int) error {
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
	// Each pod has a link of its own, so the way back tells whose an address is: what
	// comes from another's is dropped.
	if err := route(ns, nil); err != nil {
		return err
	}
	if err := ns.Do(shorten); err != nil {
		return err
	}
	lo, err := get(h, "lo")
	if err != nil {
		return err
	}
	if err := setAddress(h, lo, netip.PrefixFrom(wire.LinkLocal, 32)); err != nil {
		return err
	}
	l, err := get(h, machineLink)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", m.namespace(), err)
	}
	if err := adjust(h, l, mtu, mustMAC(m.MAC)); err != nil {
		return err
	}
	if err := setAddress(h, l, single(m.Address)); err != nil {
		return err
	}
	// Each pod has a route of its own. Not for other members' addresses: the kernel gives
	// that answer before it asks whose address the question came from, and it would go
	// out to whom a pod names. The workspace's namespace knows where packets are from.
	if err := setUnreachable(h, m.PodCIDR); err != nil {
		return err
	}
	others := slices.DeleteFunc(slices.Clone(want.Members), func(o wire.Member) bool { return o.Address == m.Address })
	routes := map[netip.Prefix]netip.Addr{anywhere: want.Gateway.Addr()}
	for _, o := range others {
		for _, a := range o.Door {
			routes[single(a)] = o.Address
		}
	}
	return setMembers(h, l, others, map[netip.Addr]string{want.Gateway.Addr(): mustMAC(want.MAC).String()}, routes)
}

// DetachMachine takes a machine's namespace and link away. It is no error if
// there is none. Processes that are still in the namespace lose their network.
func (n *Network) DetachMachine(ctx context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := cmp.Or(checkUID(uid), ctx.Err()); err != nil {
		return fmt.Errorf("detach machine: %w", err)
	}
	if err := n.detachMachine(machinePort{UID: uid}); err != nil {
		return fmt.Errorf("detach machine %s: %w", uid, err)
	}
	return nil
}

// Machines returns the UIDs of the machines that have a namespace, whole or not, sorted.
func (n *Network) Machines() ([]string, error) { return named(machinePrefix) }

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
	w, err := openWorkspace(id, netns.Open)
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
	host, err := n.readHost()
	if err != nil {
		return err
	}
	return w.protect(host, want, n.door())
}
