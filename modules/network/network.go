// Package network is the host side of workspaces' networks. On every host that
// takes part in a workspace, be it a node or the server with the plane, it
// keeps a network namespace mp-ID with a bridge, a VXLAN device to the other
// hosts, the machines' ports and one uplink to the outside.
//
// It promises that a workspace reaches its own members and, by NAT, the platform's front
// door and what the operator lets it beyond the platform, and nothing else: no other
// workspace, no other port or address of any host, no network a host is connected to unless
// the operator names it. A machine can only send from the addresses it was given. DESIGN.md
// in this folder says how and why.
//
// Parties: the node's agent and the server call Attach with the whole wanted
// state on every change; the machine driver gets the namespaces; the plane and
// the balancer open sockets in them. Only package appliance may import it.
package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// VXLANPort is the UDP port of the traffic between hosts.
const VXLANPort = 4789

// Names of what stands on a host. Those in the host's own namespace carry the
// id of the workspace; the others are alone in theirs.
const (
	workspacePrefix = "mp-"  // network namespace of a workspace: mp-ID
	machinePrefix   = "mpm-" // network namespace of a machine: mpm-UID
	uplinkPrefix    = "mpu-" // the host's end of a workspace's uplink: mpu-ID
	portPrefix      = "m-"   // a machine's port on the bridge: m-HASH

	bridgeName  = "br0"
	vxlanName   = "vxlan0"
	uplinkName  = "uplink"
	machineLink = "eth0"
)

// overhead is what VXLAN adds to a frame: 20 IPv4, 8 UDP, 8 VXLAN, 14 Ethernet.
const overhead = 50

// uplinks is where uplinks get their addresses from: a part of the range for
// carrier NAT, which is neither a site's own nor on the internet.
var uplinks = netip.MustParsePrefix("100.64.0.0/16")

// What a host tracks of the outgoing connections of one workspace: those that are
// open, and those of TCP that are closed, for closedFor seconds more, which the kernel
// doesn't count: 8192 + 2000 + 60 * 100 are 16,192 at most. At each new one the kernel may
// look at all that are open.
const (
	maxConnections = 8192
	newConnections = 100 // a second, of TCP
	newBurst       = 2000
)

// What a server lets in of one workspace at its front door. The 25 workspaces that an
// account has, unless a sysadmin says otherwise, are 25,600 connections: fewer than the
// 32,768 that the smallest port has places for. Closed ones are tracked for closedFor
// seconds here too, 1024 + 2000 + 60 * 200 at most.
const (
	doorOpen  = 1024
	doorNew   = 200 // a second
	doorBurst = 2000
)

// Config is what a host knows about itself.
type Config struct {
	// Underlay is this host's address on the platform's network, by which the
	// other hosts reach its VXLAN devices.
	Underlay netip.Addr
	Egress   Egress
	Door     func() Door  // this host's now, if it is a server; nil: it has none
	Log      *slog.Logger // nil: nothing is logged
}

// Egress says which addresses beyond the platform tenants reach: those of the
// internet. Never the platform's hosts, and not what is nobody's (loopback,
// link-local, multicast...).
type Egress struct {
	// Private lets them reach private networks too, but for those that this host is
	// connected to. Hosts are trusted by their addresses there, and tenants come from these.
	Private bool
	// Allow are networks that they reach all the same, Deny those that they don't, which
	// has the last word.
	Allow, Deny []netip.Prefix
}

// Door is the platform's front door on a server, the only thing of any host that
// machines and pods reach. They come by the uplink of their workspace on this server, whose
// address therefore is the workspace: whoever counts by source counts workspaces.
type Door []netip.AddrPort // of this server, TCP

func (n *Network) door() Door {
	if n.cfg.Door == nil {
		return nil
	}
	return n.cfg.Door()
}

// addresses are those of the door, each once.
func (d Door) addresses() (all []netip.Addr) {
	for _, l := range d {
		if !slices.Contains(all, l.Addr()) {
			all = append(all, l.Addr())
		}
	}
	return all
}

