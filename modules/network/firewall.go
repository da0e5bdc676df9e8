package network

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

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

// private are the networks of sites and of carriers (RFC 1918, RFC 6598): what a
// router of the operator's knows behind them is his.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
}

// closedChain is an empty chain that says: forwarding was off on this host
// before we came, so nothing but our uplinks is to be forwarded.
const closedChain = "closed"

// protect sets the rules in a workspace's namespace.
func (w *workspace) protect(host *host, want wire.Network, door Door) error {
	uplink, err := uplinkAddress(host, w.id)
	if err != nil {
		return err
	}
	sets := []ruleset{workspaceRules(want, door, placeOf(uplink)), portRules(w.ports)}
	err = w.ns.Do(func() error {
		if err := apply(sets...); err != nil {
			return err
		}
		return shorten()
	})
	if err != nil {
		return fmt.Errorf("namespace %s%s: %w", workspacePrefix, w.id, err)
	}
	return nil
}

// doorChain decides for each address and port of a door.
const doorChain = "door"

func (d Door) chain(port expr.VerdictKind, others ...rule) chain {
	c := chain{name: doorChain}
	for _, l := range d {
		c.rules = append(c.rules, match(destination(single(l.Addr())), tcpPort(l.Port()), verdict(port)))
	}
	c.rules = append(c.rules, others...)
	return c
}

