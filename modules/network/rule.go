package network

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the one table we own, in each family that we need.
const tableName = "multipaas"

// versionPrefix begins the name of an empty chain that says which rules the
// table holds, so that rules that are right are not replaced: that would reset
// their counters and limits, and race with packets for nothing.
const versionPrefix = "version-"

// rule is one nftables rule: all matches hold, then the last one decides.
type rule []expr.Any

// chain is an nftables chain; without a hook it is only jumped to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	policy   nftables.ChainPolicy
	rules    []rule
}

// beforeAll is the priority before connection tracking and the host's own rules
// have a say.
const beforeAll = nftables.ChainPriority(-310)

func filter(
	name string, hook *nftables.ChainHook, priority nftables.ChainPriority, policy nftables.ChainPolicy, rules ...rule,
) chain {
	return chain{name: name, kind: nftables.ChainTypeFilter, hook: hook, priority: &priority, policy: policy, rules: rules}
}

func postrouting(rules ...rule) chain {
	return chain{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
		priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept, rules: rules}
}

// ruleset is the whole of one table.
type ruleset struct {
	family nftables.TableFamily
	meters []nftables.Set // for rules that count by what packets say
	chains []chain
	ported []portedRule // of the chain with that name, if there are any
}

func (rs ruleset) version() (string, error) {
	sum := sha256.New()
	for _, m := range rs.meters {
		fmt.Fprintln(sum, m.Name, m.KeyType.Name, m.Size)
	}
	chains := slices.Clone(rs.chains)
	for _, p := range rs.ported {
		chains = append(chains, chain{name: fmt.Sprint(p.ports), rules: []rule{p.when}})
	}
	for _, c := range chains {
		fmt.Fprintln(sum, c.name, c.policy)
		for _, e := range slices.Concat(c.rules...) {
			// The type's name counts: two expressions may look alike.
			b, err := json.Marshal(e)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(sum, "%T%s\n", e, b)
		}
	}
	return versionPrefix + hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// apply makes the tables of the namespace that the calling thread is in hold
// the rule sets, each all at once or not at all, but for ported rules, which come then.
func apply(sets ...ruleset) (err error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	var last []func() error
	for _, rs := range sets {
		version, err := rs.version()
		if err != nil {
			return err
		}
		t := &nftables.Table{Name: tableName, Family: rs.family}
		have, err := chainNames(c, t)
		if err != nil {
			return err
		}
		if slices.Contains(have, version) {
			continue
		}
		removeTable(c, t)
		c.AddTable(t)
		if len(rs.ported) == 0 {
			c.AddChain(&nftables.Chain{Name: version, Table: t})
		} else {
			c.AddChain(&nftables.Chain{Name: portedChain, Table: t})
			last = append(last, func() error {
				c.AddChain(&nftables.Chain{Name: version, Table: t})
				return addPorted(t, rs.ported)
			})
		}
		// All chains before the rules, which jump to them, and the sets.
		for _, m := range rs.meters {
			m.Table = t
			if err := c.AddSet(&m, nil); err != nil {
				return fmt.Errorf("add set %s: %w", m.Name, err)
			}
		}
		for _, ch := range rs.chains {
			made := &nftables.Chain{Name: ch.name, Table: t}
			if ch.hook != nil {
				made.Type, made.Hooknum, made.Priority, made.Policy = ch.kind, ch.hook, ch.priority, &ch.policy
			}
			c.AddChain(made)
		}
		for _, ch := range rs.chains {
			for _, r := range ch.rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: ch.name, Table: t}, Exprs: r})
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set firewall rules: %w", err)
	}
	for _, add := range last {
		if err := cmp.Or(add(), c.Flush()); err != nil {
			return fmt.Errorf("set firewall rules: %w", err)
		}
	}
	return nil
}

// removeTable takes a table away, whether it is there or not.
func removeTable(c *nftables.Conn, t *nftables.Table) {
	c.AddTable(t) // so that it can be deleted
	c.DelTable(t)
}

