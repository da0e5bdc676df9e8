package network

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAddressTaken has a host take the address of another, and give it back.
func TestAddressTaken(t *testing.T) {
	hosts := newHosts(t, 3)
	first, other, neighbour := hosts[0], hosts[1], hosts[2]
	macOf := func(h *testHost) string { return h.attribute("", "eth0", "link/ether") }
	first.must(order{Do: "watchAddress"})
	first.must(order{Do: "awaitAddress", To: "free"})

	address := first.address.String()
	other.must(order{Do: "address", Link: "eth0", To: address + "/24"})
	said := first.must(order{Do: "awaitAddress", To: macOf(other)})
	if want := address + " is used by " + macOf(other) + " on eth0 too"; said != want {
		t.Errorf("said %q, want %q", said, want)
	}

	// A neighbour that heard the other one goes back to the first.
	neighbour.must(order{Do: "reach", To: address})
	neighbour.must(order{Do: "run", Arguments: strings.Fields("ip neigh replace " + address + " dev eth0 nud stale lladdr " + macOf(other))})
	table := ""
	for end := time.Now().Add(20 * time.Second); !strings.Contains(table, macOf(first)); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the neighbour was not told whose %s is: %s", address, table)
		}
		table = neighbour.must(order{Do: "run", Arguments: strings.Fields("ip neigh show " + address)})
	}

	other.must(order{Do: "run", Arguments: strings.Fields("ip address del " + address + "/24 dev eth0")})
	first.must(order{Do: "awaitAddress", To: "free"})

	// Of itself it has no fear, by whichever of its interfaces.
	first.must(order{Do: "run", Arguments: strings.Fields("ip link add second type veth peer name third")})
	first.must(order{Do: "run", Arguments: strings.Fields("ip link set third up")})
	mac, err := net.ParseMAC(first.attribute("", "second", "link/ether"))
	if err != nil {
		t.Fatal(err)
	}
	frame := append(append(bytes.Clone(broadcast), mac...), 8, 6)
	frame = append(frame, arpRequest(mac, first.address, first.address)...)
	stranger := bytes.Clone(frame)
	for _, at := range []int{6, 14 + 8} { // sender's hardware address, in Ethernet's header and in ARP's
		copy(stranger[at:], []byte{2, 0, 0, 0, 0, 9})
	}
	// Again and again, since between two looks nobody listens. Nobody answers for
	// the stranger: that it spoke is enough.
	var speaking sync.WaitGroup
	heard := make(chan struct{})
	speaking.Go(func() {
		for {
			select {
			case <-heard:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = neighbour.do(order{Do: "send", Link: "eth0", Frame: frame})
				_, _ = neighbour.do(order{Do: "send", Link: "eth0", Frame: stranger})
			}
		}
	})
	said, err = first.do(order{Do: "awaitAddress", To: "used by"})
	close(heard)
	speaking.Wait()
	if want := address + " is used by 02:00:00:00:00:09 on eth0 too"; err != nil || said != want {
		t.Fatalf("said %q, %v, want %q", said, err, want)
	}
	first.must(order{Do: "awaitAddress", To: "free"})

	// An interface that has gone is said, and found again.
	first.must(order{Do: "run", Arguments: strings.Fields("ip address del " + address + "/24 dev eth0")})
	first.must(order{Do: "awaitAddress", To: "unwatched: no interface has the address " + address})
	first.must(order{Do: "address", Link: "eth0", To: address + "/24"})
	first.must(order{Do: "awaitAddress", To: "free"})
}

func TestARP(t *testing.T) {
	mac, address := net.HardwareAddr{2, 3, 4, 5, 6, 7}, netip.MustParseAddr("192.0.2.1")
	good := arpRequest(mac, address, address)
	if got, sender, err := arpSender(append(bytes.Clone(good), make([]byte, 18)...)); err != nil || got.String() != mac.String() || sender != address {
		t.Errorf("got %v, %v, %v", got, sender, err)
	}
	for i := range good {
		if _, _, err := arpSender(good[:i]); err == nil {
			t.Errorf("took the first %d bytes of a packet", i)
		}
	}
	for i := range arpHeader {
		bad := bytes.Clone(good)
		bad[i]++
		if _, _, err := arpSender(bad); err == nil {
			t.Errorf("took a packet with another byte %d", i)
		}
	}
}
