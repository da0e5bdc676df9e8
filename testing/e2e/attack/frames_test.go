package attack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/multipaas/multipaas/modules/wire"
)

// crafted is one or several frames that are one attempt. Each carries the mark.
type crafted struct {
	what   string
	frames [][]byte
	mark   string
	may    extent
}

// extent is how far a packet may come.
type extent string

const (
	stays  extent = "stays in A's machine"
	inside extent = "stays in A's network: the server's place in it gets it, and sends it on to nobody"
	// The server has an uplink of A's, which ends where the server lets in what is for its
	// front door.
	through extent = "comes to the end of A's own uplink at most"
)

// maker makes frames of one sender; it collects them.
type maker struct {
	t    testing.TB
	from place
	all  []crafted
	door netip.Addr // the server's address, to which A's machine knows a way of its own
	by   netip.Addr // the member to which goes what is for beyond; none: the gateway
}

func mac(s string) net.HardwareAddr {
	m, _ := net.ParseMAC(s)
	return m
}

func payload(mark string) gopacket.Payload { return gopacket.Payload("mpattack:" + mark) }

func (m *maker) frame(parts ...gopacket.SerializableLayer) []byte {
	m.t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...); err != nil {
		m.t.Fatal(err)
	}
	return slices.Clone(buf.Bytes())
}

func (m *maker) add(what string, make func(mark string) [][]byte) {
	c := crafted{what: what, mark: newMark(), may: stays}
	c.frames = make(c.mark)
	switch f := c.frames[0]; {
	case m.by.IsValid():
		c.may = through
	case len(f) < 38 || f[12] != 8 || f[13] != 0 || m.from.Address == "" || plan.Nodes.Contains(netip.MustParseAddr(m.from.Address)) ||
		netip.AddrFrom4([4]byte(f[30:34])) != m.door:
	case f[14] == 0x45 && f[23] == 6 && f[36] == 443>>8 && f[37] == 443&255:
		c.may = through // from a pod, which its machine sends on
	default:
		c.may = inside
	}
	m.all = append(m.all, c)
}

// ethernet carries IPv4 to an address, from the sender's own hardware address:
// from a machine straight to members of its network, else to the gateway.
func (m *maker) ethernet(to netip.Addr) *layers.Ethernet {
	e := &layers.Ethernet{SrcMAC: mac(m.from.MAC), DstMAC: mac(m.from.GatewayMAC), EthernetType: layers.EthernetTypeIPv4}
	if plan.Nodes.Contains(to) && plan.Nodes.Contains(netip.MustParseAddr(m.from.Address)) {
		e.DstMAC = mac(wire.MAC(to))
	} else if m.by.IsValid() {
		e.DstMAC = mac(wire.MAC(m.by))
	}
	return e
}

func header(from, to netip.Addr, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
}

func (m *maker) udp(e *layers.Ethernet, from, to netip.Addr, port uint16, inside ...gopacket.SerializableLayer) []byte {
	ip := header(from, to, layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: 40405, DstPort: layers.UDPPort(port)}
	_ = u.SetNetworkLayerForChecksum(ip)
	return m.frame(append([]gopacket.SerializableLayer{e, ip, u}, inside...)...)
}

// syn asks for a connection to port 443, with data.
func (m *maker) syn(from, to netip.Addr, mark string) []byte {
	ip := header(from, to, layers.IPProtocolTCP)
	tcp := &layers.TCP{SrcPort: 40405, DstPort: 443, SYN: true, Seq: 1, Window: 1024}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return m.frame(m.ethernet(to), ip, tcp, payload(mark))
}

// protocols sends one packet of every protocol to an address.
func (m *maker) protocols(from, to netip.Addr, what string) {
	m.add("UDP to "+what, func(mark string) [][]byte {
		return [][]byte{m.udp(m.ethernet(to), from, to, watchPort, payload(mark))}
	})
	m.add("TCP SYN with data to "+what, func(mark string) [][]byte { return [][]byte{m.syn(from, to, mark)} })
	m.add("TCP RST out of nothing to "+what, func(mark string) [][]byte {
		ip := header(from, to, layers.IPProtocolTCP)
		tcp := &layers.TCP{SrcPort: 40405, DstPort: 7443, RST: true, ACK: true, Seq: 1, Window: 1024}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		return [][]byte{m.frame(m.ethernet(to), ip, tcp, payload(mark))}
	})
	for name, code := range map[string]layers.ICMPv4TypeCode{
		"ICMP echo":                 layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0),
		"ICMP timestamp":            layers.CreateICMPv4TypeCode(layers.ICMPv4TypeTimestampRequest, 0),
		"ICMP redirect":             layers.CreateICMPv4TypeCode(layers.ICMPv4TypeRedirect, layers.ICMPv4CodeHost),
		"ICMP fragmentation needed": layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded),
	} {
		m.add(name+" to "+what, func(mark string) [][]byte {
			return [][]byte{m.frame(m.ethernet(to), header(from, to, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: code, Id: 7, Seq: 1}, payload(mark))}
		})
	}
	for _, p := range []layers.IPProtocol{layers.IPProtocolIGMP, layers.IPProtocolIPv4, layers.IPProtocolIPv6, layers.IPProtocolGRE, layers.IPProtocolESP, layers.IPProtocolSCTP, 112, 253} {
		m.add(fmt.Sprintf("IP protocol %d to %s", p, what), func(mark string) [][]byte {
			return [][]byte{m.frame(m.ethernet(to), header(from, to, p), payload(mark))}
		})
	}
}