// ports are those of the door, each once.
func (d Door) ports() (all []uint16) {
	for _, l := range d {
		if !slices.Contains(all, l.Port()) {
			all = append(all, l.Port())
		}
	}
	return all
}

// Lets says whether a workspace's packets may go to an address, if it is no host's and
// this host is not connected to its network.
func (e Egress) Lets(a netip.Addr) bool {
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.Is4() || slices.ContainsFunc(nobody, in) || slices.ContainsFunc(e.Deny, in):
		return false
	case slices.ContainsFunc(e.Allow, in):
		return true
	}
	return e.Private || !slices.ContainsFunc(private, in)
}

// Network keeps the networks of workspaces on this host. It is safe for
// concurrent use; calls follow one another.
type Network struct {
	cfg Config

	mu sync.Mutex
	// attached is what Attach was last asked for. It is a memory, not the
	// truth: after a restart it fills again with the first Attach.
	attached map[string]wire.Network
	look     chan struct{} // holds one when there may be new hosts
	least    int           // the largest packet that every way to them carries; 0: as large as the interface sends
}

// New changes nothing on the host.
func New(cfg Config) *Network {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &Network{cfg: cfg, attached: map[string]wire.Network{}, look: make(chan struct{}, 1)}
}

// Attach makes this host's part of a workspace's network be as want says. It
// may be called any number of times: what is there and right stays untouched,
// so traffic goes on, whoever made it. After an error it can be called again.
func (n *Network) Attach(ctx context.Context, want wire.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := cmp.Or(check(want), ctx.Err()); err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	if err := n.attach(want); err != nil {
		return fmt.Errorf("attach network %s: %w", want.ID, err)
	}
	if _, ok := n.attached[want.ID]; !ok {
		n.cfg.Log.Info("network attached", "network", want.ID, "workspace", want.Workspace, "members", len(want.Members))
	}
	n.attached[want.ID] = want
	select {
	case n.look <- struct{}{}:
	default:
	}
	return nil
}

func (n *Network) attach(want wire.Network) error {
	host, err := n.readHost()
	if err != nil {
		return err
	}
	w, err := openWorkspace(want.ID, netns.Create)
	if err != nil {
		return err
	}
	defer w.close()
	failpoint.Reach("network/attach/namespace-made")

	// The rules come first, so that there is no moment without them: they speak
	// of interfaces by name, which need not exist yet.
	err = route(w.ns, map[string]string{
		"ipv4/conf/all/route_localnet": "0",
		// Members' frames to each other are no business of the IPv4 rules, which
		// would drop them as not addressed to the outside.
		"bridge/bridge-nf-call-iptables":  "0",
		"bridge/bridge-nf-call-ip6tables": "0",
		"bridge/bridge-nf-call-arptables": "0",
	})
	if err != nil {
		return err
	}
	if err := w.protect(host, want, n.door()); err != nil {
		return err
	}
	for _, a := range want.Hosts {
		host.own = append(host.own, single(a))
	}
	if err := n.protectHost(host); err != nil {
		return err
	}
	failpoint.Reach("network/attach/rules-set")

	if err := n.ensureSenders(want.VNI, want.Members); err != nil {
		return err
	}
	mtu := n.inner(host)
	if err := w.ensureBridge(want, mtu); err != nil {
		return err
	}
	failpoint.Reach("network/attach/bridge-made")
	if err := n.ensureVXLAN(host, w, want, mtu); err != nil {
		return err
	}
	failpoint.Reach("network/attach/vxlan-made")
	if err := w.ensureUplink(host, mtu); err != nil {
		return err
	}
	failpoint.Reach("network/attach/uplink-made")
	if err := n.ensureMembers(w, want); err != nil {
		return err
	}
	for _, p := range w.ports {
		// A machine's part that is broken is mended by AttachMachine; the other
		// machines' routes are more urgent.
		err := ensureMachineLinks(want, p, mtu)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoLink) {
			n.cfg.Log.Warn("update machine's routes", "network", want.ID, "machine", p.UID, "err", err)
		}
	}
	return nil
}

