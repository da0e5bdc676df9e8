package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
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

// TestWorkspace is the whole of a workspace's network on three hosts: the
// server and two nodes, beside a second workspace with the same addresses.
func TestWorkspace(t *testing.T) {
	hosts := newHosts(t, 3)
	server, node1, node2 := hosts[0], hosts[1], hosts[2]
	one, two := newSite(0x2a, hosts), newSite(0x802a, hosts) // uplink addresses would collide
	m1, m2, m3 := one.machine(1, 1), one.machine(2, 2), one.machine(3, 1)
	o1 := two.machine(1, 1)
	one.attach(t)
	two.attach(t)
	ns1, ns2, ns3 := one.attachMachine(1, m1), one.attachMachine(2, m2), one.attachMachine(1, m3)
	other := two.attachMachine(1, o1)
	one.attach(t)

	// Pods are addresses behind the machine, as the CNI plugin has them.
	node1.must(order{Do: "address", NS: ns1, Link: "lo", To: "10.42.1.5/32"})
	node2.must(order{Do: "address", NS: ns2, Link: "lo", To: "10.42.2.5/32"})

	t.Run("members reach each other", func(t *testing.T) {
		for _, c := range []struct{ from, to string }{
			{"", "172.30.0.12"},              // machine to machine on another host
			{"", "172.30.0.13"},              // and on the same one
			{"", "172.30.0.1"},               // the plane
			{"", "172.30.8.1"},               // its own host's place in the network
			{"", "172.30.8.2"},               // another one's
			{"10.42.1.5", "10.42.2.5"},       // pod to pod
			{"10.42.1.5", "172.30.0.1"},      // pod to plane
			{"172.30.0.11", "169.254.20.10"}, // link-local endpoints
		} {
			node1.must(order{Do: "reach", NS: ns1, From: c.from, To: c.to})
		}
		server.must(order{Do: "reach", NS: "mp-" + one.id, To: "172.30.0.11"})
		server.must(order{Do: "reach", NS: "mp-" + one.id, To: "10.42.2.5"})
		node2.must(order{Do: "reach", NS: ns2, From: "10.42.2.5", To: "10.42.1.5"})
		node1.must(order{Do: "reach", NS: ns3, To: "172.30.0.12"})
	})

	t.Run("a port that an agent was killed over", func(t *testing.T) {
		node1.must(order{Do: "run", Arguments: []string{"nsenter", "--net=/run/netns/mp-" + one.id, "ip", "link", "set", m1.link(), "nomaster"}})
		one.attach(t)
		one.attachMachine(1, m1)
		node1.must(order{Do: "reach", NS: ns1, To: "172.30.0.12"})
	})

	t.Run("plane takes its port only", func(t *testing.T) {
		plane := "mp-" + one.id
		for _, a := range []string{"172.30.0.1:6443", "172.30.0.1:6444", "127.0.0.1:6444"} {
			server.must(order{Do: "listenTCP", NS: plane, To: a})
		}
		if got := node1.must(order{Do: "reachTCP", NS: ns1, To: "172.30.0.1:6443"}); got != "hello from 172.30.0.1:6443" {
			t.Errorf("plane said %q", got)
		}
		if out, err := node1.do(order{Do: "dialTCP", NS: ns1, To: "172.30.0.1:6444"}); err == nil {
			t.Errorf("a machine reached port 6444 of the plane's namespace: %s", out)
		}
		node1.must(order{Do: "listenTCP", NS: plane, To: "172.30.8.1:6443"})
		if out, err := node1.do(order{Do: "dialTCP", NS: ns1, To: "172.30.8.1:6443"}); err == nil {
			t.Errorf("a machine reached a listener in its host's place: %s", out)
		}
	})

	t.Run("hosts are out of reach", func(t *testing.T) {
		uplink := strings.Fields(node1.must(order{Do: "run", Arguments: []string{"sh", "-c", "ip -o -4 addr show mpu-" + one.id + " | awk '{print $4}' | cut -d/ -f1"}}))[0]
		foreign := strings.Fields(node1.must(order{Do: "run", Arguments: []string{"sh", "-c", "ip -o -4 addr show mpu-" + two.id + " | awk '{print $4}' | cut -d/ -f1"}}))[0]
		for _, h := range hosts {
			h.must(order{Do: "listenTCP", To: "0.0.0.0:7443"})
		}
		if got := node1.must(order{Do: "reachTCP", To: server.address.String() + ":7443"}); got == "" {
			t.Fatal("hosts don't reach each other")
		}
		for _, a := range []string{server.address.String(), node1.address.String(), node2.address.String(), uplink, foreign} {
			for _, from := range []struct {
				h  *testHost
				ns string
			}{{node1, ns1}, {server, "mp-" + one.id}} {
				if out, err := from.h.do(order{Do: "dialTCP", NS: from.ns, To: a + ":7443"}); err == nil {
					t.Errorf("%s reached %s:7443: %s", from.ns, a, out)
				}
				if _, err := from.h.do(order{Do: "ping", NS: from.ns, To: a}); err == nil {
					t.Errorf("%s pinged %s", from.ns, a)
				}
			}
		}
	})

	t.Run("workspaces are apart", func(t *testing.T) {
		// The other workspace has no machine 2 and no pods there.
		for _, a := range []string{"172.30.0.12", "172.30.0.13", "10.42.2.5", "10.42.1.5"} {
			if _, err := node1.do(order{Do: "ping", NS: other, To: a}); err == nil {
				t.Errorf("a machine of another workspace reached %s", a)
			}
		}
		node1.must(order{Do: "reach", NS: other, To: "172.30.0.1"})
	})

	t.Run("what lies beyond is reached by NAT", func(t *testing.T) {
		// A network beyond the switch: the server routes to it.
		server.must(order{Do: "address", Link: "lo", To: "198.51.100.1/32"})
		server.must(order{Do: "listenTCP", To: "198.51.100.1:80"})
		node1.must(order{Do: "run", Arguments: strings.Fields("ip route add default via " + server.address.String())})
		for _, ns := range []string{ns1, other} {
			if got := node1.must(order{Do: "reachTCP", NS: ns, To: "198.51.100.1:80"}); !strings.HasPrefix(got, "hello") {
				t.Errorf("%s: got %q", ns, got)
			}
		}
		node1.must(order{Do: "reach", NS: ns1, From: "10.42.1.5", To: "198.51.100.1"})
		// Private networks only if the operator says so; who is told why fails at once.
		for _, a := range []string{"10.77.0.1", "172.20.0.1", "192.168.77.1", "100.99.0.1", "203.0.113.9"} {
			server.must(order{Do: "address", Link: "lo", To: a + "/32"})
			server.must(order{Do: "listenTCP", To: a + ":80"})
			node1.must(order{Do: "reachTCP", To: a + ":80"})
		}
		node1.must(order{Do: "listenTCP", To: node1.address.String() + ":81"})
		ten, neighbour := netip.MustParsePrefix("10.77.0.0/16"), single(server.address)
		for what, c := range map[string]struct {
			egress  Egress
			reached string // the others are not
		}{
			"public":            {Egress{}, "203.0.113.9"},
			"one network":       {Egress{Allow: []netip.Prefix{ten}}, "203.0.113.9 10.77.0.1"},
			"open":              {Egress{Private: true}, "203.0.113.9 10.77.0.1 172.20.0.1 192.168.77.1 100.99.0.1"},
			"open but for one":  {Egress{Private: true, Deny: []netip.Prefix{ten}}, "203.0.113.9 172.20.0.1 192.168.77.1 100.99.0.1"},
			"deny has the word": {Egress{Allow: []netip.Prefix{ten}, Deny: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "203.0.113.9"},
			"no public one":     {Egress{Deny: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, ""},
			"hosts never":       {Egress{Private: true, Allow: []netip.Prefix{neighbour, netip.MustParsePrefix("10.99.0.0/16")}}, "203.0.113.9 10.77.0.1 172.20.0.1 192.168.77.1 100.99.0.1"},
		} {
			node1.must(order{Do: "attach", Network: one.network(1), Egress: c.egress})
			for _, ns := range []string{ns1, "mp-" + one.id} {
				for _, a := range []string{"10.77.0.1", "172.20.0.1", "192.168.77.1", "100.99.0.1", "203.0.113.9"} {
					out, err := node1.do(order{Do: "dialTCP", NS: ns, To: a + ":80"})
					switch {
					case slices.Contains(strings.Fields(c.reached), a):
						if err != nil {
							out, err = node1.do(order{Do: "reachTCP", NS: ns, To: a + ":80"})
						}
						if !strings.HasPrefix(out, "hello") {
							t.Errorf("%s: %s from %s: got %q %v", what, a, ns, out, err)
						}
					case err == nil:
						t.Errorf("%s: %s from %s: got %q, want no way", what, a, ns, out)
					}
				}
				if what == "public" {
					if out, err := node1.do(order{Do: "reachTCP", NS: ns, To: "10.77.0.1:80"}); err == nil || !strings.Contains(err.Error(), "no route to host") {
						t.Errorf("a private network from %s: got %q %v, want it refused by name", ns, out, err)
					}
				}
				for _, a := range []string{server.address.String() + ":7443", node1.address.String() + ":81"} {
					if out, err := node1.do(order{Do: "dialTCP", NS: ns, To: a}); err == nil || strings.Contains(err.Error(), "no route to host") {
						t.Errorf("%s: host %s from %s: got %q %v, want silence", what, a, ns, out, err)
					}
				}
			}
		}
		node1.must(order{Do: "attach", Network: one.network(1)})
		// But not the platform's own hosts there.
		server.must(order{Do: "address", Link: "lo", To: remoteHost.String() + "/32"})
		node1.must(order{Do: "reachTCP", To: remoteHost.String() + ":7443"})
		if out, err := node1.do(order{Do: "dialTCP", NS: ns1, To: remoteHost.String() + ":7443"}); err == nil {
			t.Errorf("a machine reached a host behind a router: %s", out)
		}
		// Nobody comes in by the same way.
		node1.must(order{Do: "listenTCP", NS: ns1, To: "172.30.0.11:8080"})
		node1.must(order{Do: "reachTCP", NS: ns3, To: "172.30.0.11:8080"})
		server.must(order{Do: "run", Arguments: strings.Fields("ip route add 172.30.0.0/20 via " + node1.address.String())})
		server.must(order{Do: "run", Arguments: strings.Fields("ip route add 100.64.0.0/16 via " + node1.address.String())})
		node1.must(order{Do: "run", Arguments: strings.Fields("ip route add 172.30.0.0/20 dev mpu-" + one.id)})
		if out, err := server.do(order{Do: "dialTCP", To: "172.30.0.11:8080"}); err == nil {
			t.Errorf("a host came in by the uplink: %s", out)
		}
		node1.must(order{Do: "run", Arguments: strings.Fields("ip route del 172.30.0.0/20 dev mpu-" + one.id)})
	})

	t.Run("who looks for nobody finds out at once, and takes no place", func(t *testing.T) {
		for _, from := range []struct {
			h  *testHost
			ns string
		}{{node1, ns1}, {node1, "mp-" + one.id}, {server, "mp-" + one.id}} {
			for _, a := range []string{"172.30.5.5:80", "10.42.77.7:80"} {
				if _, err := from.h.do(order{Do: "reachTCP", NS: from.ns, To: a}); !strings.Contains(fmt.Sprint(err), "no route to host") {
					t.Errorf("%s from %s of %v: %v, want no route to host", a, from.ns, from.h.address, err)
				}
			}
			from.h.must(order{Do: "scan", NS: from.ns, To: "172.30.0.0/20"})
			table := from.h.must(order{Do: "run", NS: from.ns, Arguments: strings.Fields("ip -4 neigh show nud all")})
			passing := 0
			for line := range strings.Lines(table) {
				if !strings.Contains(line, "PERMANENT") && !strings.Contains(line, "NOARP") {
					passing++
				}
			}
			if passing > 0 {
				t.Errorf("%s of %v: %d neighbours that were only looked for:\n%s", from.ns, from.h.address, passing, table)
			}
		}
	})

	t.Run("one workspace doesn't fill the table of connections", func(t *testing.T) {
		before, began := node1.tracked(""), time.Now()
		made, err := strconv.Atoi(node1.must(order{Do: "floodTCP", NS: ns1, To: "198.51.100.1:80"}))
		if err != nil || made < newBurst/2 {
			t.Fatalf("%d connections were made: %v", made, err)
		}
		// Those that are over are tracked for some seconds more. The kernel counts them for nobody.
		if got, most := node1.tracked("")-before, newBurst+(int(time.Since(began).Seconds())+3)*newConnections; got > most {
			t.Errorf("%d connections are tracked after %d were made and closed, want at most %d", got, made, most)
		}
		if got := node1.must(order{Do: "reachTCP", NS: other, To: "198.51.100.1:80"}); !strings.HasPrefix(got, "hello") {
			t.Errorf("the other workspace meanwhile: %q", got)
		}
		for _, ns := range []string{"", "mp-" + one.id, ns1} {
			for name, most := range times {
				got := strings.TrimSpace(node1.must(order{Do: "run", NS: ns, Arguments: []string{"cat", "/proc/sys/net/netfilter/" + name}}))
				if got != fmt.Sprint(most) {
					t.Errorf("%s in %q is %s, want %d", name, ns, got, most)
				}
			}
		}
		// A host's ports below are its own.
		lines := node1.must(order{Do: "run", Arguments: strings.Fields("cat /proc/net/nf_conntrack")})
		answers := regexp.MustCompile(`src=198\.51\.100\.1 dst=10\.99\.0\.2 sport=80 dport=(\d+)`).FindAllStringSubmatch(lines, -1)
		if len(answers) == 0 {
			t.Errorf("no connection through the host:\n%.2000s", lines)
		}
		for _, a := range answers {
			if port, _ := strconv.Atoi(a[1]); port < dynamicPorts {
				t.Errorf("a connection through the host has its port %d", port)
			}
		}
	})

	t.Run("what the platform serves on a host is not tracked", func(t *testing.T) {
		server.must(order{Do: "attach", Network: one.network(0), Door: Door{netip.AddrPortFrom(server.address, 7444)}})
		defer server.must(order{Do: "attach", Network: one.network(0)})
		server.must(order{Do: "listenTCP", To: "0.0.0.0:7444"})
		node1.must(order{Do: "reachTCP", To: server.address.String() + ":7444"})
		before := server.tracked("")
		made := node1.must(order{Do: "floodTCP", To: server.address.String() + ":7444"})
		if got := server.tracked("") - before; got > 50 { // of what else goes on here
			t.Errorf("%d connections are tracked after others made %s to it", got, made)
		}
		before = server.tracked("")
		made = server.must(order{Do: "floodTCP", To: server.address.String() + ":7444"})
		if got := server.tracked("") - before; got > 50 {
			t.Errorf("%d connections are tracked after it made %s to itself", got, made)
		}
		plane := "mp-" + one.id
		node1.must(order{Do: "reachTCP", NS: ns1, To: "172.30.0.1:6443"})
		before = server.tracked(plane)
		made = node1.must(order{Do: "floodTCP", NS: ns1, To: "172.30.0.1:6443"})
		if got := server.tracked(plane) - before; got > 50 {
			t.Errorf("%d connections are tracked after a machine made %s to its plane", got, made)
		}
		node1.must(order{Do: "ping", To: server.address.String()})
	})

	t.Run("spoofed frames go nowhere", func(t *testing.T) {
		a, b := m1, m2
		good := udpFrame(a.MAC, b.MAC, a.Address, b.Address, "good")
		pod := udpFrame(a.MAC, b.MAC, netip.MustParseAddr("10.42.1.77"), b.Address, "good")
		plane := wire.DefaultPlan().Plane
		for _, c := range []struct {
			name  string
			frame []byte
		}{
			{"another's address", udpFrame(a.MAC, b.MAC, m3.Address, b.Address, "bad")},
			{"the plane's address", udpFrame(a.MAC, b.MAC, plane, b.Address, "bad")},
			{"another machine's pod", udpFrame(a.MAC, b.MAC, netip.MustParseAddr("10.42.3.7"), b.Address, "bad")},
			{"another's MAC", udpFrame(m3.MAC, b.MAC, a.Address, b.Address, "bad")},
			{"the plane's MAC", udpFrame(wire.MAC(plane), b.MAC, a.Address, b.Address, "bad")},
			{"a VLAN tag", tagged(udpFrame(a.MAC, b.MAC, m3.Address, b.Address, "bad"))},
		} {
			// The bad frame goes first on the same way, so if the good one is
			// the first to arrive, the bad one was dropped.
			for _, then := range [][]byte{good, pod} {
				got := receiveOn(t, node1, node2, ns1, ns2, b.Address.String()+":9999", c.frame, then)
				if got != "good" {
					t.Errorf("%s: got %q", c.name, got)
				}
			}
		}
		// ARP for the gateway's address: the other machine's table is as it was.
		for _, mac := range []string{a.MAC, m3.MAC} {
			node1.must(order{Do: "send", NS: ns1, Link: machineLink, Frame: arpFrame(a.MAC, mac, plane)})
		}
		node1.must(order{Do: "reach", NS: ns3, To: plane.String()})
		table := node1.must(order{Do: "run", NS: ns3, Arguments: strings.Fields("ip neigh show " + plane.String())})
		if !strings.Contains(table, wire.MAC(plane)) {
			t.Errorf("plane's neighbour entry: %s", table)
		}
	})

	t.Run("VXLAN is taken from hosts of the workspace only", func(t *testing.T) {
		// node2 is no host of this workspace.
		three := newSite(0x33, hosts[:2])
		m := three.machine(1, 1)
		three.attach(t)
		ns := three.attachMachine(1, m)
		node1.must(order{Do: "reach", NS: ns, To: "172.30.0.1"})
		plane := wire.DefaultPlan().Plane
		packet := func(payload string) []byte {
			header := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, three.vni<<8)
			return append(header, udpFrame(wire.MAC(plane), m.MAC, plane, m.Address, payload)...)
		}
		// By the same way behind the bad one comes a good one, from the server.
		inject := func(from *testHost, reserved byte) []byte {
			p := packet("bad")
			p[7] = reserved
			from.must(order{Do: "sendUDP", To: node1.address.String() + ":4789", Frame: p})
			return packet("good")
		}
		for name, bad := range map[string]func(){
			"another host of the platform": func() { inject(node2, 0) },
			"with the reserved byte set":   func() { inject(node2, 1) },
		} {
			got := receiveAfter(t, node1, ns, m.Address.String()+":9999", func() {
				bad()
				server.must(order{Do: "sendUDP", To: node1.address.String() + ":4789", Frame: packet("good")})
			})
			if got != "good" {
				t.Errorf("%s: got %q", name, got)
			}
		}
		// It joins, and is heard; it leaves, and isn't.
		three.hosts = hosts
		three.members = append(three.members, wire.Member{Name: "host-2", Address: three.plan.Gateway(2), MAC: wire.MAC(three.plan.Gateway(2)), Host: node2.address})
		node1.must(order{Do: "attach", Network: three.network(1)})
		got := receiveAfter(t, node1, ns, m.Address.String()+":9999", func() {
			node2.must(order{Do: "sendUDP", To: node1.address.String() + ":4789", Frame: packet("good")})
		})
		if got != "good" {
			t.Errorf("a host that has joined: got %q", got)
		}
		three.members = three.members[:len(three.members)-1]
		node1.must(order{Do: "attach", Network: three.network(1)})
		got = receiveAfter(t, node1, ns, m.Address.String()+":9999", func() {
			inject(node2, 0)
			server.must(order{Do: "sendUDP", To: node1.address.String() + ":4789", Frame: packet("good")})
		})
		if got != "good" {
			t.Errorf("a host that has left: got %q", got)
		}
		for _, h := range hosts[:2] {
			senders := func() string {
				return h.must(order{Do: "run", Arguments: strings.Fields("nft list table ip multipaas-vxlan")})
			}
			if rules := senders(); !strings.Contains(rules, "0x00330000 .") {
				t.Errorf("VNI 0x33 is not among the senders: %s", rules)
			}
			h.must(order{Do: "detach", ID: three.id})
			if rules := senders(); strings.Contains(rules, "0x00330000 .") {
				t.Errorf("after the network is gone: %s", rules)
			}
		}
		node1.must(order{Do: "reach", NS: ns1, To: "172.30.0.12"}) // the others are heard as before
	})

	namespaces := []string{"mp-" + one.id, "mp-" + two.id, ns1, ns3, other}
	t.Run("again changes nothing", func(t *testing.T) {
		before := node1.dump(namespaces...)
		node1.must(order{Do: "attach", Network: one.network(1)})
		one.attachMachine(1, m1)
		same(t, before, node1.dump(namespaces...))
		// An agent that knows nothing finds all as it should be.
		node1.must(order{Do: "restart"})
		node1.must(order{Do: "attach", Network: one.network(1)})
		node1.must(order{Do: "attach", Network: two.network(1)})
		one.attachMachine(1, m3)
		same(t, before, node1.dump(namespaces...))
	})

	t.Run("uplinks are by IPv4 only, with addresses that nobody else sets", func(t *testing.T) {
		if got := node1.must(order{Do: "run", Arguments: strings.Fields("ip -6 -o address")}); strings.Contains(got, "mpu-") {
			t.Errorf("the host listens by IPv6 on an uplink:\n%s", got)
		}
		for side, ns := range []string{"", "mp-" + one.id} {
			got := node1.must(order{Do: "run", NS: ns, Arguments: strings.Fields("ip -o link")})
			if mac := uplinkMAC(one.id, byte(side)).String(); !strings.Contains(got, mac) {
				t.Errorf("no link has the hardware address %s:\n%s", mac, got)
			}
		}
	})

	t.Run("what was damaged is mended", func(t *testing.T) {
		before := node1.must(order{Do: "run", NS: ns1, Arguments: strings.Fields("ip route")})
		for _, c := range []struct{ ns, command string }{
			{"", "ip link del mpu-" + one.id},
			{"mp-" + one.id, "ip link del vxlan0"},
			{"mp-" + one.id, "nft delete table bridge multipaas"},
			{ns1, "ip route del 10.42.2.0/24"},
			{ns1, "ip route del unreachable 10.42.1.0/24"},
			{ns1, "ip route add 10.42.9.0/24 via 172.30.0.12 proto 109"},
			{ns3, "ip link del eth0"},
		} {
			node1.must(order{Do: "run", NS: c.ns, Arguments: strings.Fields(c.command)})
		}
		node1.must(order{Do: "attach", Network: one.network(1)})
		one.attachMachine(1, m3)
		if after := node1.must(order{Do: "run", NS: ns1, Arguments: strings.Fields("ip route")}); before != after {
			t.Errorf("routes: got\n%s\nwant\n%s", after, before)
		}
		node1.must(order{Do: "reach", NS: ns1, From: "10.42.1.5", To: "10.42.2.5"})
		node1.must(order{Do: "reach", NS: ns3, To: "172.30.0.12"})
		node1.must(order{Do: "reachTCP", NS: ns1, To: "198.51.100.1:80"})
	})

	t.Run("a machine that knew the network as one of neighbours", func(t *testing.T) {
		for _, c := range []struct{ ns, link, address string }{{ns1, machineLink, m1.Address.String()}, {"mp-" + one.id, bridgeName, "172.30.8.1"}} {
			for _, command := range []string{"ip address add " + c.address + "/20 dev " + c.link, "ip address del " + c.address + "/32 dev " + c.link} {
				node1.must(order{Do: "run", NS: c.ns, Arguments: strings.Fields(command)})
			}
		}
		node1.must(order{Do: "attach", Network: one.network(1)})
		one.attachMachine(1, m1)
		for _, ns := range []string{ns1, "mp-" + one.id} {
			if got := node1.must(order{Do: "run", NS: ns, Arguments: strings.Fields("ip route show scope link")}); strings.Contains(got, "/20") {
				t.Errorf("%s looks for everybody:\n%s", ns, got)
			}
			node1.must(order{Do: "reach", NS: ns, To: "172.30.0.12"})
		}
	})

	t.Run("a machine moves", func(t *testing.T) {
		node1.must(order{Do: "detachMachine", Machine: m3})
		for i := range one.members {
			if one.members[i].Address == m3.Address {
				one.members[i].Host = node2.address
			}
		}
		one.attach(t)
		moved := one.attachMachine(2, m3)
		node1.must(order{Do: "reach", NS: ns1, To: m3.Address.String()})
		node2.must(order{Do: "reach", NS: moved, To: m1.Address.String()})
	})

	t.Run("nothing is left", func(t *testing.T) {
		if got, want := node1.must(order{Do: "machines"}), m1.UID+" "+o1.UID; got != want {
			t.Errorf("machines: got %q, want %q", got, want)
		}
		node1.must(order{Do: "detachMachine", Machine: m1})
		node1.must(order{Do: "detachMachine", Machine: m1})
		node1.must(order{Do: "detach", ID: one.id})
		node1.must(order{Do: "detach", ID: one.id})
		node1.must(order{Do: "reach", NS: other, To: "172.30.0.1"})
		// Half of it is gone, and the agent is a new one.
		node1.must(order{Do: "restart"})
		node1.must(order{Do: "run", Arguments: strings.Fields("ip link del mpu-" + two.id)})
		if got := node1.must(order{Do: "attached"}); got != two.id {
			t.Errorf("attached: got %q, want %q", got, two.id)
		}
		node1.must(order{Do: "detach", ID: two.id}) // with its machine
		for command, want := range map[string]string{
			"ls /run/netns":                     ".*",
			"ip -o link":                        "lo eth0",
			"nft list ruleset":                  "",
			"cat /proc/sys/net/ipv4/ip_forward": "0",
		} {
			got := node1.must(order{Do: "run", Arguments: strings.Split(command, " ")})
			switch want {
			case ".*":
				if strings.Contains(got, "mp") {
					t.Errorf("%s: %s", command, got)
				}
			case "lo eth0":
				if n := strings.Count(got, " mtu "); n != 2 {
					t.Errorf("%s: %s", command, got)
				}
			default:
				if strings.TrimSpace(got) != want {
					t.Errorf("%s: %s", command, got)
				}
			}
		}
	})
}

// receiveOn listens on one host and sends frames, in order, from another.
func receiveOn(t *testing.T, from, on *testHost, fromNS, onNS, address string, frames ...[]byte) string {
	t.Helper()
	return receiveAfter(t, on, onNS, address, func() {
		for _, f := range frames {
			from.must(order{Do: "send", NS: fromNS, Link: machineLink, Frame: f})
		}
	})
}

// receiveAfter listens on a host and returns what comes first.
func receiveAfter(t *testing.T, on *testHost, onNS, address string, send func()) string {
	t.Helper()
	if err := on.in.Encode(order{Do: "receiveUDP", NS: onNS, To: address}); err != nil {
		t.Fatal(err)
	}
	var ready answer
	if err := on.out.Decode(&ready); err != nil || ready.Out != "listening" {
		t.Fatal(err, ready)
	}
	send()
	var a answer
	if err := on.out.Decode(&a); err != nil || a.Error != "" {
		t.Fatal(err, a.Error)
	}
	return a.Out
}

func same(t *testing.T, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("changed:\n- %s\n+ %s", b[i], a[i])
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d lines before, %d after", len(b), len(a))
	}
}