// workspaceRules: what members may send to this host's place in their network,
// and through it to the outside. A server's front door is for members: what the plane
// itself says there, a process of the platform, a tenant may have put in its mouth.
func workspaceRules(want wire.Network, door Door, place int) ruleset {
	input := filter("input", nftables.ChainHookInput, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop,
		match(from("lo"), accept()),
		match(established(), accept()),
		match(from(bridgeName), echoRequest(), perSecond(100), accept()))
	var chains []chain
	if plane := want.Plan.Plane; want.Gateway.Addr() == plane {
		asked := match(from(bridgeName), destination(single(plane)), tcpPort(planePort))
		answered := match(to(bridgeName), source(single(plane)), protocol(unix.IPPROTO_TCP), fromPort(planePort))
		input.rules = append(input.rules, match(asked, accept()))
		// They are told by address and port, and need no place in the table of connections.
		chains = append(chains,
			filter("prerouting", nftables.ChainHookPrerouting, beforeAll, nftables.ChainPolicyAccept, match(asked, notrack())),
			filter("output", nftables.ChainHookOutput, beforeAll, nftables.ChainPolicyAccept, match(answered, notrack())))
	}
	forward := filter("forward", nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop,
		match(established(), accept()),
		match(invalid(), drop()), // it would leave with an address from in here
		match(notFrom(bridgeName), drop()),
		match(notTo(uplinkName), drop()))
	// An address of the workspace that has no route would go out by the default.
	for _, p := range []netip.Prefix{want.Plan.Nodes, want.Plan.Pods, want.Plan.Services} {
		forward.rules = append(forward.rules, match(destination(p), drop()))
	}
	nat := postrouting()
	said := filter("said", nftables.ChainHookOutput, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	// The front door has a rate and a bound of its own: they are tracked here only, and
	// the server holds each. All that an account may have must leave the door places.
	begun := chain{name: "begun"}
	doorway := chain{name: "doorway", rules: []rule{
		match(tooMany(doorNew, doorBurst), drop()),
		match(moreConnections(doorOpen), drop()),
	}}
	for _, a := range door.addresses() {
		forward.rules = append(forward.rules,
			match(destination(single(a)), jump(doorChain)),
			match(destination(single(a)), jump(doorway.name)))
		begun.rules = append(begun.rules, match(destination(single(a)), verdict(expr.VerdictReturn)))
		said.rules = append(said.rules, match(to(uplinkName), destination(single(a)), drop()))
		nat.rules = append(nat.rules, match(to(uplinkName), destination(single(a)), masquerade()))
	}
	begun.rules = append(begun.rules, match(protocol(unix.IPPROTO_TCP), tooMany(newConnections, newBurst), drop()))
	forward.rules = append(forward.rules, match(jump(begun.name)), match(moreConnections(maxConnections), drop()))
	for _, p := range []netip.Prefix{want.Plan.Nodes, want.Plan.Pods} {
		forward.rules = append(forward.rules, match(source(p), accept()))
	}
	nat.rules = append(nat.rules, match(to(uplinkName), jump(portedChain)), match(to(uplinkName), masquerade()))
	var ported []portedRule
	for _, transport := range transports {
		ported = append(ported,
			portedRule{match(protocol(transport), few(transport)), ownPorts(place)},
			portedRule{match(protocol(transport)), sharedPorts(place)})
	}
	return ruleset{family: nftables.TableFamilyIPv4, meters: meters, ported: ported,
		chains: append(chains, door.chain(expr.VerdictReturn, match(drop())), doorway, begun, input, forward, said, nat)}
}

// portRules: a machine sends from its own hardware address, answers ARP for its
// own address, and sends IPv4 from its own address and its pods'. A port that
// isn't known sends nothing.
func portRules(ports []machinePort) ruleset {
	const ethernet, carried = expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader
	entry := filter("prerouting", nftables.ChainHookPrerouting, -300, nftables.ChainPolicyDrop, match(from(vxlanName), accept()))
	var chains []chain
	byUID := func(a, b machinePort) int { return strings.Compare(a.UID, b.UID) }
	for _, p := range slices.SortedFunc(slices.Values(ports), byUID) {
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
	have, err := chainNames(c, &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
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
	if err := apply(n.hostRules(h, closed)); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	if err := shorten(); err != nil { // the rules have had the kernel load what tracks connections
		return err
	}
	return setSysctl("ipv4/ip_forward", "1")
}

// closedFor is for how long a connection of TCP that is closed is tracked, seconds. A
// server that ended it first keeps its port in mind for a minute: with 10 s, another
// tenant got that port meanwhile, and no answer.
const closedFor = 60

// times are how long connections are tracked at most, seconds, below
// /proc/sys/net/netfilter.
var times = map[string]int{
	"nf_conntrack_tcp_timeout_time_wait":   closedFor,
	"nf_conntrack_tcp_timeout_close":       10,
	"nf_conntrack_tcp_timeout_established": 86400, // of one that says nothing; the kernel's are five days
}

// shorten shortens the times in the namespace that the calling thread is in.
func shorten() error {
	for name, most := range times {
		name = "netfilter/" + name
		have, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			return fmt.Errorf("read sysctl: %w", err)
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(have))); err == nil && n <= most {
			continue
		}
		if err := setSysctl(name, strconv.Itoa(most)); err != nil {
			return err
		}
	}
	return nil
}

// hostRules: workspaces reach nothing of a host but a server's front door, and beyond the
// platform what they may; nobody reaches into a workspace. They hold for each packet, not only for the first of a
// connection. Of hosts a tenant hears nothing; where else he may not go he is told, so
// that his programs fail at once and by name.
//
// The host keeps track of what goes through it, with ports that the platform listens on
// for nobody, and of its own. What the platform serves is not tracked: anybody could fill
// the table of all with connections that are over. Other services of the host are
// tracked as without us: an operator's own rules may translate them.
func (n *Network) hostRules(h *host, closed bool) ruleset {
	ours, door := uplinkPrefix+"*", n.door()
	arriving := filter("prerouting", nftables.ChainHookPrerouting, beforeAll, nftables.ChainPolicyAccept,
		match(local(), echoRequest(), notrack()),
		match(local(), protocol(unix.IPPROTO_UDP), toPort(VXLANPort), notrack()))
	leaving := filter("output", nftables.ChainHookOutput, beforeAll, nftables.ChainPolicyAccept,
		match(echoReply(), notrack()),
		match(protocol(unix.IPPROTO_UDP), toPort(VXLANPort), notrack()))
	for _, p := range door.ports() {
		arriving.rules = append(arriving.rules, match(local(), tcpPort(p), notrack()))
		leaving.rules = append(leaving.rules, match(protocol(unix.IPPROTO_TCP), fromPort(p), notrack()),
			match(to("lo"), tcpPort(p), notrack())) // or its answer would belong to no connection
	}
	translate := []rule{
		match(source(uplinks), notTo(ours), jump(portedChain)),
		match(source(uplinks), notTo(ours), masquerade()),
	}
	var ported []portedRule
	for _, transport := range transports {
		// The port that the workspace's namespace has chosen, or one that serves as well.
		for _, p := range hostPorts() {
			ported = append(ported, portedRule{match(protocol(transport), fromPorts(p)), p})
		}
		ported = append(ported, portedRule{match(protocol(transport)), allShared})
	}
	input := filter("input", nftables.ChainHookInput, beforeAll, nftables.ChainPolicyAccept)
	for _, a := range door.addresses() {
		input.rules = append(input.rules, match(from(ours), source(uplinks), destination(single(a)), jump(doorChain)))
	}
	input.rules = append(input.rules, match(from(ours), drop()))
	forward := filter("forward", nftables.ChainHookForward, -10, nftables.ChainPolicyAccept,
		match(from(ours), jump("outward")),
		match(to(ours), jump("inward")))
	if closed {
		forward.policy = nftables.ChainPolicyDrop
	}
	outward := chain{name: "outward", rules: []rule{match(to(ours), drop())}}
	for _, p := range merged(nobody, h.own, []netip.Prefix{uplinks}) {
		outward.rules = append(outward.rules, match(destination(p), drop()))
	}
	prohibit := func(all ...[]netip.Prefix) {
		for _, p := range merged(all...) {
			outward.rules = append(outward.rules, match(destination(p), prohibited()))
		}
	}
	prohibit(n.cfg.Egress.Deny)
	for _, p := range merged(n.cfg.Egress.Allow) {
		outward.rules = append(outward.rules, match(destination(p), source(uplinks), accept()))
	}
	if n.cfg.Egress.Private {
		prohibit(h.connected)
	} else {
		prohibit(h.connected, private)
	}
	outward.rules = append(outward.rules, match(source(uplinks), accept()), match(drop()))
	inward := chain{name: "inward", rules: []rule{match(established(), accept()), match(drop())}}
	nat := postrouting(translate...)
	chains := []chain{arriving, leaving, outward, inward, door.chain(expr.VerdictAccept), input, forward, nat}
	if closed {
		chains = append(chains, chain{name: closedChain})
	}
	return ruleset{family: nftables.TableFamilyIPv4, chains: chains, ported: ported}
}

// merged are IPv4 networks, sorted, without those that are part of others.
func merged(lists ...[]netip.Prefix) (kept []netip.Prefix) {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr())) })
	for _, p := range all {
		if p.IsValid() && p.Addr().Is4() && !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Overlaps(p) }) {
			kept = append(kept, p.Masked())
		}
	}
	return kept
}