// Detach takes this host's part of a network away, with the namespaces of the
// machines that hang on it. It is no error if nothing, or only half, is there.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := cmp.Or(checkID(id), ctx.Err()); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	delete(n.attached, id)
	if err := n.detach(id); err != nil {
		return fmt.Errorf("detach network %s: %w", id, err)
	}
	n.cfg.Log.Info("network detached", "network", id)
	return nil
}

func (n *Network) detach(id string) error {
	w, err := openWorkspace(id, netns.Open)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		defer w.close()
		if err := w.removeLinks(); err != nil {
			return err
		}
		failpoint.Reach("network/detach/links-removed")
		for _, p := range w.ports {
			if err := netns.Remove(p.namespace()); err != nil {
				return err
			}
		}
	}
	host := &netlink.Handle{}
	if err := removeLink(host, uplinkPrefix+id); err != nil {
		return err
	}
	if err := n.ensureSenders(vniOf(id), nil); err != nil {
		return err
	}
	links, err := linksWithPrefix(host, uplinkPrefix)
	if err != nil {
		return err
	}
	if len(links) == 0 {
		if err := unprotectHost(); err != nil {
			return err
		}
	}
	failpoint.Reach("network/detach/rules-removed")
	// The namespace last: as long as it is there, Attached shows the network, and
	// whoever was killed on the way here comes back.
	if err := netns.Remove(workspacePrefix + id); err != nil {
		return err
	}
	failpoint.Reach("network/detach/namespace-removed")
	return nil
}

// Attached returns the ids of the networks, whole or not, on this host, sorted.
func (n *Network) Attached() ([]string, error) {
	ids, err := named(workspacePrefix)
	return slices.DeleteFunc(ids, func(id string) bool { return checkID(id) != nil }), err
}

// named are the namespaces whose names begin with prefix, without it.
func named(prefix string) ([]string, error) {
	names, err := netns.List(prefix)
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], prefix)
	}
	return names, err
}

// Dial connects from inside an attached network; IP literals only. The error wraps
// fs.ErrNotExist if there is none.
func (n *Network) Dial(ctx context.Context, id, network, address string) (net.Conn, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	ns, err := netns.Open(workspacePrefix + id)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return ns.DialContext(ctx, network, address)
}

// NamespacePath is the file of a network's namespace, be it there or not.
func NamespacePath(id string) string { return netns.Root + "/" + workspacePrefix + id }

func checkID(id string) error {
	if len(id) != 6 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("network %q: want six hex digits", id)
	}
	return nil
}

// vniOf is the number of a network's VXLAN, which its id says.
func vniOf(id string) uint32 {
	vni, _ := strconv.ParseUint(id, 16, 24) // checked before
	return uint32(vni)
}

func check(want wire.Network) error {
	if err := checkID(want.ID); err != nil {
		return err
	}
	if err := checkNetwork(want); err != nil {
		return fmt.Errorf("network %s: %w", want.ID, err)
	}
	return nil
}