// oddities are packets that filters get wrong: options and fragments.
func (m *maker) oddities(from, to, via netip.Addr, what string) {
	route := func(kind uint8) layers.IPv4Option {
		hops := append(via.AsSlice(), to.AsSlice()...)
		return layers.IPv4Option{OptionType: kind, OptionLength: uint8(3 + len(hops)), OptionData: append([]byte{4}, hops...)}
	}
	for name, o := range map[string]layers.IPv4Option{
		"loose source route":  route(131),
		"strict source route": route(137),
		"record route":        {OptionType: 7, OptionLength: 11, OptionData: append([]byte{4}, make([]byte, 8)...)},
		"timestamps":          {OptionType: 68, OptionLength: 12, OptionData: append([]byte{5, 0}, make([]byte, 8)...)},
		"router alert":        {OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}},
	} {
		// To the first hop of the route, or straight there.
		for where, first := range map[string]netip.Addr{"": to, " by way of " + via.String(): via} {
			if first == via && o.OptionType != 131 && o.OptionType != 137 {
				continue
			}
			m.add(fmt.Sprintf("%s%s to %s", name, where, what), func(mark string) [][]byte {
				ip := header(from, first, layers.IPProtocolUDP)
				ip.Options = []layers.IPv4Option{o}
				u := &layers.UDP{SrcPort: 40405, DstPort: watchPort}
				_ = u.SetNetworkLayerForChecksum(ip)
				return [][]byte{m.frame(m.ethernet(first), ip, u, payload(mark))}
			})
			if first == via {
				m.all[len(m.all)-1].may = inside
			}
		}
	}
	fragment := func(id, offset uint16, more bool, data []byte) []byte {
		ip := header(from, to, layers.IPProtocolUDP)
		ip.Id, ip.FragOffset = id, offset
		if more {
			ip.Flags = layers.IPv4MoreFragments
		}
		return m.frame(m.ethernet(to), ip, gopacket.Payload(data))
	}
	datagram := func(mark string) []byte {
		return m.udp(m.ethernet(to), from, to, watchPort, payload(mark+" mpattack:"+mark+" mpattack:"+mark))[34:]
	}
	m.add("tiny fragments to "+what, func(mark string) (all [][]byte) {
		data := datagram(mark)
		for at := 0; at < len(data); at += 8 {
			end := min(at+8, len(data))
			all = append(all, fragment(0x1111, uint16(at/8), end < len(data), data[at:end]))
		}
		return all
	})
	m.add("overlapping fragments to "+what, func(mark string) [][]byte {
		data := datagram(mark)
		return [][]byte{fragment(0x2222, 0, true, data[:40]), fragment(0x2222, 1, true, data[8:32]), fragment(0x2222, 5, false, data[40:])}
	})
	m.add("a last fragment without a first to "+what, func(mark string) [][]byte {
		return [][]byte{fragment(0x3333, 8, false, []byte("mpattack:"+mark))}
	})
}

// vxlan wraps a frame in a packet to a host's VXLAN port.
func (m *maker) vxlan(from, host netip.Addr, vni uint32, mark, innerFrom, innerTo string) []byte {
	inner := m.udp(&layers.Ethernet{SrcMAC: mac(wire.MAC(netip.MustParseAddr(innerFrom))), DstMAC: mac(wire.MAC(netip.MustParseAddr(innerTo))), EthernetType: layers.EthernetTypeIPv4},
		netip.MustParseAddr(innerFrom), netip.MustParseAddr(innerTo), watchPort, payload(mark))
	return m.udp(m.ethernet(host), from, host, 4789, &layers.VXLAN{ValidIDFlag: true, VNI: vni}, gopacket.Payload(inner))
}

