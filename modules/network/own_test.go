package network

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestOwnAddresses: what a host has besides its address on the platform's network is
// known at once when it comes or goes, wherever it stands; what is nobody else's way to
// it is not among it.
func TestOwnAddresses(t *testing.T) {
	hosts := newHosts(t, 2)
	node := hosts[1]
	one := newSite(0x2a, hosts)
	one.attach(t) // with an uplink, which is no address for others
	run := func(command string) { t.Helper(); node.must(order{Do: "run", Arguments: strings.Fields(command)}) }
	run("ip addr add 10.9.0.7/24 dev lo")
	node.must(order{Do: "watchOwn"})
	await := func(want string) { t.Helper(); node.must(order{Do: "awaitOwn", To: want}) }
	await("[10.9.0.7]")
	for _, c := range []struct{ command, want string }{
		{"ip addr add 203.0.113.7/32 dev lo", "[10.9.0.7 203.0.113.7]"},
		{"ip link add second type veth peer name far", ""},
		{"ip addr add 198.51.100.7/24 dev second", "[10.9.0.7 198.51.100.7 203.0.113.7]"}, // a link that is down has it too
		{"ip addr add 169.254.7.7/16 dev second", ""},                                     // link-local
		{"ip addr add 127.0.0.7/8 dev lo", ""},
		{"ip addr add 2001:db8::7/64 dev second", ""}, // tenants have no IPv6
		{"ip addr del 10.9.0.7/24 dev lo", "[198.51.100.7 203.0.113.7]"},
		{"ip addr add 203.0.113.7/32 dev second", ""}, // a second time
		{"ip addr del 203.0.113.7/32 dev lo", ""},
		{"ip link del second", "[]"},
	} {
		run(c.command)
		if c.want != "" {
			await(c.want)
		}
	}
	// A hundred at once, as when a service's host is switched off.
	var script strings.Builder
	for i := range 100 {
		script.WriteString("ip addr add " + netip.AddrFrom4([4]byte{10, 9, 1, byte(i)}).String() + "/32 dev lo\n")
	}
	node.must(order{Do: "run", Arguments: []string{"sh", "-c", script.String()}})
	await("10.9.1.99]")
}

// TestOwnAddressesEnd: who follows them ends when it is told to.
func TestOwnAddressesEnd(t *testing.T) {
	t.Parallel()
	own := NewOwnAddresses(netip.MustParseAddr("192.0.2.1"), nil)
	ctx, stop := context.WithCancel(t.Context())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- own.Run(ctx, func() { close(ready) }) }()
	<-ready
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// TestOtherAddressesOfHosts: a tenant reaches no address of another host, whatever egress
// lets him, and whoever has it now.
func TestOtherAddressesOfHosts(t *testing.T) {
	hosts := newHosts(t, 3)
	node1, node2 := hosts[1], hosts[2]
	one := newSite(0x2a, hosts)
	m1 := one.machine(1, 1)
	one.attach(t)
	ns := one.attachMachine(1, m1)
	one.attach(t)
	second, virtual, free := "10.9.0.7", "203.0.113.7", "203.0.113.8"
	for _, a := range []string{second, virtual, free} {
		node2.must(order{Do: "address", Link: "lo", To: a + "/32"})
		node1.must(order{Do: "run", Arguments: strings.Fields("ip route add " + a + "/32 via " + node2.address.String())})
	}
	node2.must(order{Do: "run", Arguments: strings.Fields("ip route add 172.30.0.0/20 via " + node1.address.String())})
	ports := []string{"22", "80", "443", "5432", "24007", "49152"} // of shared volumes the last two
	for _, p := range ports {
		node2.must(order{Do: "listenTCP", To: "0.0.0.0:" + p})
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	for _, egress := range []Egress{{}, {Private: true}, {Allow: []netip.Prefix{all}}, {Allow: []netip.Prefix{single(netip.MustParseAddr(second)), single(netip.MustParseAddr(virtual))}}} {
		n := one.network(1)
		// As before anybody has told: it is the rule that shuts them.
		node1.must(order{Do: "attach", Network: n, Egress: egress})
		for _, a := range []string{second, virtual, free} {
			got, err := node1.do(order{Do: "reachTCP", NS: ns, To: a + ":22"})
			if lets := egress.Lets(netip.MustParseAddr(a)); lets != (err == nil) {
				t.Errorf("%+v lets a machine go to %s: %v, and it gets %q, %v", egress, a, lets, got, err)
			}
		}
		n.Hosts = append(n.Hosts, netip.MustParseAddr(second), netip.MustParseAddr(virtual))
		node1.must(order{Do: "attach", Network: n, Egress: egress})
		for _, from := range []string{ns, "mp-" + one.id}[:min(2, 1+len(egress.Allow))] {
			var to []string
			for _, p := range ports {
				to = append(to, second+":"+p, virtual+":"+p)
			}
			if got := node1.must(order{Do: "dialAll", NS: from, Arguments: to}); got != "" {
				t.Errorf("%+v: %s reached %s", egress, from, got)
			}
			if _, err := node1.do(order{Do: "ping", NS: from, To: second}); err == nil {
				t.Errorf("%+v: %s pinged %s", egress, from, second)
			}
		}
		if got, err := node1.do(order{Do: "reachTCP", NS: ns, To: free + ":22"}); err != nil {
			t.Errorf("%+v: nobody's host: %q, %v", egress, got, err)
		}
	}
}

func TestWhereEgressLets(t *testing.T) {
	t.Parallel()
	prefixes := func(texts string) (all []netip.Prefix) {
		for _, text := range strings.Fields(texts) {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	for _, c := range []struct {
		egress   Egress
		lets, no string
	}{
		{Egress{}, "203.0.113.9 8.8.8.8 100.63.255.255 100.128.0.0 172.32.0.0", "10.1.2.3 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 169.254.169.254 127.0.0.1 224.0.0.1 255.255.255.255 0.0.0.0 fd00::1 2001:db8::1"},
		{Egress{Private: true}, "10.1.2.3 192.168.0.1 203.0.113.9", "169.254.169.254 127.0.0.1 fe80::1 fd00::1"},
		{Egress{Allow: prefixes("10.1.0.0/16 fd00::/8")}, "10.1.2.3 203.0.113.9", "10.2.0.1 192.168.0.1 fd00::1"},
		{Egress{Allow: prefixes("10.1.0.0/16"), Deny: prefixes("10.1.2.0/24 203.0.113.0/24")}, "10.1.3.1 8.8.8.8", "10.1.2.3 203.0.113.9"},
	} {
		for want, texts := range map[bool]string{true: c.lets, false: c.no} {
			for _, text := range strings.Fields(texts) {
				if got := c.egress.Lets(netip.MustParseAddr(text)); got != want {
					t.Errorf("%+v lets go to %s: %v", c.egress, text, got)
				}
			}
		}
	}
}