func checkNetwork(want wire.Network) error {
	_, err := net.ParseMAC(want.MAC)
	switch {
	case want.VNI == 0 || want.VNI != vniOf(want.ID):
		return fmt.Errorf("VNI %d does not belong to it", want.VNI)
	case !want.Gateway.IsValid() || !want.Gateway.Addr().Is4() || !want.Plan.Nodes.Contains(want.Gateway.Addr()):
		return fmt.Errorf("gateway %v is not in %v", want.Gateway, want.Plan.Nodes)
	case !want.Plan.Pods.IsValid() || !want.Plan.Services.IsValid() || !want.Plan.Plane.Is4():
		return errors.New("no address plan")
	case err != nil:
		return err
	}
	for _, m := range want.Members {
		_, err := net.ParseMAC(m.MAC)
		switch {
		case err != nil:
			return fmt.Errorf("member %s: %w", m.Name, err)
		case !m.Address.Is4() || !want.Plan.Nodes.Contains(m.Address) || !m.Host.Is4():
			return fmt.Errorf("member %s: address %v on host %v", m.Name, m.Address, m.Host)
		case m.PodCIDR.IsValid() && !want.Plan.Pods.Contains(m.PodCIDR.Addr()):
			return fmt.Errorf("member %s: pod range %v is not in %v", m.Name, m.PodCIDR, want.Plan.Pods)
		case slices.ContainsFunc(m.Door, func(a netip.Addr) bool { return !a.Is4() || want.Plan.Nodes.Contains(a) }):
			return fmt.Errorf("member %s: %v are no addresses of a front door", m.Name, m.Door)
		}
	}
	if i := slices.IndexFunc(want.Hosts, func(a netip.Addr) bool { return !a.Is4() }); i >= 0 {
		return fmt.Errorf("host %v is no IPv4 address", want.Hosts[i])
	}
	return nil
}

// host is the namespace this process lives in, with the underlay.
type host struct {
	link *netlink.Handle // opens a socket for each request: nothing is to be closed
	mtu  int             // of the underlay
	own  []netip.Prefix  // its addresses, and those of the platform's other hosts
	// connected are the networks it is connected to.
	connected []netip.Prefix
}

// links are the host's interfaces, by index, and its addresses.
func (h *host) links() (map[int]*netlink.LinkAttrs, []netlink.Addr, error) {
	links, err := dump(h.link.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return h.link.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	return byIndex, addresses, nil
}

func (n *Network) readHost() (*host, error) {
	h := &host{link: &netlink.Handle{}}
	byIndex, addresses, err := h.links()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(byIndex, func(_ int, l *netlink.LinkAttrs) bool { return strings.HasPrefix(l.Name, uplinkPrefix) })
	for _, a := range addresses {
		l, p := byIndex[a.LinkIndex], prefixOf(a.IPNet)
		if l == nil {
			continue
		}
		if p.Addr() == n.cfg.Underlay {
			h.mtu = min(l.MTU, 65485) // loopback has more, in a lab of one host
		}
		if !p.Addr().IsLoopback() {
			h.own, h.connected = append(h.own, single(p.Addr())), append(h.connected, p.Masked())
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.link.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Scope == netlink.SCOPE_LINK && byIndex[r.LinkIndex] != nil {
			h.connected = append(h.connected, prefixOf(r.Dst).Masked())
		}
	}
	switch {
	case h.mtu == 0:
		return nil, fmt.Errorf("no interface has the address %v: is it this host's address on the platform's network?", n.cfg.Underlay)
	case h.mtu < 576+overhead:
		return nil, fmt.Errorf("the interface with address %v has an MTU of %d, too small for VXLAN", n.cfg.Underlay, h.mtu)
	}
	return h, nil
}

// workspace is an open namespace mp-ID.
type workspace struct {
	id    string
	ns    *netns.NS
	link  *netlink.Handle
	ports []machinePort // those that are there
}

func openWorkspace(id string, open func(name string) (*netns.NS, error)) (*workspace, error) {
	ns, err := open(workspacePrefix + id)
	if err != nil {
		return nil, err
	}
	w := &workspace{id: id, ns: ns}
	if w.link, err = ns.Netlink(); err == nil {
		err = w.readPorts()
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *workspace) close() {
	if w.link != nil {
		w.link.Close()
	}
	w.ns.Close()
}

// removeLinks removes them one by one, not with the namespace: that lives on for as
// long as a process or a socket is in it, and would keep receiving.
func (w *workspace) removeLinks() error {
	var names []string
	for _, p := range w.ports {
		names = append(names, p.link())
	}
	for _, name := range append(names, uplinkName, vxlanName, bridgeName) {
		if err := removeLink(w.link, name); err != nil {
			return err
		}
	}
	return nil
}