// chainNames lists the chains of a table; none if there is no such table.
func chainNames(c *nftables.Conn, t *nftables.Table) ([]string, error) {
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list firewall rules: %w", err)
	}
	var names []string
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			names = append(names, ch.Name)
		}
	}
	return names, nil
}

// match joins matches and a verdict into a rule.
func match(parts ...[]expr.Any) rule { return slices.Concat(parts...) }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	// A name that ends in * is compared as far as it goes; any other with the
	// zeros behind it.
	data := []byte(strings.TrimSuffix(name, "*"))
	if !strings.HasSuffix(name, "*") {
		data = append(data, make([]byte, unix.IFNAMSIZ-len(data))...)
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, data)}
}

func from(name string) []expr.Any    { return interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notFrom(name string) []expr.Any { return interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func to(name string) []expr.Any      { return interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notTo(name string) []expr.Any   { return interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func established() []expr.Any { return tracked(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// invalid matches what belongs to no connection and can begin none.
func invalid() []expr.Any { return tracked(expr.CtStateBitINVALID) }

func tracked(states uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(states)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

func network(offset uint32, p netip.Prefix) []expr.Any {
	mask := net.CIDRMask(p.Bits(), 32)
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()),
	}
}

func source(p netip.Prefix) []expr.Any      { return network(12, p) } // IPv4 header
func destination(p netip.Prefix) []expr.Any { return network(16, p) }

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, []byte{number})}
}

func tcpPort(port uint16) []expr.Any {
	return append(protocol(unix.IPPROTO_TCP), toPort(port)...)
}

func toPort(port uint16) []expr.Any {
	return frame(expr.PayloadBaseTransportHeader, expr.CmpOpEq, 2, binaryutil.BigEndian.PutUint16(port))
}

func fromPort(port uint16) []expr.Any {
	return frame(expr.PayloadBaseTransportHeader, expr.CmpOpEq, 0, binaryutil.BigEndian.PutUint16(port))
}

func echoRequest() []expr.Any { return control(8) }
func echoReply() []expr.Any   { return control(0) }

// control matches a kind of ICMP.
func control(kind byte) []expr.Any {
	return append(protocol(unix.IPPROTO_ICMP), frame(expr.PayloadBaseTransportHeader, expr.CmpOpEq, 0, []byte{kind})...)
}

// local matches what goes to an address of the namespace.
func local() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))}
}

// frame matches bytes of a frame: of the Ethernet header, or of what is behind it.
func frame(base expr.PayloadBase, op expr.CmpOp, offset uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))}, compare(op, data)}
}

func etherType(t uint16) []expr.Any {
	return frame(expr.PayloadBaseLLHeader, expr.CmpOpEq, 12, binaryutil.BigEndian.PutUint16(t))
}

func perSecond(packets uint64) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: packets, Unit: expr.LimitTimeSecond, Burst: uint32(packets)}}
}

// tooMany matches what comes faster than so many a second, once burst more have.
func tooMany(perSecond uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}
}

// moreConnections matches once more than max connections have passed this rule
// and are still tracked. Those of TCP that are closed are not counted, though they are
// tracked for some seconds more.
func moreConnections(max uint32) []expr.Any {
	return []expr.Any{&expr.Connlimit{Count: max, Flags: 1}} // 1: over, not up to
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
func accept() []expr.Any                       { return verdict(expr.VerdictAccept) }
func drop() []expr.Any                         { return verdict(expr.VerdictDrop) }
func masquerade() []expr.Any                   { return []expr.Any{&expr.Masq{}} }

// notrack has the packet belong to no connection: it takes no place in the table of them.
func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

// fromPorts matches what comes from one of these ports.
func fromPorts(p portRange) []expr.Any {
	return append(frame(expr.PayloadBaseTransportHeader, expr.CmpOpGte, 0, binaryutil.BigEndian.PutUint16(p.first)),
		frame(expr.PayloadBaseTransportHeader, expr.CmpOpLte, 0, binaryutil.BigEndian.PutUint16(p.last))...)
}

// prohibited answers that an administrator has said no (ICMP, "communication
// administratively prohibited"): a client's connect fails with "no route to host", at once
// or at its next try, for the kernel says so once a second to each who asks.
func prohibited() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}}
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
