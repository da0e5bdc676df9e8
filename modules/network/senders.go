package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// A VXLAN device takes frames from whoever sends to its port. So the host takes
// them only from hosts that share the workspace: a set of pairs of network and
// underlay address, in a table of its own, since its elements change with each
// workspace while the other rules stay.
const (
	sendersTable = "multipaas-vxlan"
	sendersSet   = "senders"
	// sendersVersion is a chain that says what the table holds.
	sendersVersion = versionPrefix + "1"
)

// senders describes the set. Not "integer" for the VNI: nft crashes when it lists
// that without a length.
func senders(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: sendersSet, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr)}
}

// sender is the set's key: the VNI as it stands in the packet, with the
// reserved byte behind it, then the address.
func sender(vni uint32, host netip.Addr) string {
	b := host.As4()
	return string(binary.BigEndian.AppendUint32(nil, vni<<8)) + string(b[:])
}

// ensureSenders makes the host take a network's VXLAN from the hosts of its
// members and from nobody else. Without members there is nobody.
func (n *Network) ensureSenders(vni uint32, members []wire.Member) (err error) {
	want := map[string]bool{}
	for _, m := range members {
		if m.Host != n.cfg.Underlay {
			want[sender(vni, m.Host)] = true
		}
	}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	t := &nftables.Table{Name: sendersTable, Family: nftables.TableFamilyIPv4}
	have, err := chainsOf(c, sendersTable, nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	set := senders(t)
	if !slices.Contains(have, sendersVersion) {
		if len(want) == 0 {
			return nil
		}
		c.AddTable(t) // so that it can be deleted
		c.DelTable(t)
		c.AddTable(t)
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set of senders: %w", err)
		}
		sendersRules(c, t, set)
	} else {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("list senders: %w", err)
		}
		for _, e := range elements {
			switch key := string(e.Key); {
			case want[key]:
				delete(want, key)
			case len(key) == 8 && binary.BigEndian.Uint32([]byte(key)) == vni<<8:
				if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: e.Key}}); err != nil {
					return fmt.Errorf("remove sender: %w", err)
				}
			}
		}
	}
	for key := range want {
		if err := c.SetAddElements(set, []nftables.SetElement{{Key: []byte(key)}}); err != nil {
			return fmt.Errorf("add sender: %w", err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set senders of VXLAN: %w", err)
	}
	return nil
}

func sendersRules(c *nftables.Conn, t *nftables.Table, set *nftables.Set) {
	c.AddChain(&nftables.Chain{Name: sendersVersion, Table: t})
	accept := nftables.ChainPolicyAccept
	// Before connection tracking and the host's own rules have a say.
	input := c.AddChain(&nftables.Chain{Name: "input", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(-310), Policy: &accept})
	const pair = unix.NFT_REG32_00 // and the register behind it
	c.AddRule(&nftables.Rule{Table: t, Chain: input, Exprs: match(protocol(unix.IPPROTO_UDP),
		frame(expr.PayloadBaseTransportHeader, expr.CmpOpEq, 2, binaryutil.BigEndian.PutUint16(VXLANPort)),
		[]expr.Any{
			// Behind UDP's 8 bytes and the 4 of VXLAN's flags.
			&expr.Payload{DestRegister: pair, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 4},
			&expr.Payload{DestRegister: pair + 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Lookup{SourceRegister: pair, SetName: set.Name, SetID: set.ID, Invert: true},
		},
		drop())})
}

// removeSenders forgets who may send into a network.
func (n *Network) removeSenders(id string) error {
	vni, err := strconv.ParseUint(id, 16, 24)
	if err != nil {
		return err
	}
	return n.ensureSenders(uint32(vni), nil)
}
