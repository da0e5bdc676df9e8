package appliance

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
)

// Machine is what Complete needs to know about the machine it runs on.
type Machine struct {
	Hostname  string
	Addresses []LinkAddr
}

// LinkAddr is an address and the network device that has it.
type LinkAddr struct {
	Link    string
	Address netip.Addr
}

// ThisMachine looks at the machine we run on.
func ThisMachine() (Machine, error) {
	var m Machine
	host, err := os.Hostname()
	if err != nil {
		return m, fmt.Errorf("read host name: %w", err)
	}
	m.Hostname = host
	links, err := net.Interfaces()
	if err != nil {
		return m, fmt.Errorf("list network devices: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			return m, fmt.Errorf("list addresses of %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			m.Addresses = append(m.Addresses, LinkAddr{l.Name, p.Addr().Unmap()})
		}
	}
	return m, nil
}

// candidates are the addresses that could be the machine's own on the
// platform's network.
func (m Machine) candidates() []LinkAddr {
	var out []LinkAddr
	for _, a := range m.Addresses {
		// Links called mp… are ours: the host's ends of workspaces' networks.
		if a.Address.Is4() && a.Address.IsGlobalUnicast() && !strings.HasPrefix(a.Link, "mp") {
			out = append(out, a)
		}
	}
	return out
}
