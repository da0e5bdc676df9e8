package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A host has 65,536 ports towards one port of one address outside, and all of its
// workspaces share them. Connections of workspaces get those that the host's own get too:
// none of the platform's, whose answers would be taken for them.
//
// A workspace's first connections towards a destination get ports that are its own, the
// others those that it shares with a third of the host's workspaces, so that two thirds
// hear nothing of one that takes all it can get, and everybody goes on, if slower, when
// many do. A third is what newConnections takes, and 2,192 that are open. Rejected: an
// equal share of all for each, which is too little for who calls one address all day;
// fewer connections for each, of which it takes some more workspaces to fill all ports.
const (
	dynamicPorts = 32768
	placesOfOwn  = 128 // workspaces on a host that have ports of their own; those beyond share them
	portsOfOwn   = 64
	thirds       = 3
	sharedFrom   = dynamicPorts + placesOfOwn*portsOfOwn
	portsShared  = (65536 - sharedFrom) / thirds

	// What ports of its own a workspace takes towards one destination: those of connections
	// that are open, and those of TCP that are closed, for closedFor seconds: 12 + 16 + 30 = 58
	// of the 64. The others are for connections from before rules changed.
	fewOpen   = 12
	fewMinute = 30
	fewBurst  = 16
)

// transports have ports.
var transports = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}

// portRange is of a host.
type portRange struct{ first, last uint16 }

func portsFrom(first, count int) portRange {
	return portRange{uint16(first), uint16(first + count - 1)}
}

// placeOf says which ports are those of the workspace with this address, the host's, on
// its uplink.
func placeOf(uplink netip.Addr) int {
	a := uplink.As4()
	return int(binary.BigEndian.Uint32(a[:])/2) % placesOfOwn
}

func ownPorts(place int) portRange { return portsFrom(dynamicPorts+place*portsOfOwn, portsOfOwn) }

func sharedPorts(place int) portRange {
	return portsFrom(sharedFrom+place%thirds*portsShared, portsShared)
}

// allShared are for workspaces that an earlier version has given other ports.
var allShared = portsFrom(sharedFrom, thirds*portsShared)

// hostPorts are the ranges among which the host itself does not move connections.
func hostPorts() []portRange {
	ranges := []portRange{portsFrom(dynamicPorts, placesOfOwn*portsOfOwn)}
	for third := range thirds {
		ranges = append(ranges, sharedPorts(third))
	}
	return ranges
}

// meters count a workspace's connections towards each destination. One that finds
// no place there has none of the workspace's own ports.
var meters = []nftables.Set{meter(unix.IPPROTO_TCP), meter(unix.IPPROTO_UDP)}

func meter(transport byte) nftables.Set {
	name := map[byte]string{unix.IPPROTO_TCP: "few-tcp", unix.IPPROTO_UDP: "few-udp"}[transport]
	return nftables.Set{Name: name, Dynamic: true, Size: 4096, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)}
}

// few matches a connection as long as there are few towards its destination, and not many new ones.
func few(transport byte) []expr.Any {
	const key = unix.NFT_REG32_00 // and the register behind it
	return []expr.Any{
		&expr.Payload{DestRegister: key, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Payload{DestRegister: key + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Dynset{SrcRegKey: key, SetName: meter(transport).Name, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: fewMinute, Unit: expr.LimitTimeMinute, Burst: fewBurst},
			&expr.Connlimit{Count: fewOpen},
		}},
	}
}

// portedRule has connections leave with some of the host's ports.
type portedRule struct {
	when  rule // what matches
	ports portRange
}

// portedChain is jumped to before what the rules in it don't match is masqueraded anyhow.
const portedChain = "ported"

// addPorted adds the rules to their chain, all or none. Not by the library, which leaves out
// of "masquerade to" that there are ports (it sends no flags with them): the kernel
// then takes any. Rejected: "snat to", which needs an address that may change; the
// MASQUERADE of the older tables, which works in a table called "nat" only.
func addPorted(t *nftables.Table, rules []portedRule) (err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	header := func(family nftables.TableFamily, resource uint16) []byte { // struct nfgenmsg
		return binary.BigEndian.AppendUint16([]byte{byte(family), unix.NFNETLINK_V0}, resource)
	}
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	}
	messages := []netlink.Message{batch(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, r := range rules {
		e := netlink.NewAttributeEncoder()
		e.String(unix.NFTA_RULE_TABLE, t.Name)
		e.String(unix.NFTA_RULE_CHAIN, portedChain)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) error { return r.encode(e, t.Family) })
		data, err := e.Encode()
		if err != nil {
			return err
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append},
			Data: append(header(t.Family, 0), data...)})
	}
	messages = append(messages, batch(unix.NFNL_MSG_BATCH_END))
	if _, err := c.SendMessages(messages); err != nil {
		return err
	}
	for answered := 0; answered < len(rules); {
		answers, err := c.Receive()
		if err != nil {
			return err
		}
		answered += len(answers)
	}
	return nil
}

// encode writes the rule's expressions.
func (r portedRule) encode(list *netlink.AttributeEncoder, family nftables.TableFamily) error {
	first, last := binary.BigEndian.AppendUint16(nil, r.ports.first), binary.BigEndian.AppendUint16(nil, r.ports.last)
	for _, x := range append(r.when[:len(r.when):len(r.when)],
		&expr.Immediate{Register: 1, Data: first}, &expr.Immediate{Register: 2, Data: last}) {
		data, err := expr.Marshal(byte(family), x)
		if err != nil {
			return err
		}
		list.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, data)
	}
	list.Nested(unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) error {
		e.String(unix.NFTA_EXPR_NAME, "masq")
		e.Nested(unix.NFTA_EXPR_DATA, func(e *netlink.AttributeEncoder) error {
			e.ByteOrder = binary.BigEndian
			e.Uint32(unix.NFTA_MASQ_FLAGS, unix.NF_NAT_RANGE_PROTO_SPECIFIED)
			e.Uint32(unix.NFTA_MASQ_REG_PROTO_MIN, 1)
			e.Uint32(unix.NFTA_MASQ_REG_PROTO_MAX, 2)
			return nil
		})
		return nil
	})
	return nil
}
