package network

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// FuzzPacket reads any bytes from the wire as ARP and as an answer to our own
// question: what is taken for one is as long as it says and names who asked.
func FuzzPacket(f *testing.F) {
	f.Add(arpRequest([]byte{2, 3, 4, 5, 6, 7}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")))
	reply := make([]byte, 8+echoData)
	binary.BigEndian.PutUint16(reply[4:], 7)
	binary.BigEndian.PutUint16(reply[16:], 1500)
	f.Add(reply)
	e := &echo{id: 7}
	f.Fuzz(func(t *testing.T, data []byte) {
		mac, address, err := arpSender(data)
		if err == nil && (len(data) < arpLength || len(mac) != 6 || !address.Is4()) {
			t.Errorf("%x is of %v, %v", data, mac, address)
		}
		if q, ok := e.parse(data); ok && (len(data) < 8+echoData || q.size < 0 || q.size > 1<<16-1 || q.host.IsValid()) {
			t.Errorf("%x answers %+v", data, q)
		}
	})
}
