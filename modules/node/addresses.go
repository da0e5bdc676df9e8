package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// noteAddresses takes down which addresses a node has besides. All tenants are kept from
// them, so a host that could choose would cut them off from anybody: of those that it
// says to have, what it has shown or a sysadmin has set counts, for as long as it says
// so. It returns those that it shall show.
func (h *Hub) noteAddresses(n *resource.Node, claims []netip.Addr) (show []netip.Addr, trouble string) {
	s := &n.Status
	shown := s.Addresses
	s.Addresses = slices.Clone(n.Spec.Addresses)
	var others, open []netip.Addr
	for _, a := range distinct(claims[:min(len(claims), maxClaims)]) {
		switch {
		case slices.Contains(n.Spec.Addresses, a):
		case h.mayHave(n, a) && slices.Contains(shown, a):
			s.Addresses = append(s.Addresses, a)
		case h.canHave(n, a):
			others = append(others, a)
		}
	}
	for _, a := range others {
		if h.mayHave(n, a) && len(s.Addresses)+len(show) < wire.MaxAddresses {
			show = append(show, a)
		}
		if h.cfg.Reached == nil || h.cfg.Reached(a) {
			open = append(open, a)
		}
	}
	s.Addresses = distinct(s.Addresses)
	if open == nil {
		return show, ""
	}
	var texts []string
	for _, a := range open[:min(len(open), maxItems)] {
		texts = append(texts, a.String())
	}
	all := strings.Join(texts, ",")
	if more := len(open) - len(texts); more > 0 {
		all += fmt.Sprintf(" and %d more", more)
	}
	return show, fmt.Sprintf("it says that it also has %s, which it has not shown by reporting from there; until then "+
		"tenants are not kept from its ports there: if it is so, confirm that with: mp nodes set %s --also ADDRESSES", all, n.Name)
}

// maxClaims bounds how many addresses of a report are looked at.
const maxClaims = 4 * wire.MaxAddresses

// canHave says whether a host can have an address besides its own that is none of those
// by which hosts are reached: no tenant reaches these.
func (h *Hub) canHave(n *resource.Node, a netip.Addr) bool {
	return a != n.Status.Address && h.checkAddress(n.Name, a) == nil
}

// mayHave says whether it has the address if it shows that. What the operator has named
// as somebody's it has when a sysadmin says so.
func (h *Hub) mayHave(n *resource.Node, a netip.Addr) bool {
	return h.canHave(n, a) && !slices.Contains(h.cfg.Named, a)
}

// takeAddress takes down that a node has the address that it asks from.
func (h *Hub) takeAddress(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	from := source.Addr().Unmap()
	reply(h, w, r, func(req wire.AddressShown) (none nothing, err error) {
		switch {
		case req.Address != from:
			return none, refuse(http.StatusUnprocessableEntity, "this came from %v, not from %v", from, req.Address)
		case slices.Contains(node.Status.Addresses, from):
			return none, nil
		case !h.mayHave(node, from):
			return none, refuse(http.StatusUnprocessableEntity, "%v is not node %s's to have", from, node.Name)
		case !h.pace(node.Name).addresses.TryAccept():
			w.Header().Set("Retry-After", strconv.Itoa(int(addressPace.Seconds())))
			return none, refuse(http.StatusTooManyRequests, "the addresses of node %s change too often", node.Name)
		}
		_, err = store.Of[resource.Node](h.cfg.Store).Modify(r.Context(), node.Name, func(n *resource.Node) error {
			s := &n.Status
			switch {
			case n.UID != node.UID || n.Gone():
				return store.ErrNotFound
			case slices.Contains(s.Addresses, from):
				return store.ErrSkip
			case len(s.Addresses) >= wire.MaxAddresses:
				return refuse(http.StatusUnprocessableEntity, "node %s has %d addresses already", n.Name, len(s.Addresses))
			}
			s.Addresses = distinct(append(s.Addresses, from))
			return nil
		})
		if errors.Is(err, store.ErrNotFound) {
			return none, refuse(http.StatusGone, "node %q was removed from the platform", node.Name)
		}
		return none, err
	})
}

// distinct returns addresses sorted, each once.
func distinct(all []netip.Addr) []netip.Addr {
	all = slices.Clone(all)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// without are those of all that are not among the others.
func without(all, others []netip.Addr) (left []netip.Addr) {
	for _, a := range all {
		if !slices.Contains(others, a) {
			left = append(left, a)
		}
	}
	return left
}
