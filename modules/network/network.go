// Package network is the host side of workspaces' networks. On every host that
// takes part in a workspace, be it a node or the server with the plane, it
// keeps a network namespace mp-ID with a bridge, a VXLAN device to the other
// hosts, the machines' ports and one uplink to the outside.
//
// It promises that a workspace reaches its own members and, by NAT, what lies
// beyond the platform, and nothing else: no other workspace, no address of any
// host, no network a host is connected to. A machine can only send from the
// addresses it was given. DESIGN.md in this folder says how and why.
//
// Parties: the node's agent and the server call Attach with the whole wanted
// state on every change; the machine driver gets the namespaces; the plane and
// the balancer open sockets in them. Only package appliance may import it.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
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

// defaultUplinks is where uplinks get their addresses from: a part of the range
// for carrier NAT, which is neither a site's own nor on the internet.
var defaultUplinks = netip.MustParsePrefix("100.64.0.0/16")

// Config is what a host knows about itself.
type Config struct {
	// Underlay is this host's address on the platform's network, by which the
	// other hosts reach its VXLAN devices.
	Underlay netip.Addr
	// Blocked are networks that no tenant may reach, beside those that this
	// host is connected to and those that are nobody's (loopback, link-local,
	// multicast...).
	Blocked []netip.Prefix
	// Uplinks is where each workspace's uplink gets two addresses from.
	// The zero value is 100.64.0.0/16.
	Uplinks netip.Prefix
	// MaxConnections bounds what the connection tracking of this host holds
	// for the outgoing connections of one workspace. 0 is 16384.
	MaxConnections uint32
	Log            *slog.Logger
}

// Network keeps the networks of workspaces on this host. It is safe for
// concurrent use; calls follow one another.
type Network struct {
	cfg Config
	log *slog.Logger

	mu sync.Mutex
	// attached is what Attach was last asked for. It is a memory, not the
	// truth: after a restart it fills again with the first Attach.
	attached map[string]wire.Network
	paths    paths
}

// New changes nothing on the host.
func New(cfg Config) *Network {
	if !cfg.Uplinks.IsValid() {
		cfg.Uplinks = defaultUplinks
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 16384
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Network{cfg: cfg, log: cfg.Log, attached: map[string]wire.Network{}, paths: paths{look: make(chan struct{}, 1)}}
}

// Attach makes this host's part of a workspace's network be as want says. It
// may be called any number of times: what is there and right stays untouched,
// so traffic goes on, whoever made it. After an error it can be called again.
func (n *Network) Attach(ctx context.Context, want wire.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := check(want); err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.attach(want); err != nil {
		return fmt.Errorf("attach network %s: %w", want.ID, err)
	}
	if _, ok := n.attached[want.ID]; !ok {
		n.log.Info("network attached", "network", want.ID, "workspace", want.Workspace, "members", len(want.Members))
	}
	n.attached[want.ID] = want
	select {
	case n.paths.look <- struct{}{}:
	default:
	}
	return nil
}

func (n *Network) attach(want wire.Network) error {
	host, err := n.openHost()
	if err != nil {
		return err
	}
	defer host.close()
	w, err := openWorkspace(want.ID, true)
	if err != nil {
		return err
	}
	defer w.close()
	failpoint.Reach("network/attach/namespace-made")

	// The rules come first, so that there is no moment without them: they speak
	// of interfaces by name, which need not exist yet.
	if err := w.setSysctls(); err != nil {
		return err
	}
	if err := n.protectWorkspace(w, want); err != nil {
		return err
	}
	for _, a := range want.Hosts {
		host.connected = append(host.connected, single(a))
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
	if err := n.ensureUplink(host, w); err != nil {
		return err
	}
	failpoint.Reach("network/attach/uplink-made")
	if err := n.ensureMembers(w, want); err != nil {
		return err
	}
	for _, p := range w.ports {
		// A machine's part that is broken is mended by AttachMachine; the other
		// machines' routes are more urgent.
		if err := n.ensureMachineLinks(want, p, mtu); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("update machine's routes", "network", want.ID, "machine", p.UID, "error", err)
		}
	}
	return nil
}

// Detach takes this host's part of a network away, with the namespaces of the
// machines that hang on it. It is no error if nothing, or only half, is there.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := checkID(id); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	delete(n.attached, id)
	if err := n.detach(id); err != nil {
		return fmt.Errorf("detach network %s: %w", id, err)
	}
	n.log.Info("network detached", "network", id)
	return nil
}

