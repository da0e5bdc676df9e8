package network

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestTakePlaces: Debian's kernel keeps each entry of a bridge for no VLAN and for
// VLAN 1. One was taken for superfluous, and removing it removed both.
func TestTakePlaces(t *testing.T) {
	const bridge, vxlan, port = 2, 3, 5
	far, near, gone := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 3}
	entry := func(mac net.HardwareAddr, on, vlan, state int) netlink.Neigh {
		return netlink.Neigh{HardwareAddr: mac, LinkIndex: on, MasterIndex: bridge, Vlan: vlan, State: state}
	}
	const static, own = netlink.NUD_NOARP, netlink.NUD_PERMANENT
	for _, c := range []struct {
		name           string
		have           []netlink.Neigh
		missing, wrong int
	}{
		{"nothing is there", nil, 2, 0},
		{"all, on a kernel without VLANs", []netlink.Neigh{entry(far, vxlan, 0, static), entry(near, port, 0, static)}, 0, 0},
		{"all, twice each", []netlink.Neigh{entry(far, vxlan, 1, static), entry(far, vxlan, 0, static), entry(near, port, 0, static), entry(near, port, 1, static)}, 0, 0},
		{"for a VLAN only", []netlink.Neigh{entry(far, vxlan, 1, static), entry(near, port, 0, static)}, 1, 0},
		{"one has moved", []netlink.Neigh{entry(far, port, 1, static), entry(far, port, 0, static), entry(near, port, 0, static)}, 1, 2},
		{"one was learned", []netlink.Neigh{entry(far, vxlan, 0, netlink.NUD_REACHABLE), entry(near, port, 0, static)}, 1, 1},
		{"one is a member no more", []netlink.Neigh{entry(far, vxlan, 0, static), entry(near, port, 0, static), entry(gone, vxlan, 1, static), entry(gone, vxlan, 0, static)}, 0, 2},
		{"a port's own and another bridge's", []netlink.Neigh{entry(gone, port, 0, own), {HardwareAddr: gone, LinkIndex: 9, MasterIndex: 8, State: static}}, 2, 0},
	} {
		missing := map[string]int{string(far): vxlan, string(near): port}
		wrong := takePlaces(missing, c.have, bridge)
		if len(missing) != c.missing || len(wrong) != c.wrong {
			t.Errorf("%s: got %d missing, %d wrong, want %d and %d", c.name, len(missing), len(wrong), c.missing, c.wrong)
		}
	}
}
