package wire

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
)

// Plan is the address plan inside every workspace. Workspaces can't see
// one another, so all have the same.
type Plan struct {
	Nodes    netip.Prefix `json:"nodes"`    // 172.30.0.0/20
	Pods     netip.Prefix `json:"pods"`     // 10.42.0.0/16
	Services netip.Prefix `json:"services"` // 10.43.0.0/16
	Plane    netip.Addr   `json:"plane"`    // 172.30.0.1
	DNS      netip.Addr   `json:"dns"`      // 10.43.0.10
}

// DefaultPlan is the address plan of DESIGN.
func DefaultPlan() Plan {
	return NewPlan(
		netip.MustParsePrefix("172.30.0.0/20"),
		netip.MustParsePrefix("10.42.0.0/16"),
		netip.MustParsePrefix("10.43.0.0/16"))
}

// NewPlan computes a plan from its three ranges. Whether they are large enough,
// IPv4 and apart from each other is checked where they are configured.
func NewPlan(nodes, pods, services netip.Prefix) Plan {
	return Plan{Nodes: nodes, Pods: pods, Services: services,
		Plane: offset(nodes.Addr(), 1), DNS: offset(services.Addr(), 10)}
}

// Machine gives the address and the pod range of machine index, 1..resource.MaxMachines.
// The first ten addresses are the plane's.
func (p Plan) Machine(index int) (netip.Addr, netip.Prefix) {
	return offset(p.Nodes.Addr(), uint32(10+index)),
		netip.PrefixFrom(offset(p.Pods.Addr(), uint32(index)<<8), 24)
}

// Gateway gives the address of a host's bridge; slot is 1 and up. They stand in
// the upper half of the smallest node range, so no machine can reach up to them.
func (p Plan) Gateway(slot int) netip.Addr {
	return offset(p.Nodes.Addr(), uint32(8<<8+slot))
}

// MAC computes the locally administered hardware address that belongs to an
// IPv4 address of a workspace.
func MAC(a netip.Addr) string {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x6d, b[0], b[1], b[2], b[3]}.String()
}

func offset(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// PlaneMember is the name of the plane among the members of a network.
const PlaneMember = "plane"

// Hosts maps the names of the server and the nodes to their underlay addresses.
// A node that has not told its address yet is left out.
func Hosts(nodes []*resource.Node, server string, address netip.Addr) map[string]netip.Addr {
	hosts := map[string]netip.Addr{server: address}
	for _, n := range nodes {
		if n.Status.Address.IsValid() {
			hosts[n.Name] = n.Status.Address
		}
	}
	return hosts
}

// Closed are all IPv4 addresses of the platform's hosts: those by which they are
// reached, those that nodes have besides, and more, which are servers'. Sorted, each
// once.
func Closed(nodes []*resource.Node, hosts map[string]netip.Addr, more ...[]netip.Addr) []netip.Addr {
	all := slices.AppendSeq(slices.Concat(more...), maps.Values(hosts))
	for _, n := range nodes {
		all = append(all, n.Status.Addresses...)
	}
	all = slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.Is4() }) // tenants have no other
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// NetworkFor computes the network of a workspace as one host sees it: the
// server that runs the plane (host == server) or the node called host. A machine
// on a host whose address is not in hosts yet is left out until it is, and one that
// is gone is left out. door are the service addresses of that server, closed what no
// tenant reaches.
func NetworkFor(
	w *resource.Workspace,
	plan Plan,
	machines []*resource.Machine,
	host, server string,
	hosts map[string]netip.Addr,
	door, closed []netip.Addr,
) Network {
	own := plan.Plane
	if host != server {
		own = plan.Gateway(w.Status.NodeSlots[host])
	}
	n := Network{ID: w.Status.ID, Workspace: w.Key(), VNI: w.Status.VNI, Plan: plan,
		Gateway: netip.PrefixFrom(own, plan.Nodes.Bits()), MAC: MAC(own),
		Hosts: closed}
	add := func(m Member, on string) {
		var ok bool
		if m.Host, ok = hosts[on]; ok {
			m.MAC = MAC(m.Address)
			n.Members = append(n.Members, m)
		}
	}
	if host != server {
		add(Member{Name: PlaneMember, Address: plan.Plane, Door: door}, server)
	}
	seen := map[string]bool{host: true, server: true}
	for _, m := range machines {
		if m.Status.Conditions.Is(resource.MachineRemoved) {
			continue // its host, too, has nothing to say in this network any more
		}
		address, pods := plan.Machine(m.Spec.Index)
		add(Member{Name: m.Name, Address: address, PodCIDR: pods}, m.Spec.Node)
		if slot := w.Status.NodeSlots[m.Spec.Node]; slot > 0 && !seen[m.Spec.Node] {
			seen[m.Spec.Node] = true
			add(Member{Name: "host-" + m.Spec.Node, Address: plan.Gateway(slot)}, m.Spec.Node)
		}
	}
	return n
}
