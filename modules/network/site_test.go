package network

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// site is a workspace with machines on hosts, the plane on the first one.
type site struct {
	id      string
	vni     uint32
	plan    wire.Plan
	hosts   []*testHost
	members []wire.Member
	door    Door // of the first host
}

func newSite(vni uint32, hosts []*testHost) *site {
	s := &site{id: fmt.Sprintf("%06x", vni), vni: vni, plan: wire.DefaultPlan(), hosts: hosts}
	for i, h := range hosts {
		a, name := s.plan.Plane, wire.PlaneMember
		if i > 0 {
			a, name = s.plan.Gateway(i), fmt.Sprintf("host-%d", i)
		}
		s.members = append(s.members, wire.Member{Name: name, Address: a, MAC: wire.MAC(a), Host: h.address})
	}
	return s
}

// machine adds machine index on host, and returns its port.
func (s *site) machine(index, host int) machinePort {
	a, pods := s.plan.Machine(index)
	m := wire.Member{Name: fmt.Sprintf("m%d", index), Address: a, MAC: wire.MAC(a), PodCIDR: pods, Host: s.hosts[host].address}
	s.members = append(s.members, m)
	return s.port(index)
}

func (s *site) port(index int) machinePort {
	a, pods := s.plan.Machine(index)
	return machinePort{UID: fmt.Sprintf("%s-machine-%d", s.id, index), Address: a, MAC: wire.MAC(a), PodCIDR: pods}
}

// remoteHost is a host of the platform that stands behind a router.
var remoteHost = netip.MustParseAddr("198.51.100.2")

func (s *site) network(host int) wire.Network {
	own := s.members[host]
	n := wire.Network{ID: s.id, Workspace: "acme/web/" + s.id, VNI: s.vni, Plan: s.plan,
		Gateway: netip.PrefixFrom(own.Address, s.plan.Nodes.Bits()), MAC: own.MAC}
	for i, m := range s.members {
		if i != host {
			if i == 0 {
				m.Door = s.door.addresses()
			}
			n.Members = append(n.Members, m)
		}
	}
	n.Hosts = []netip.Addr{remoteHost}
	for _, h := range s.hosts {
		n.Hosts = append(n.Hosts, h.address)
	}
	return n
}

func (s *site) attach(t *testing.T) {
	t.Helper()
	for i, h := range s.hosts {
		o := order{Do: "attach", Network: s.network(i)}
		if i == 0 {
			o.Door = s.door
		}
		h.must(o)
	}
}

func (s *site) attachMachine(host int, p machinePort) string {
	s.hosts[host].t.Helper()
	s.hosts[host].must(order{Do: "attachMachine", ID: s.id, Machine: p})
	return p.namespace()
}
