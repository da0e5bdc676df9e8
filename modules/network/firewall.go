package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/multipaas/multipaas/modules/wire"
)

// planePort is where a plane serves its workspace.
const planePort = 6443

// nobody are the networks that are no destination beyond a router.
var nobody = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"), // with the broadcast address
}

// closedChain is an empty chain that says: forwarding was off on this host
// before we came, so nothing but our uplinks is to be forwarded.
const closedChain = "closed"

// protectWorkspace sets the rules in a workspace's namespace.
func (n *Network) protectWorkspace(w *workspace, want wire.Network) error {
	sets := []ruleset{n.workspaceRules(want), portRules(w.ports)}
	if err := w.ns.Do(func() error { return apply(sets...) }); err != nil {
		return fmt.Errorf("namespace %s%s: %w", workspacePrefix, w.id, err)
	}
	return nil
}

// workspaceRules: what members may send to this host's place in their network,
// and through it to the outside.
func (n *Network) workspaceRules(want wire.Network) ruleset {
	input := chain{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop,
		rules: []rule{
			match(from("lo"), accept()),
			match(established(), accept()),
			match(from(bridgeName), echoRequest(), perSecond(100), accept()),
		}}
	if want.Gateway.Addr() == want.Plan.Plane {
		input.rules = append(input.rules,
			match(from(bridgeName), destination(single(want.Plan.Plane)), tcpPort(planePort), accept()))
	}
	forward := chain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop,
		rules: []rule{
			match(established(), accept()),
			match(notFrom(bridgeName), drop()),
			match(notTo(uplinkName), drop()),
		}}
	// An address of the workspace that has no route would go out by the default.
	for _, p := range []netip.Prefix{want.Plan.Nodes, want.Plan.Pods, want.Plan.Services} {
		forward.rules = append(forward.rules, match(destination(p), drop()))
	}
	forward.rules = append(forward.rules, match(moreConnections(n.cfg.MaxConnections), drop()))
	for _, p := range []netip.Prefix{want.Plan.Nodes, want.Plan.Pods} {
		forward.rules = append(forward.rules, match(source(p), accept()))
	}
	nat := chain{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
		priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
		rules: []rule{match(to(uplinkName), masquerade())}}
	return ruleset{family: nftables.TableFamilyIPv4, chains: []chain{input, forward, nat}}
}

// portRules: a machine sends from its own hardware address, answers ARP for its
// own address, and sends IPv4 from its own address and its pods'. A port that
// isn't known sends nothing.
func portRules(ports []port) ruleset {
	const (
		ethernet = expr.PayloadBaseLLHeader
		carried  = expr.PayloadBaseNetworkHeader
	)
	entry := chain{name: "prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
		priority: nftables.ChainPriorityRef(-300), policy: nftables.ChainPolicyDrop,
		rules: []rule{match(from(vxlanName), accept())}}
	chains := []chain{}
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b port) int { return strings.Compare(a.UID, b.UID) })
	for _, p := range ports {
		mac, address := mustMAC(p.MAC), p.Address.AsSlice()
		chains = append(chains, chain{name: p.link(), rules: []rule{
			match(frame(ethernet, expr.CmpOpNeq, 6, mac), drop()),
			match(etherType(0x0806), frame(carried, expr.CmpOpEq, 8, mac), frame(carried, expr.CmpOpEq, 14, address), accept()),
			match(etherType(0x0800), source(single(p.Address)), accept()),
			match(etherType(0x0800), source(p.PodCIDR), accept()),
			match(drop()),
		}})
		entry.rules = append(entry.rules, match(from(p.link()), jump(p.link())))
	}
	return ruleset{family: nftables.TableFamilyBridge, chains: append(chains, entry)}
}

// protectHost sets the rules in the host's own namespace and turns forwarding
// on, in this order.
func (n *Network) protectHost(h *host) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	have, err := chainNames(c, nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	closed := slices.Contains(have, closedChain)
	if len(have) == 0 {
		forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil {
			return fmt.Errorf("read sysctl: %w", err)
		}
		closed = strings.TrimSpace(string(forwarding)) == "0"
	}
	if err := apply(n.hostRules(h.connected, closed)); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	return setSysctl("ipv4/ip_forward", "1")
}

// hostRules: workspaces reach neither the host nor what it is connected to, and
// nobody reaches into a workspace.
func (n *Network) hostRules(connected []netip.Prefix, closed bool) ruleset {
	uplinks := uplinkPrefix + "*"
	// Before connection tracking and the host's own rules have a say.
	const first = -310
	input := chain{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: nftables.ChainPriorityRef(first), policy: nftables.ChainPolicyAccept,
		rules: []rule{match(from(uplinks), drop())}}

	forward := chain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityRef(-10), policy: nftables.ChainPolicyAccept,
		rules: []rule{
			match(from(uplinks), jump("outward")),
			match(to(uplinks), jump("inward")),
		}}
	if closed {
		forward.policy = nftables.ChainPolicyDrop
	}
	outward := chain{name: "outward", rules: []rule{match(to(uplinks), drop())}}
	for _, p := range n.blocked(connected) {
		outward.rules = append(outward.rules, match(destination(p), drop()))
	}
	outward.rules = append(outward.rules, match(source(n.cfg.Uplinks), accept()), match(drop()))
	inward := chain{name: "inward", rules: []rule{match(established(), accept()), match(drop())}}

	nat := chain{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
		priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
		rules: []rule{match(source(n.cfg.Uplinks), notTo(uplinks), masquerade())}}

	chains := []chain{outward, inward, input, forward, nat}
	if closed {
		chains = append(chains, chain{name: closedChain})
	}
	return ruleset{family: nftables.TableFamilyIPv4, chains: chains}
}

// blocked are the destinations that no workspace reaches, sorted. They hold for
// each packet, not only for the first of a connection.
func (n *Network) blocked(connected []netip.Prefix) []netip.Prefix {
	all := slices.Concat(nobody, connected, []netip.Prefix{n.cfg.Uplinks.Masked()})
	for _, p := range n.cfg.Blocked {
		if p.IsValid() && p.Addr().Is4() {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Bits() - b.Bits(); c != 0 {
			return c
		}
		return a.Addr().Compare(b.Addr())
	})
	var kept []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Overlaps(p) }) {
			kept = append(kept, p)
		}
	}
	return kept
}

// unprotectHost takes our rules off the host once no workspace is attached.
func (n *Network) unprotectHost() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	vxlan := &nftables.Table{Name: sendersTable, Family: nftables.TableFamilyIPv4}
	c.AddTable(vxlan) // so that it can be deleted
	c.DelTable(vxlan)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	have, err := chainNames(c, nftables.TableFamilyIPv4)
	if err != nil || len(have) == 0 {
		return err
	}
	if slices.Contains(have, closedChain) {
		if err := setSysctl("ipv4/ip_forward", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	c.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	return nil
}
