package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// shownFor is how long it counts that a node has shown an address, unless it shows it
// again, as it is asked to after half of it: somebody who takes another's address for a
// moment has it no longer than that, nor has a node that died.
const shownFor = time.Hour

// shownAt is when a node has last shown an address; zero: it has not.
func shownAt(n *resource.Node, a netip.Addr) (at time.Time) {
	for _, s := range n.Status.Shown {
		if s.Address == a {
			at = s.At
		}
	}
	return at
}

// due says whether what was shown then shall be shown again.
func due(at, now time.Time) bool { return now.Sub(at) >= shownFor/2 }

// expire takes from a node the addresses that neither a sysadmin has set nor the node has
// shown of late, and says whether that were any. A server that was away since asks again
// before that.
func expire(n *resource.Node, now, began time.Time) (changed bool) {
	s := &n.Status
	before := len(s.Shown) + len(s.Addresses)
	s.Shown = slices.DeleteFunc(slices.Clone(s.Shown), func(shown resource.ShownAddress) bool {
		at := shown.At
		if least := began.Add(-shownFor / 2); at.Before(least) {
			at = least
		}
		return now.Sub(at) >= shownFor || slices.Contains(n.Spec.NotAddresses, shown.Address)
	})
	s.Addresses = slices.DeleteFunc(slices.Clone(s.Addresses), func(a netip.Addr) bool {
		return shownAt(n, a).IsZero() && !slices.Contains(n.Spec.Addresses, a)
	})
	return len(s.Shown)+len(s.Addresses) != before
}

// noteAddresses takes down which addresses a node has besides. All tenants are kept from
// them, so a host that could choose would cut them off from anybody: of those that it
// says to have, what it has shown of late or a sysadmin has set counts, for as long as it
// says so. It returns those that it shall show.
func (h *Hub) noteAddresses(n *resource.Node, claims []netip.Addr) (show []netip.Addr, trouble string) {
	s, now := &n.Status, h.now()
	expire(n, now, h.began)
	shown := s.Shown
	s.Addresses, s.Shown = slices.Clone(n.Spec.Addresses), nil
	var others, again, open []netip.Addr
	for _, a := range distinct(claims[:min(len(claims), maxClaims)]) {
		i := slices.IndexFunc(shown, func(s resource.ShownAddress) bool { return s.Address == a })
		switch {
		case slices.Contains(n.Spec.Addresses, a), slices.Contains(n.Spec.NotAddresses, a):
		case i >= 0 && h.mayHave(n, a):
			s.Addresses, s.Shown = append(s.Addresses, a), append(s.Shown, shown[i])
			if due(shown[i].At, now) && h.reached(a) {
				again = append(again, a)
			}
		case h.canHave(n, a) && h.reached(a):
			others = append(others, a)
		}
	}
	for _, a := range others {
		if h.mayHave(n, a) && len(s.Addresses)+len(show) < wire.MaxAddresses {
			show = append(show, a)
		}
		open = append(open, a)
	}
	show = append(again, show...)
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

// reached says whether tenants reach an address, if it is no host's.
func (h *Hub) reached(a netip.Addr) bool { return h.cfg.Reached == nil || h.cfg.Reached(a) }

// canHave says whether a host can have an address besides its own that is none of those
// by which hosts are reached: no tenant reaches these.
func (h *Hub) canHave(n *resource.Node, a netip.Addr) bool {
	why, _ := h.cantBeAt(n.Name, a)
	return a != n.Status.Address && why == ""
}

// mayHave says whether it has the address if it shows that. What the operator has named
// as somebody's it has when a sysadmin says so, and what he has said is not its own never.
func (h *Hub) mayHave(n *resource.Node, a netip.Addr) bool {
	return h.canHave(n, a) && !slices.Contains(h.cfg.Named, a) && !slices.Contains(n.Spec.NotAddresses, a)
}

// takeAddress takes down that a node has the address that it asks from.
func (h *Hub) takeAddress(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	from := source.Addr().Unmap()
	reply(h, w, r, func(req wire.AddressShown) (none nothing, err error) {
		switch {
		case req.Address != from:
			return none, refuse(http.StatusUnprocessableEntity, "this came from %v, not from %v", from, req.Address)
		case slices.Contains(node.Spec.Addresses, from), !due(shownAt(node, from), h.now()):
			return none, nil
		case !h.mayHave(node, from):
			return none, refuse(http.StatusUnprocessableEntity, "%v is not node %s's to have", from, node.Name)
		case !slices.Contains(node.Status.Addresses, from) && !h.pace(node.Name).addresses.TryAccept():
			w.Header().Set("Retry-After", strconv.Itoa(int(addressPace.Seconds())))
			return none, refuse(http.StatusTooManyRequests, "the addresses of node %s change too often", node.Name)
		}
		_, err = store.Of[resource.Node](h.cfg.Store).Modify(r.Context(), node.Name, func(n *resource.Node) error {
			s, now := &n.Status, h.now()
			switch {
			case n.UID != node.UID || n.Gone():
				return store.ErrNotFound
			case !due(shownAt(n, from), now):
				return store.ErrSkip
			case !slices.Contains(s.Addresses, from) && len(s.Addresses) >= wire.MaxAddresses:
				return refuse(http.StatusUnprocessableEntity, "node %s has %d addresses already", n.Name, len(s.Addresses))
			}
			s.Shown = slices.DeleteFunc(s.Shown, func(s resource.ShownAddress) bool { return s.Address == from })
			s.Shown = append(s.Shown, resource.ShownAddress{Address: from, At: now.UTC()})
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