func udpFrame(srcMAC, dstMAC string, src, dst netip.Addr, payload string) []byte {
	s, _ := net.ParseMAC(srcMAC)
	d, _ := net.ParseMAC(dstMAC)
	b := append(append([]byte{}, d...), s...)
	b = append(b, 8, 0)
	ip := make([]byte, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(ip[20:], 5555)
	binary.BigEndian.PutUint16(ip[22:], 9999)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	return append(append(b, ip...), payload...)
}

func tagged(frame []byte) []byte {
	b := append([]byte{}, frame[:12]...)
	return append(append(b, 0x81, 0, 0, 0), frame[12:]...)
}

// arpFrame says, unasked and to all, that address is at mac.
func arpFrame(from, mac string, address netip.Addr) []byte {
	s, _ := net.ParseMAC(from)
	m, _ := net.ParseMAC(mac)
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, s...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	b = append(append(b, m...), address.AsSlice()...)
	return append(append(b, m...), address.AsSlice()...)
}

func TestCheck(t *testing.T) {
	n := New(Config{})
	good := newSite(0x2a, []*testHost{{address: netip.MustParseAddr("10.99.0.1")}}).network(0)
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	for name, break1 := range map[string]func(*wire.Network){
		"id":      func(a *wire.Network) { a.ID = "../../x" },
		"vni":     func(a *wire.Network) { a.VNI++ },
		"gateway": func(a *wire.Network) { a.Gateway = netip.MustParsePrefix("10.0.0.1/8") },
		"mac":     func(a *wire.Network) { a.MAC = "x" },
		"member": func(a *wire.Network) {
			a.Members = []wire.Member{{Address: netip.MustParseAddr("10.0.0.1"), MAC: a.MAC, Host: netip.MustParseAddr("10.99.0.1")}}
		},
	} {
		bad := good
		break1(&bad)
		if err := n.Attach(t.Context(), bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestShareOfConnections: appliance/kernel.go makes room for 16,384 connections for
// each GiB of memory.
func TestShareOfConnections(t *testing.T) {
	for what, most := range map[string]int{
		"through a host": maxConnections + newBurst + closedFor*newConnections, "at the front door": doorOpen + doorBurst + closedFor*doorNew,
	} {
		if most > 16384 {
			t.Errorf("a workspace takes %d places %s", most, what)
		}
	}
}

// TestTakePlaces: Debian's kernel keeps each entry of a bridge for no VLAN and for
// VLAN 1. One was taken for superfluous, and removing it removed both.
func TestTakePlaces(t *testing.T) {
	const bridge, vxlan, port = 2, 3, 5
	far, near, gone := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 3}
	entry := func(mac net.HardwareAddr, on, vlan, state int) netlink.Neigh {
		return netlink.Neigh{HardwareAddr: mac, LinkIndex: on, MasterIndex: bridge, Vlan: vlan, State: state}
	}
	const static, own = netlink.NUD_NOARP, netlink.NUD_PERMANENT
	for _, c := range []struct {
		name           string
		have           []netlink.Neigh
		missing, wrong int
	}{
		{"nothing is there", nil, 2, 0},
		{"all, on a kernel without VLANs", []netlink.Neigh{entry(far, vxlan, 0, static), entry(near, port, 0, static)}, 0, 0},
		{"all, twice each", []netlink.Neigh{entry(far, vxlan, 1, static), entry(far, vxlan, 0, static), entry(near, port, 0, static), entry(near, port, 1, static)}, 0, 0},
		{"for a VLAN only", []netlink.Neigh{entry(far, vxlan, 1, static), entry(near, port, 0, static)}, 1, 0},
		{"one has moved", []netlink.Neigh{entry(far, port, 1, static), entry(far, port, 0, static), entry(near, port, 0, static)}, 1, 2},
		{"one was learned", []netlink.Neigh{entry(far, vxlan, 0, netlink.NUD_REACHABLE), entry(near, port, 0, static)}, 1, 1},
		{"one is a member no more", []netlink.Neigh{entry(far, vxlan, 0, static), entry(near, port, 0, static), entry(gone, vxlan, 1, static), entry(gone, vxlan, 0, static)}, 0, 2},
		{"a port's own and another bridge's", []netlink.Neigh{entry(gone, port, 0, own), {HardwareAddr: gone, LinkIndex: 9, MasterIndex: 8, State: static}}, 2, 0},
	} {
		missing := map[string]int{string(far): vxlan, string(near): port}
		wrong := takePlaces(missing, c.have, bridge)
		if len(missing) != c.missing || len(wrong) != c.wrong {
			t.Errorf("%s: got %d missing, %d wrong, want %d and %d", c.name, len(missing), len(wrong), c.missing, c.wrong)
		}
	}
}

// TestNamespaceOfOtherUsers: an agent that knew less of a machine has made its
// namespace.
func TestNamespaceOfOtherUsers(t *testing.T) {
	n := New(Config{Underlay: netip.MustParseAddr("192.0.2.1")})
	m := machinePort{UID: fmt.Sprintf("mptest-users-%d", os.Getpid())}
	t.Cleanup(func() {
		if err := netns.Remove(m.namespace()); err != nil {
			t.Error(err)
		}
	})
	// made says whether it is the host's own, and which one it is.
	made := func() (ours bool, which uint64) {
		ns, err := n.makeNamespace(m)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		users, ours, err := ns.Owner()
		if err != nil {
			t.Fatal(err)
		}
		users.Close()
		var st unix.Stat_t
		if err := unix.Stat(ns.Path(), &st); err != nil {
			t.Fatal(err)
		}
		return ours, st.Ino
	}
	if ours, _ := made(); !ours {
		t.Error("one of no users is not the host's")
	}
	m.FirstUID = 0x0ffd_0000
	ours, first := made()
	if ours {
		t.Error("one of the host's is taken for a machine with users of its own")
	}
	if ours, again := made(); ours || again != first {
		t.Error("one that is right is made anew")
	}
}
