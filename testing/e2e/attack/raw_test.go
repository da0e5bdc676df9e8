package attack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// plan is the address plan inside every workspace.
var plan = wire.DefaultPlan()

// testRaw sends packets made by hand, from a pod of A and, as if A had got out
// of its pods, from the network namespace of A's machine. Watchers in every
// network namespace of every host say where each came: one that is seen anywhere
// but in A's own machine and its port has got through.
func testRaw(t *testing.T, s *suite) {
	a, b := s.workspaceID(t, dctest.Rival, "box"), s.workspaceID(t, datacenter.Owner, "shop")
	machines := s.machineSpaces(t, a)
	if len(machines) != 1 {
		t.Fatalf("A has machines %v, want one", machines)
	}
	home := machines[0]
	s.putTool(t)
	v := s.look(t)

	pod := s.podSender(t, "pod of A, root", s.attacker)
	victim := s.podSender(t, "pod of B", s.victims[0])
	machine := s.spaceSender(t, "machine of A, root with NET_ADMIN", home)
	for _, c := range []struct {
		from *sender
		id   string
	}{{pod, a}, {victim, b}, {machine, a}} {
		err := s.legitimate(t, v, c.from, c.id)
		if !s.control(t, "an honest packet of "+c.from.who+" to its own plane is seen there", err) {
			return
		}
	}
	if !s.control(t, "a host sees what comes to its port", s.hostListens(t, v)) {
		return
	}
	// leaked are the places where a packet must not have come.
	leaked := func(c crafted) []string {
		return slices.DeleteFunc(v.where(c.mark), func(where string) bool {
			if c.may != stays {
				plane := space{s.Server, "mp-" + a}.String()
				uplink := strings.HasPrefix(where, plane+" uplink") || strings.HasPrefix(where, s.Server.Name()+" mpu-"+a)
				apart := strings.Contains(where, " mpu-") || strings.Contains(where, " mp-"+b) || strings.Contains(where, " socket ") ||
					!strings.HasPrefix(where, s.Server.Name()+" ") && !strings.HasPrefix(where, home.host.Name()+" ")
				if uplink && c.may == through || !uplink && !apart {
					return true
				}
			}
			own := space{home.host, "mp-" + a}.String() + " "
			return strings.HasPrefix(where, home.String()+" ") ||
				strings.HasPrefix(where, own) && !strings.HasPrefix(where, own+"vxlan0") ||
				strings.HasPrefix(where, home.host.Name()+" mpu-"+a)
		})
	}
	for _, from := range []*sender{pod, machine} {
		m := &maker{t: t, from: from.place, door: s.Server.Address()}
		s.craft(t, m, from.address(), a, b)
		var frames [][]byte
		for _, c := range m.all {
			frames = append(frames, c.frames...)
		}
		err := from.send(t.Context(), frames...)
		if err == nil {
			err = s.legitimate(t, v, from, a)
		}
		if !s.control(t, "after all packets of "+from.who+" an honest one arrives", err) {
			continue
		}
		for _, c := range m.all {
			got := leaked(c)
			s.record(t, attempt{What: c.what, From: from.who, Want: string(c.may), Blocked: len(got) == 0,
				Got: strings.Join(append([]string{"seen at:"}, append(got, "own places: "+fmt.Sprint(len(v.where(c.mark))-len(got)))...), " ")})
		}
	}
	s.tunnels(t, v, a, b)
}

// legitimate sends an honest packet to the workspace's own plane and waits until
// it is there.
func (s *suite) legitimate(t *testing.T, v *view, from *sender, id string) error {
	t.Helper()
	plane := space{s.Server, "mp-" + id}.String() + " "
	var err error
	for range 5 { // a queue may have been full
		m, mark := &maker{t: t, from: from.place}, newMark()
		if err = from.send(t.Context(), m.udp(m.ethernet(plan.Plane), from.address(), plan.Plane, watchPort, payload(mark))); err != nil {
			return err
		}
		err = v.settle(t, mark, 10*time.Second, func(where string) bool { return strings.HasPrefix(where, plane) })
		if err == nil {
			return nil
		}
	}
	return err
}

// hostListens sends to the port that is watched on hosts, from host to host.
func (s *suite) hostListens(t *testing.T, v *view) error {
	t.Helper()
	for _, h := range s.Lab.Hosts() {
		mark := newMark()
		if err := sendUDP(fmt.Sprintf("%s:%d", h.Address(), watchPort), []byte("mpattack:"+mark)); err != nil {
			return err
		}
		want := fmt.Sprintf("%s socket %d", h.Name(), watchPort)
		if err := v.settle(t, mark, 20*time.Second, func(where string) bool { return where == want }); err != nil {
			return err
		}
	}
	return nil
}

