package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestFrontDoor: machines and pods of two workspaces reach the ports of a server's
// front door, each workspace as itself wherever it runs, and nothing else of any host.
func TestFrontDoor(t *testing.T) {
	hosts := newHosts(t, 3)
	server, node1, node2 := hosts[0], hosts[1], hosts[2]
	second, hidden := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.3")
	for _, a := range []netip.Addr{second, hidden} {
		server.must(order{Do: "address", Link: "lo", To: a.String() + "/32"})
	}
	one, two := newSite(0x2a, hosts), newSite(0x802a, hosts)
	// The second one listens on one of the ports.
	one.door = Door{netip.AddrPortFrom(server.address, 80), netip.AddrPortFrom(server.address, 443), netip.AddrPortFrom(second, 443)}
	two.door = one.door
	m1, m2, o1 := one.machine(1, 1), one.machine(2, 2), two.machine(1, 1)
	for range 2 { // once more, with what is there
		one.attach(t)
		two.attach(t)
	}
	ns1, ns2, other := one.attachMachine(1, m1), one.attachMachine(2, m2), two.attachMachine(1, o1)
	one.attach(t)
	two.attach(t)
	pod, ofTwo := "10.42.1.5", "10.42.1.6"
	node1.must(order{Do: "address", NS: ns1, Link: "lo", To: pod + "/32"})
	node1.must(order{Do: "address", NS: other, Link: "lo", To: ofTwo + "/32"})
	for _, p := range []string{"80", "443", "22", "7444"} {
		server.must(order{Do: "listenTCP", To: "0.0.0.0:" + p, Link: "who"})
		node2.must(order{Do: "listenTCP", To: "0.0.0.0:" + p})
	}
	plane := wire.DefaultPlan().Plane
	// uplink is the address by which the server knows a workspace.
	uplink := func(s *site) string {
		return strings.TrimSpace(server.must(order{Do: "run", NS: "mp-" + s.id, Arguments: []string{"sh", "-c",
			"ip -o -4 addr show uplink | awk '{print $4}' | cut -d/ -f1"}}))
	}
	uplinkOne, uplinkTwo := uplink(one), uplink(two)
	if uplinkOne == uplinkTwo || !uplinks.Contains(netip.MustParseAddr(uplinkOne)) {
		t.Fatalf("the workspaces are %q and %q", uplinkOne, uplinkTwo)
	}

	t.Run("a workspace is itself, from wherever", func(t *testing.T) {
		for _, c := range []struct {
			h              *testHost
			ns, from, seen string
		}{
			{node1, ns1, "", uplinkOne}, {node1, ns1, pod + ":0", uplinkOne}, {node2, ns2, "", uplinkOne},
			{node1, other, "", uplinkTwo}, {node1, other, ofTwo + ":0", uplinkTwo},
			// Whatever port it says: none means anything.
			{node1, ns1, pod + ":1", uplinkOne}, {node1, ns1, pod + ":443", uplinkOne}, {node1, other, ofTwo + ":443", uplinkTwo},
			{node1, ns1, "0.0.0.0:1023", uplinkOne}, {node1, ns1, "0.0.0.0:65535", uplinkOne}, {node1, other, "0.0.0.0:65535", uplinkTwo},
		} {
			for _, to := range []string{server.address.String() + ":80", server.address.String() + ":443", second.String() + ":443"} {
				got, err := c.h.do(order{Do: "reachTCP", NS: c.ns, From: c.from, To: to})
				if !strings.HasSuffix(got, " to "+c.seen) {
					t.Errorf("%s from %q to %s: got %q %v, want it as %s", c.ns, c.from, to, got, err, c.seen)
				}
			}
		}
		// Nobody else's answer: hosts are themselves.
		if got := node1.must(order{Do: "reachTCP", To: server.address.String() + ":443"}); !strings.HasSuffix(got, " to "+node1.address.String()) {
			t.Errorf("a host is taken for %q", got)
		}
	})

	t.Run("nothing else", func(t *testing.T) {
		shut := func(h *testHost, ns, from string, to ...string) {
			t.Helper()
			if got := h.must(order{Do: "dialAll", NS: ns, From: from, Arguments: to}); got != "" {
				t.Errorf("%s from %q reached %s", ns, from, got)
			}
		}
		server.must(order{Do: "listenTCP", NS: "mp-" + one.id, To: "172.30.0.1:443"})
		others := []string{hidden.String() + ":443", node2.address.String() + ":443", node1.address.String() + ":443", plane.String() + ":443",
			netip.MustParseAddr(uplinkOne).Prev().String() + ":443", netip.MustParseAddr(uplinkTwo).Prev().String() + ":443", uplinkTwo + ":443"}
		doors := []string{server.address.String() + ":443", second.String() + ":443"}
		others = append(others, second.String()+":80")
		for _, a := range []netip.Addr{server.address, second} {
			for _, p := range []string{"22", "7444", "4789", "2379", "81"} {
				others = append(others, a.String()+":"+p)
			}
			if _, err := node1.do(order{Do: "ping", NS: ns1, To: a.String()}); err == nil {
				t.Errorf("a machine pinged %v", a)
			}
		}
		for _, from := range []string{"", pod + ":0", pod + ":443", "0.0.0.0:80"} {
			shut(node1, ns1, from, others...)
		}
		shut(node2, ns2, "", others...)
		// What the plane's process says is not for the door.
		shut(server, "mp-"+one.id, "", append(doors, hidden.String()+":443")...)
		lead := func(address netip.Addr, via string) {
			node1.must(order{Do: "run", NS: ns1, Arguments: strings.Fields("ip route replace " + address.String() + " via " + via + " proto 109")})
		}
		// Another way there, as a machine's root may choose one.
		for _, via := range []string{one.plan.Gateway(1).String(), m2.Address.String(), one.plan.Gateway(2).String()} {
			lead(server.address, via)
			lead(second, via)
			shut(node1, ns1, "", doors...)
		}
		// And hosts by way of the server.
		for _, a := range []netip.Addr{node1.address, node2.address, hidden, netip.MustParseAddr(uplinkTwo)} {
			lead(a, plane.String())
		}
		shut(node1, ns1, "", others...)
		one.attach(t) // puts the routes right
		node1.must(order{Do: "reachTCP", NS: ns1, To: second.String() + ":443"})
	})

	t.Run("forged packets", func(t *testing.T) {
		// Counted where they would come out: whatever isn't the workspace itself at a
		// port of the door.
		count := func(id, address string) string {
			return fmt.Sprintf(`iifname "mpu-%s" ip saddr != %s counter name forged
iifname "mpu-%[1]s" meta l4proto != tcp counter name forged
iifname "mpu-%[1]s" tcp dport != { 80, 443 } counter name forged
iifname "mpu-%[1]s" tcp flags & (syn|rst) == rst counter name forged
`, id, address)
		}
		script := "table ip seen {\n counter forged {}\n chain first {\n type filter hook prerouting priority -400; policy accept;\n" +
			count(one.id, uplinkOne) + count(two.id, uplinkTwo) + "}\n}\n"
		server.must(order{Do: "run", Arguments: []string{"sh", "-c", "printf '%s' \"$0\" | nft -f -", script}})
		defer server.must(order{Do: "run", Arguments: strings.Fields("nft delete table ip seen")})
		mac, planeMAC := m1.MAC, wire.MAC(plane)
		var frames [][]byte
		for _, from := range []string{uplinkOne, uplinkTwo, netip.MustParseAddr(uplinkTwo).Prev().String(), server.address.String(), node1.address.String(), node2.address.String(),
			"127.0.0.1", "172.30.0.1", "172.30.0.12", "172.30.8.1", "10.42.2.5", "10.43.0.10", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.77"} {
			frames = append(frames, tcpFrame(mac, planeMAC, netip.MustParseAddr(from), server.address, 443, 0x02))
		}
		for _, from := range []netip.Addr{m1.Address, netip.MustParseAddr(pod)} {
			frames = append(frames,
				tcpFrame(mac, planeMAC, from, server.address, 443, 0x14),  // RST out of nothing
				tcpFrame(mac, planeMAC, from, server.address, 7444, 0x02), // a port that is none
				tcpFrame(mac, planeMAC, from, netip.MustParseAddr(uplinkTwo), 443, 0x02),
				tcpFrame(mac, planeMAC, from, hidden, 443, 0x02),
				udpFrame(mac, planeMAC, from, server.address, "x"),
				withProtocol(udpFrame(mac, planeMAC, from, server.address, "x"), unix.IPPROTO_ICMP),
				withProtocol(udpFrame(mac, planeMAC, from, server.address, "x"), unix.IPPROTO_GRE),
				withProtocol(udpFrame(mac, planeMAC, from, server.address, "x"), unix.IPPROTO_SCTP))
		}
		for _, f := range frames {
			node1.must(order{Do: "send", NS: ns1, Link: machineLink, Frame: f})
		}
		// An honest one by the same way, behind them.
		if got := node1.must(order{Do: "reachTCP", NS: ns1, To: server.address.String() + ":443"}); !strings.HasSuffix(got, " to "+uplinkOne) {
			t.Errorf("behind forged packets: got %q", got)
		}
		if got := server.must(order{Do: "run", Arguments: strings.Fields("nft list counter ip seen forged")}); !strings.Contains(got, "packets 0 ") {
			t.Errorf("of %d forged packets some came out of an uplink: %s", len(frames), got)
		}
	})

	t.Run("what is sent fits", func(t *testing.T) {
		for _, id := range []string{one.id, two.id} {
			if got := server.attribute("", "mpu-"+id, "mtu"); got != "1450" {
				t.Errorf("the server's end of an uplink has an MTU of %s, want the workspace's 1450", got)
			}
		}
	})

	t.Run("a host that is no server any more", func(t *testing.T) {
		one.door, two.door = nil, nil
		one.attach(t)
		two.attach(t)
		if out, err := node1.do(order{Do: "dialTCP", NS: ns1, To: server.address.String() + ":443"}); err == nil {
			t.Errorf("a machine reached it: %q", out)
		}
		if got := node1.must(order{Do: "run", NS: ns1, Arguments: []string{"ip", "route"}}); strings.Contains(got, server.address.String()) {
			t.Errorf("a machine's routes: %s", got)
		}
	})
}

// tcpFrame is a segment without data, from port 5555.
func tcpFrame(srcMAC, dstMAC string, src, dst netip.Addr, port uint16, flags byte) []byte {
	tcp := []byte{0x15, 0xb3, byte(port >> 8), byte(port), 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, flags, 4, 0, 0, 0, 0, 0}
	var sum uint32
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	for _, b := range [][]byte{pseudo, tcp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	tcp[16], tcp[17] = byte(^sum>>8), byte(^sum)
	f := udpFrame(srcMAC, dstMAC, src, dst, string(tcp[8:]))
	copy(f[14+20:], tcp)
	return withProtocol(f, unix.IPPROTO_TCP)
}

// withProtocol makes an IPv4 frame say that it carries another protocol.
func withProtocol(frame []byte, number byte) []byte {
	ip := frame[14:34]
	ip[9], ip[10], ip[11] = number, 0, 0
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	return frame
}
