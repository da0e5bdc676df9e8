package appliance

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// service are the addresses by which clients reach a server that has own beside its
// address: that, and of those that it is said to have the ones that it has now. Others are
// a router's, and what goes there leaves the platform; or another host's, until they move.
func (c Config) service(own []netip.Addr) []netip.Addr {
	all := []netip.Addr{c.Address}
	for _, n := range c.ServerNames {
		a, err := netip.ParseAddr(n)
		if err == nil && slices.Contains(own, a) && !slices.Contains(all, a) &&
			!c.Plan.Nodes.Contains(a) && !c.Plan.Pods.Contains(a) && !c.Plan.Services.Contains(a) {
			all = append(all, a)
		}
	}
	return all
}

// listeners are the front door: where clients reach what a server with these addresses
// listens for. What is no address to listen on was refused before.
func (c Config) listeners(service []netip.Addr) (all network.Door) {
	for _, l := range c.Listen.all() {
		host, port, _ := net.SplitHostPort(l)
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		at, err := netip.ParseAddr(host)
		for _, a := range service {
			if err != nil || at.IsUnspecified() || at.Unmap() == a {
				all = append(all, netip.AddrPortFrom(a, uint16(n)))
			}
		}
	}
	return all
}

// frontDoor is the front door as tenants find it by name. Below the domain are the API, the
// registry, clusters' APIs, and apps: APP.WORKSPACE.ORGANIZATION.ACCOUNT, be they there or
// not, so that nobody learns who is; all else there is the operator's own. Whoever was told
// another name of this server keeps it. Its addresses are those that have all of it, if
// there are any.
func (c Config) frontDoor(service []netip.Addr) wire.Door {
	d := wire.Door{Names: []string{
		"api." + c.Domain, "registry." + c.Domain, "*." + resource.KubeDomain(c.Domain), "*.*.*.*." + c.Domain,
	}, Loose: []string{"*." + c.Domain}}
	for _, n := range c.ServerNames {
		if _, err := netip.ParseAddr(n); err != nil {
			d.Names, d.Loose = append(d.Names, strings.ToLower(n)), append(d.Loose, strings.ToLower(n))
		}
	}
	has := map[netip.Addr]int{}
	for _, l := range c.listeners(service) {
		has[l.Addr()]++
	}
	for _, least := range []int{len(c.Listen.all()), 1} {
		for _, a := range service {
			if has[a] >= least {
				d.Addresses = append(d.Addresses, a)
			}
		}
		if d.Addresses != nil {
			break
		}
	}
	return d
}