// claim says by ARP that an address has a hardware address.
func (m *maker) claim(op uint16, to net.HardwareAddr, address netip.Addr, owner string, asked netip.Addr, mark string) []byte {
	return m.frame(&layers.Ethernet{SrcMAC: mac(m.from.MAC), DstMAC: to, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: mac(owner), SourceProtAddress: address.AsSlice(), DstHwAddress: to, DstProtAddress: asked.AsSlice()}, payload(mark))
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// links are frames that aren't IPv4: what speaks to switches and neighbours.
func (m *maker) links(spoofed map[string]netip.Addr) {
	for whose, address := range spoofed {
		m.add("ARP answer that claims "+whose, func(mark string) [][]byte {
			return [][]byte{m.claim(layers.ARPReply, broadcast, address, m.from.MAC, address, mark)}
		})
		m.add("ARP question from "+whose, func(mark string) [][]byte {
			return [][]byte{m.claim(layers.ARPRequest, broadcast, address, m.from.MAC, netip.MustParseAddr("172.30.0.1"), mark)}
		})
		m.add("ARP answer that claims "+whose+" for its own hardware address", func(mark string) [][]byte {
			return [][]byte{m.claim(layers.ARPReply, mac(m.from.GatewayMAC), address, wire.MAC(address), address, mark)}
		})
	}
	for name, tags := range map[string][]gopacket.SerializableLayer{
		"VLAN tag 1": {&layers.Dot1Q{VLANIdentifier: 1, Type: layers.EthernetTypeIPv4}},
		"VLAN tag 0": {&layers.Dot1Q{VLANIdentifier: 0, Type: layers.EthernetTypeIPv4}},
		"two VLAN tags": {&layers.Dot1Q{VLANIdentifier: 1, Type: layers.EthernetTypeDot1Q},
			&layers.Dot1Q{VLANIdentifier: 2, Type: layers.EthernetTypeIPv4}},
	} {
		m.add("a frame with "+name, func(mark string) [][]byte {
			tagged := m.ethernet(plan.Plane)
			tagged.EthernetType = layers.EthernetTypeDot1Q
			ip := header(netip.MustParseAddr("172.30.0.12"), plan.Plane, layers.IPProtocolUDP)
			u := &layers.UDP{SrcPort: 40405, DstPort: watchPort}
			_ = u.SetNetworkLayerForChecksum(ip)
			parts := append([]gopacket.SerializableLayer{tagged}, tags...)
			return [][]byte{m.frame(append(parts, ip, u, payload(mark))...)}
		})
	}
	for name, f := range map[string]struct {
		to   string
		kind layers.EthernetType
	}{
		"a spanning tree BPDU":  {"01:80:c2:00:00:00", layers.EthernetTypeLLC},
		"LLDP":                  {"01:80:c2:00:00:0e", layers.EthernetTypeLinkLayerDiscovery},
		"EAPOL":                 {"01:80:c2:00:00:03", layers.EthernetTypeEAPOL},
		"PPPoE":                 {"ff:ff:ff:ff:ff:ff", layers.EthernetTypePPPoEDiscovery},
		"an unknown EtherType":  {"ff:ff:ff:ff:ff:ff", 0x88b5},
		"a broadcast to nobody": {"ff:ff:ff:ff:ff:ff", 0x9000},
	} {
		m.add(name, func(mark string) [][]byte {
			return [][]byte{m.frame(&layers.Ethernet{SrcMAC: mac(m.from.MAC), DstMAC: mac(f.to), EthernetType: f.kind}, payload(mark))}
		})
	}
	m.ipv6()
}

// ipv6 tries what IPv6 has for neighbours. Workspaces have none.
func (m *maker) ipv6() {
	from, all := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	six := func(to netip.Addr, dst string, message gopacket.SerializableLayer, code layers.ICMPv6TypeCode, mark string) []byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		icmp := &layers.ICMPv6{TypeCode: code}
		_ = icmp.SetNetworkLayerForChecksum(ip)
		parts := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: mac(m.from.MAC), DstMAC: mac(dst), EthernetType: layers.EthernetTypeIPv6}, ip, icmp}
		if message != nil {
			parts = append(parts, message)
		}
		return m.frame(append(parts, payload(mark))...)
	}
	m.add("IPv6 router advertisement to all", func(mark string) [][]byte {
		return [][]byte{six(all, "33:33:00:00:00:01", &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800},
			layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRouterAdvertisement, 0), mark)}
	})
	m.add("IPv6 neighbour advertisement to all", func(mark string) [][]byte {
		return [][]byte{six(all, "33:33:00:00:00:01", &layers.ICMPv6NeighborAdvertisement{Flags: 0xa0, TargetAddress: from.AsSlice()},
			layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0), mark)}
	})
	m.add("IPv6 echo to all nodes", func(mark string) [][]byte {
		return [][]byte{six(all, "33:33:00:00:00:01", nil, layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0), mark)}
	})
	m.add("IPv6 to the gateway", func(mark string) [][]byte {
		return [][]byte{six(netip.MustParseAddr("2001:db8::1"), m.from.GatewayMAC, nil, layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0), mark)}
	})
}