func (n *Network) detach(id string) error {
	w, err := openWorkspace(id, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		// One by one, not with the namespace: that lives on for as long as a
		// process or a socket is in it, and would keep receiving.
		err := w.removeLinks()
		w.close()
		if err != nil {
			return err
		}
		failpoint.Reach("network/detach/links-removed")
		for _, p := range w.ports {
			if err := netns.Remove(p.namespace()); err != nil {
				return err
			}
		}
	}
	host, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	if err := removeLink(host, uplinkPrefix+id); err != nil {
		return err
	}
	if err := n.removeSenders(id); err != nil {
		return err
	}
	links, err := linksWithPrefix(host, uplinkPrefix)
	if err != nil {
		return err
	}
	if len(links) == 0 {
		if err := n.unprotectHost(); err != nil {
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

// Attached returns the ids of the networks of which there is something on this
// host, be it whole or not, sorted.
func (n *Network) Attached() ([]string, error) {
	names, err := netns.List(workspacePrefix)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		if id := strings.TrimPrefix(name, workspacePrefix); checkID(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Namespace opens the namespace of an attached network. The caller closes it.
// The error wraps fs.ErrNotExist if there is none.
func (n *Network) Namespace(id string) (*netns.NS, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	return netns.Open(workspacePrefix + id)
}

// Dial connects from inside an attached network; IP literals only.
func (n *Network) Dial(ctx context.Context, id, network, address string) (net.Conn, error) {
	ns, err := n.Namespace(id)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return ns.DialContext(ctx, network, address)
}

// NamespacePath is the file of a network's namespace, whether it is there or
// not.
func NamespacePath(id string) string { return netns.Root + "/" + workspacePrefix + id }

func checkID(id string) error {
	if len(id) != 6 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("network %q: want six hex digits", id)
	}
	return nil
}

func check(want wire.Network) error {
	if err := checkID(want.ID); err != nil {
		return err
	}
	if vni, err := strconv.ParseUint(want.ID, 16, 24); err != nil || vni == 0 || uint32(vni) != want.VNI {
		return fmt.Errorf("network %s: VNI %d does not belong to it", want.ID, want.VNI)
	}
	if !want.Gateway.IsValid() || !want.Gateway.Addr().Is4() || !want.Plan.Nodes.Contains(want.Gateway.Addr()) {
		return fmt.Errorf("network %s: gateway %v is not in %v", want.ID, want.Gateway, want.Plan.Nodes)
	}
	if !want.Plan.Pods.IsValid() || !want.Plan.Services.IsValid() || !want.Plan.Plane.Is4() {
		return fmt.Errorf("network %s: no address plan", want.ID)
	}
	if _, err := net.ParseMAC(want.MAC); err != nil {
		return fmt.Errorf("network %s: %w", want.ID, err)
	}
	for _, m := range want.Members {
		if _, err := net.ParseMAC(m.MAC); err != nil {
			return fmt.Errorf("network %s: member %s: %w", want.ID, m.Name, err)
		}
		if !m.Address.Is4() || !want.Plan.Nodes.Contains(m.Address) || !m.Host.Is4() {
			return fmt.Errorf("network %s: member %s: address %v on host %v", want.ID, m.Name, m.Address, m.Host)
		}
		if m.PodCIDR.IsValid() && !want.Plan.Pods.Contains(m.PodCIDR.Addr()) {
			return fmt.Errorf("network %s: member %s: pod range %v is not in %v", want.ID, m.Name, m.PodCIDR, want.Plan.Pods)
		}
	}
	for _, a := range want.Hosts {
		if !a.Is4() {
			return fmt.Errorf("network %s: host %v is no IPv4 address", want.ID, a)
		}
	}
	return nil
}

// host is the namespace this process lives in, with the underlay.
type host struct {
	link *netlink.Handle
	mtu  int // of the underlay
	// connected are the networks this host is connected to, and the platform's
	// other hosts.
	connected []netip.Prefix
}

func (h *host) close() { h.link.Close() }

func (n *Network) openHost() (*host, error) {
	link, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	h := &host{link: link}
	if err := n.readHost(h); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (n *Network) readHost(h *host) error {
	links, err := dump(h.link.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return h.link.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		l := byIndex[a.LinkIndex]
		if l == nil || strings.HasPrefix(l.Attrs().Name, uplinkPrefix) {
			continue
		}
		p := prefixOf(a.IPNet)
		if p.Addr() == n.cfg.Underlay {
			h.mtu = l.Attrs().MTU
		}
		if !p.Addr().IsLoopback() {
			h.connected = append(h.connected, p.Masked())
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.link.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		l := byIndex[r.LinkIndex]
		if r.Dst != nil && r.Scope == netlink.SCOPE_LINK && l != nil && !strings.HasPrefix(l.Attrs().Name, uplinkPrefix) {
			h.connected = append(h.connected, prefixOf(r.Dst).Masked())
		}
	}
	if h.mtu == 0 {
		return fmt.Errorf("no interface has the address %v: is it this host's address on the platform's network?", n.cfg.Underlay)
	}
	if h.mtu > 65485 {
		h.mtu = 65485 // loopback, in a lab of one host
	}
	if h.mtu < 576+overhead {
		return fmt.Errorf("the interface with address %v has an MTU of %d, too small for VXLAN", n.cfg.Underlay, h.mtu)
	}
	return nil
}

// workspace is an open namespace mp-ID.
type workspace struct {
	id    string
	ns    *netns.NS
	file  *os.File // the namespace, for the kernel to put links into
	link  *netlink.Handle
	ports []port // machines' ports that are there
}

func openWorkspace(id string, create bool) (*workspace, error) {
	open := netns.Open
	if create {
		open = netns.Create
	}
	ns, err := open(workspacePrefix + id)
	if err != nil {
		return nil, err
	}
	w := &workspace{id: id, ns: ns}
	if w.file, err = os.Open(ns.Path()); err != nil {
		w.close()
		return nil, err
	}
	if w.link, err = ns.Netlink(); err != nil {
		w.close()
		return nil, err
	}
	if err := w.readPorts(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *workspace) close() {
	if w.link != nil {
		w.link.Close()
	}
	if w.file != nil {
		w.file.Close()
	}
	w.ns.Close()
}

func (w *workspace) removeLinks() error {
	for _, p := range w.ports {
		if err := removeLink(w.link, p.link()); err != nil {
			return err
		}
	}
	for _, name := range []string{uplinkName, vxlanName, bridgeName} {
		if err := removeLink(w.link, name); err != nil {
			return err
		}
	}
	return nil
}