// hostAddresses are all IPv4 addresses that hosts have, in whatever namespace,
// except those of the workspaces' own plan.
func (s *suite) hostAddresses(t testing.TB) map[netip.Addr]string {
	t.Helper()
	all := map[netip.Addr]string{s.Lab.Address(): "a host beside the platform"}
	for _, p := range s.spaces(t) {
		out, err := p.command(t.Context(), "ip", "-o", "-4", "addr").Output()
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			prefix, err := netip.ParsePrefix(f[3])
			if err != nil {
				continue
			}
			a := prefix.Addr()
			if a.IsLoopback() || a.IsLinkLocalUnicast() || plan.Nodes.Contains(a) || plan.Pods.Contains(a) {
				continue
			}
			all[a] = p.String() + " " + f[1]
		}
	}
	return all
}

// craft makes every packet that an attacker at this place could want to send.
func (s *suite) craft(t testing.TB, m *maker, own netip.Addr, a, b string) {
	t.Helper()
	targets := map[netip.Addr]string{
		netip.MustParseAddr("172.30.0.12"):     "B's second machine",
		netip.MustParseAddr("169.254.169.254"): "metadata of a cloud",
		netip.MustParseAddr("224.0.0.1"):       "all hosts (multicast)",
		netip.MustParseAddr("255.255.255.255"): "everybody (broadcast)",
		netip.MustParseAddr("127.0.0.1"):       "loopback, from outside",
	}
	for _, v := range s.victims {
		if !strings.HasPrefix(v.ip, "10.42.1.") { // A has a pod network 1 of its own
			targets[netip.MustParseAddr(v.ip)] = "B's pod"
		}
	}
	for address, what := range s.hostAddresses(t) {
		targets[address] = what
	}
	for address, what := range targets {
		m.protocols(own, address, what+" "+address.String())
	}
	hosts := map[string]netip.Addr{}
	for _, h := range s.Lab.Hosts() {
		hosts[h.Name()] = h.Address()
	}
	if plan.Nodes.Contains(own) {
		m.by = plan.Plane // a machine may choose its way, and the server has an uplink too
		for address, what := range targets {
			m.protocols(own, address, what+" "+address.String()+", by way of the server")
		}
		m.by = netip.Addr{}
	}
	vni := func(id string) (n uint32) { _, _ = fmt.Sscanf(id, "%x", &n); return n }
	for name, host := range hosts {
		m.oddities(own, host, plan.Plane, name)
		m.oddities(own, host, plan.Gateway(1), name+" (by the gateway)")
		for whose, id := range map[string]string{"A": a, "B": b} {
			for liar, from := range map[string]netip.Addr{"": own, " from node1's address": hosts["node1"], " from node2's address": hosts["node2"]} {
				m.add(fmt.Sprintf("VXLAN by hand to %s, network of %s%s", name, whose, liar), func(mark string) [][]byte {
					return [][]byte{m.vxlan(from, host, vni(id), mark, "172.30.0.12", "172.30.0.1"), m.vxlan(from, host, vni(id), mark, "172.30.0.1", "172.30.0.11")}
				})
			}
		}
	}
	liars := map[string]netip.Addr{"the plane": plan.Plane, "the gateway": plan.Gateway(1), "another machine": netip.MustParseAddr("172.30.0.12"),
		"another machine's pod": netip.MustParseAddr("10.42.2.9"), "the link-local endpoints": wire.LinkLocal, "a Service": plan.DNS,
		"loopback": netip.MustParseAddr("127.0.0.1"), "nobody": netip.MustParseAddr("0.0.0.0"), "broadcast": netip.MustParseAddr("255.255.255.255"),
		"multicast": netip.MustParseAddr("224.0.0.5"), "the internet": netip.MustParseAddr("198.51.100.7"), "the host beside": s.Lab.Address()}
	for name, host := range hosts {
		liars[name] = host
	}
	for whose, from := range liars {
		for name, to := range map[string]netip.Addr{"A's plane": plan.Plane, "another machine": netip.MustParseAddr("172.30.0.12"),
			"server": hosts["server"], "node1": hosts["node1"], "outside": netip.MustParseAddr("203.0.113.9")} {
			m.add(fmt.Sprintf("UDP from the address of %s to %s", whose, name), func(mark string) [][]byte {
				return [][]byte{m.udp(m.ethernet(to), from, to, watchPort, payload(mark))}
			})
		}
	}
	if plan.Nodes.Contains(own) {
		m.by = plan.Plane
		for address, what := range s.hostAddresses(t) {
			liars[what+" "+address.String()] = address
		}
		for whose, from := range liars {
			m.add("TCP SYN to the front door from the address of "+whose, func(mark string) [][]byte {
				return [][]byte{m.syn(from, m.door, mark)}
			})
			m.all[len(m.all)-1].may = stays
		}
		m.by = netip.Addr{}
	}
	m.links(liars)
	for whose, address := range liars {
		m.add("a frame with the hardware address of "+whose, func(mark string) [][]byte {
			e := m.ethernet(plan.Plane)
			e.SrcMAC = mac(wire.MAC(address))
			if e.SrcMAC[0]&1 != 0 || slices.Equal(e.SrcMAC, mac(m.from.MAC)) {
				e.SrcMAC = mac("02:6d:ba:db:ad:00")
			}
			return [][]byte{m.udp(e, address, plan.Plane, watchPort, payload(mark))}
		})
	}
}

