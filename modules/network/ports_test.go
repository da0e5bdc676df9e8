package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestPortsOf(t *testing.T) {
	var ranges []portRange
	for place := range placesOfOwn {
		ranges = append(ranges, ownPorts(place))
	}
	for third := range thirds {
		ranges = append(ranges, sharedPorts(third))
	}
	slices.SortFunc(ranges, func(a, b portRange) int { return int(a.first) - int(b.first) })
	next := dynamicPorts
	for _, r := range ranges {
		if int(r.first) != next || r.last < r.first {
			t.Errorf("ports %d to %d, want them from %d", r.first, r.last, next)
		}
		next = int(r.last) + 1
	}
	if next != 1<<16 {
		t.Errorf("ports end before %d", next)
	}
	if n := fewOpen + fewBurst + closedFor*fewMinute/60; n > portsOfOwn {
		t.Errorf("a workspace takes %d of its %d own ports", n, portsOfOwn)
	}
	if n := newConnections * closedFor; n > portsShared {
		t.Errorf("a workspace may begin what takes %d of %d ports", n, portsShared)
	}
	seen := map[int]bool{}
	for i := range uint32(placesOfOwn) {
		a := netip.AddrFrom4([4]byte{100, 64, byte(2 * i >> 8), byte(2 * i)})
		seen[placeOf(a)] = true
	}
	if len(seen) != placesOfOwn {
		t.Errorf("%d uplinks have %d places", placesOfOwn, len(seen))
	}
}

// TestPorts: a workspace has ports of its own towards each destination, and shares others
// with a third of all. When these are taken, it goes on with its own.
func TestPorts(t *testing.T) {
	hosts := newHosts(t, 2)
	server, node := hosts[0], hosts[1]
	const outside = "198.51.100.1"
	server.must(order{Do: "address", Link: "lo", To: outside + "/32"})
	node.must(order{Do: "run", Arguments: strings.Fields("ip route add default via " + server.address.String())})
	type workspace struct {
		place      int
		ns, uplink string
	}
	var all []workspace
	for place := 0x30; place < 0x34; place++ { // of the first third, the second, the third, the first
		s := newSite(uint32(place), hosts)
		m := s.machine(1, 1)
		s.attach(t)
		w := workspace{place: place, ns: s.attachMachine(1, m)}
		s.attach(t)
		node.must(order{Do: "reach", NS: w.ns, To: outside})
		out := node.must(order{Do: "run", Arguments: strings.Fields("ip -o -4 addr show mpu-" + s.id)})
		local := netip.MustParsePrefix(strings.Fields(out)[3]).Addr()
		if got := placeOf(local); got != place {
			t.Fatalf("the uplink of %s is %v: place %d", s.id, local, got)
		}
		w.uplink = local.Next().String()
		all = append(all, w)
	}
	// floodOnce makes the workspace send from so many ports of a machine, and says which ports
	// of the host it has then, of its own and others.
	floodOnce := func(w workspace, to, count int) (own, others []int) {
		node.must(order{Do: "floodUDP", NS: w.ns, To: fmt.Sprintf("%s:%d", outside, to), Arguments: []string{strconv.Itoa(count)}})
		pattern := fmt.Sprintf(`s/.* src=%s dst=%s .* dport=%d .* src=%s .* dport=\([0-9]*\).*/\1/p`, w.uplink, outside, to, outside)
		for text := range strings.FieldsSeq(node.must(order{Do: "run", Arguments: []string{"sed", "-n", pattern, "/proc/net/nf_conntrack"}})) {
			port, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			switch mine, shared := ownPorts(w.place), sharedPorts(w.place); {
			case port >= int(mine.first) && port <= int(mine.last):
				own = append(own, port)
			case port >= int(shared.first) && port <= int(shared.last):
				others = append(others, port)
			default:
				t.Errorf("place %#x has port %d of the host", w.place, port)
			}
		}
		return own, others
	}
	const count = 300
	// flood sees so many ports at least, or tries once more, from the same: the kernel shows
	// its table by pages, counts what it has shown, and leaves out an entry when one before it ends.
	flood := func(w workspace, to, atLeast int) (own, others []int) {
		for range 5 {
			if own, others = floodOnce(w, to, count); len(own)+len(others) >= atLeast {
				break
			}
		}
		return own, others
	}
	for i, to := range []int{9, 10, 9} { // each destination is counted for itself
		w := all[i/2]
		if own, others := flood(w, to, count); len(own) != fewOpen || len(others) != count-fewOpen {
			t.Errorf("place %#x has %d ports of its own and %d others towards port %d, want %d and %d", w.place, len(own), len(others), to, fewOpen, count-fewOpen)
		}
	}
	shared := sharedPorts(0x33)
	node.must(order{Do: "takePorts", From: node.address.String(), To: outside + ":9", Arguments: []string{fmt.Sprint(shared.first), fmt.Sprint(shared.last)}})
	if own, others := flood(all[3], 9, fewOpen); len(own) != fewOpen || len(others) != 0 {
		t.Errorf("when others have taken all ports that it shares, place %#x has %d of its own and %d others, want %d and none", all[3].place, len(own), len(others), fewOpen)
	}
	if own, others := flood(all[2], 9, count); len(own) != fewOpen || len(others) != count-fewOpen {
		t.Errorf("when those of another third are taken, place %#x has %d ports of its own and %d others", all[2].place, len(own), len(others))
	}
}
