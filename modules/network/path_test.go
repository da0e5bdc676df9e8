package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/ipv4"
)

// TestNarrowPath has a switch that drops large packets without a word.
func TestNarrowPath(t *testing.T) {
	hosts := newHosts(t, 3)
	server, node1, node2 := hosts[0], hosts[1], hosts[2]
	s := newSite(0x2b, hosts)
	m1, m2 := s.machine(1, 1), s.machine(2, 2)
	s.attach(t)
	ns1, ns2 := s.attachMachine(1, m1), s.attachMachine(2, m2)
	s.attach(t)
	onSwitch := func(script string) {
		t.Helper()
		cmd := exec.Command("nsenter", "--net=/run/netns/"+switchName(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
	// The networks are made to fit right behind what a look has said: at the latest
	// the next but one says nothing before they do.
	fits := func(h *testHost, ns, mtu string) {
		t.Helper()
		for range 3 {
			if h.attribute(ns, machineLink, "mtu") == mtu {
				return
			}
			h.must(order{Do: "awaitPath"})
		}
		t.Fatalf("host %v: the machine's interface has an MTU of %s, want %s", h.address, h.attribute(ns, machineLink, "mtu"), mtu)
	}
	// Between namespaces a packet of TCP may be of 64 KB, cut by nobody: on a real
	// wire it is not.
	for _, h := range hosts {
		h.must(order{Do: "run", Arguments: strings.Fields("ip link set eth0 gso_max_segs 1")})
		h.must(order{Do: "watchPaths"})
	}
	for _, h := range []*testHost{server, node2} {
		node1.must(order{Do: "awaitPath", To: h.address.String() + ": <nil>"})
	}
	large := order{Do: "bulk", NS: ns1, To: "172.30.0.12:9000"}
	node2.must(order{Do: "listenBulk", NS: ns2, To: large.To})
	if got := node1.must(large); got != fmt.Sprint(bulk) {
		t.Fatalf("with nothing wrong %s bytes came of %d", got, bulk)
	}

	onSwitch("table bridge narrow {\n chain forward {\n type filter hook forward priority 0;\n oifname \"v2\" meta length > 1400 drop\n }\n}\n")
	said := node1.must(order{Do: "awaitPath", To: "those of 1400 do"}) // one of many may be lost at the first look
	if !strings.Contains(said, "packets of 1500 bytes") {
		t.Errorf("said %q", said)
	}
	// From the other side too, for what is sent back is dropped as well.
	node2.must(order{Do: "awaitPath", To: node1.address.String() + ": packets of 1500 bytes, as the interface sends them, don't get from " +
		node2.address.String() + " to " + node1.address.String() + " and back; those of 1400 do"})
	fits(node1, ns1, "1350")
	fits(node2, ns2, "1350")
	if got := node1.must(large); got != fmt.Sprint(bulk) {
		t.Errorf("over the narrow path %s bytes came of %d", got, bulk)
	}
	// The way to the server is as it was, from the host that has no narrow path.
	node2.must(order{Do: "awaitPath", To: server.address.String() + ": <nil>"})

	onSwitch("delete table bridge narrow\n")
	for _, h := range []*testHost{server, node2} {
		node1.must(order{Do: "awaitPath", To: h.address.String() + ": <nil>"})
	}
	node2.must(order{Do: "awaitPath", To: node1.address.String() + ": <nil>"})
	fits(node1, ns1, "1450")
	fits(node2, ns2, "1450")
	if got := node1.must(large); got != fmt.Sprint(bulk) {
		t.Errorf("after all %s bytes came of %d", got, bulk)
	}

	// Who answers nothing is not said to be narrow.
	server.must(order{Do: "run", Arguments: []string{"sh", "-c", "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all"}})
	node1.must(order{Do: "awaitPath"})
	node1.must(order{Do: "awaitPath", To: server.address.String() + ": <nil>"})
}

func TestEchoAnswers(t *testing.T) {
	e := &echo{id: 7, token: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	good := append([]byte{byte(ipv4.ICMPTypeEchoReply), 0, 0, 0, 0, 7, 0, 1}, e.token[:]...)
	good = append(good, 0x05, 0xdc, 0, 0, 0)
	if q, ok := e.parse(good); !ok || q != (question{netip.Addr{}, 1500}) {
		t.Errorf("got %v, %v", q, ok)
	}
	for i := range 18 {
		if _, ok := e.parse(good[:i]); ok {
			t.Errorf("took the first %d bytes of an answer", i)
		}
	}
	for _, i := range []int{0, 4, 5, 8, 15} {
		bad := bytes.Clone(good)
		bad[i]++
		if _, ok := e.parse(bad); ok {
			t.Errorf("took an answer with another byte %d", i)
		}
	}
}
