package config

import "net/netip"

// ParseNetwork reads an IPv4 network; if it can't, it says what is wrong and
// what to write.
func ParseNetwork(text string) (p netip.Prefix, wrong, remedy string) {
	p, err := netip.ParsePrefix(text)
	if one, notOne := netip.ParseAddr(text); notOne == nil && one.Is4() {
		return p, "an address, not a network", "write " + text + "/32 for this one address"
	}
	switch {
	case err != nil || !p.Addr().Is4():
		return p, "not an IPv4 network", "write it as 10.0.0.0/16"
	case p.Masked() != p:
		return p, "has bits set behind its length", "write " + p.Masked().String()
	}
	return p, "", ""
}
