package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

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