// unprotectHost takes our rules off the host once no workspace is attached.
func unprotectHost() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	have, err := chainNames(c, &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	if err != nil {
		return err
	}
	if slices.Contains(have, closedChain) {
		if err := setSysctl("ipv4/ip_forward", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	removeTable(c, &nftables.Table{Name: sendersTable, Family: nftables.TableFamilyIPv4})
	removeTable(c, &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	return nil
}

// Who may send VXLAN is a set of pairs of network and underlay address, in a table of
// its own, since its elements change with each workspace while the other rules stay.
const (
	sendersTable   = "multipaas-vxlan"
	sendersSet     = "senders"
	sendersVersion = versionPrefix + "1" // a chain that says what the table holds
)

// sender is the set's key: the VNI as it stands in the packet, with the
// reserved byte behind it, then the address.
func sender(vni uint32, host netip.Addr) string {
	return string(append(binary.BigEndian.AppendUint32(nil, vni<<8), host.AsSlice()...))
}

// ensureSenders makes the host take a network's VXLAN from the hosts of its
// members and from nobody else. Without members there is nobody.
func (n *Network) ensureSenders(vni uint32, members []wire.Member) (err error) {
	want := map[string]bool{}
	for _, m := range members {
		if m.Host != n.cfg.Underlay {
			want[sender(vni, m.Host)] = true
		}
	}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	t := &nftables.Table{Name: sendersTable, Family: nftables.TableFamilyIPv4}
	have, err := chainNames(c, t)
	if err != nil {
		return err
	}
	// Not "integer" for the VNI: nft crashes when it lists that without a length.
	set := &nftables.Set{Table: t, Name: sendersSet, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr)}
	if !slices.Contains(have, sendersVersion) {
		if len(want) == 0 {
			return nil
		}
		removeTable(c, t)
		c.AddTable(t)
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set of senders: %w", err)
		}
		sendersRules(c, t, set)
	} else {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("list senders: %w", err)
		}
		for _, e := range elements {
			switch key := string(e.Key); {
			case want[key]:
				delete(want, key)
			case len(key) == 8 && binary.BigEndian.Uint32([]byte(key)) == vni<<8:
				if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: e.Key}}); err != nil {
					return fmt.Errorf("remove sender: %w", err)
				}
			}
		}
	}
	for key := range want {
		if err := c.SetAddElements(set, []nftables.SetElement{{Key: []byte(key)}}); err != nil {
			return fmt.Errorf("add sender: %w", err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set senders of VXLAN: %w", err)
	}
	return nil
}

func sendersRules(c *nftables.Conn, t *nftables.Table, set *nftables.Set) {
	c.AddChain(&nftables.Chain{Name: sendersVersion, Table: t})
	accept := nftables.ChainPolicyAccept
	input := c.AddChain(&nftables.Chain{Name: "input", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(beforeAll), Policy: &accept})
	const pair = unix.NFT_REG32_00 // and the register behind it
	c.AddRule(&nftables.Rule{Table: t, Chain: input, Exprs: match(protocol(unix.IPPROTO_UDP), toPort(VXLANPort),
		[]expr.Any{
			// Behind UDP's 8 bytes and the 4 of VXLAN's flags.
			&expr.Payload{DestRegister: pair, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 4},
			&expr.Payload{DestRegister: pair + 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Lookup{SourceRegister: pair, SetName: set.Name, SetID: set.ID, Invert: true},
		},
		drop())})
}
