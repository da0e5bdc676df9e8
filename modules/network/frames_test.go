package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
)

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