// tunnels tries to inject VXLAN into workspaces from the platform's network: from
// a machine beside the platform, and from a node that has no machine of the workspace.
func (s *suite) tunnels(t *testing.T, v *view, a, b string) {
	for name, id := range map[string]string{"A": a, "B": b} {
		var vni uint32
		_, _ = fmt.Sscanf(id, "%x", &vni)
		member := map[string]bool{s.Server.Name(): true}
		for _, p := range s.machineSpaces(t, id) {
			member[p.host.Name()] = true
		}
		from := &maker{t: t, from: place{MAC: "02:00:00:00:00:01", GatewayMAC: "02:00:00:00:00:02"}}
		for _, h := range s.Lab.Hosts() {
			if !member[h.Name()] {
				continue
			}
			packet := func(mark string) []byte {
				// From the UDP payload on; addresses of the outer packet are the kernel's.
				return from.vxlan(s.Lab.Address(), h.Address(), vni, mark, "172.30.0.12", "172.30.0.1")[14+20+8:]
			}
			in := space{h, "mp-" + id}.String() + " "
			arrived := func(mark string) []string {
				return slices.DeleteFunc(v.where(mark), func(where string) bool { return !strings.HasPrefix(where, in) })
			}
			target := fmt.Sprintf("%s:4789", h.Address())
			for _, other := range s.Lab.Hosts() {
				if other.Name() == h.Name() {
					continue
				}
				mark := newMark()
				err := s.sendFrom(t.Context(), other.Name(), target, packet(mark))
				what := fmt.Sprintf("VXLAN of %s's network by hand from %s to %s", name, other.Name(), h.Name())
				if member[other.Name()] {
					// This is the control: a host that shares the workspace is heard.
					if err == nil {
						err = v.settle(t, mark, 10*time.Second, func(where string) bool { return strings.HasPrefix(where, in) })
					}
					s.control(t, what+" arrives", err)
					continue
				}
				s.injected(t, v, what, "a node without machines of the workspace", mark, err, arrived, h.Name(), other.Name())
			}
			mark := newMark()
			err := sendUDP(target, packet(mark))
			s.injected(t, v, fmt.Sprintf("VXLAN of %s's network by hand to %s", name, h.Name()), "a machine beside the platform, on its network", mark, err, arrived, h.Name(), "")
		}
	}
}

// injected records whether a packet came out of a tunnel. A second one, to a
// port that takes everything, goes behind it on the same way and is waited for.
func (s *suite) injected(t *testing.T, v *view, what, from, mark string, err error, arrived func(string) []string, to, by string) {
	t.Helper()
	after := newMark()
	if err == nil {
		target := fmt.Sprintf("%s:%d", s.Lab.Host(to).Address(), watchPort)
		err = s.sendFrom(t.Context(), by, target, []byte("mpattack:"+after))
	}
	if err == nil {
		err = v.settle(t, after, 20*time.Second, func(where string) bool { return where == fmt.Sprintf("%s socket %d", to, watchPort) })
	}
	if !s.control(t, "a packet behind "+what+" arrives", err) {
		return
	}
	got := arrived(mark)
	s.record(t, attempt{What: what, From: from, Want: "dropped by the host", Got: fmt.Sprintf("came out at %q", got), Blocked: len(got) == 0})
}

// sendFrom sends a UDP packet from a host, or from this process ("").
func (s *suite) sendFrom(ctx context.Context, host, to string, data []byte) error {
	if host == "" {
		return sendUDP(to, data)
	}
	ns, err := s.Lab.Host(host).Netns()
	if err != nil {
		return err
	}
	return errors.Join(ns.Do(func() error { return sendUDP(to, data) }), ns.Close())
}
