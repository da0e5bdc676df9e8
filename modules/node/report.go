package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// What a node may have the store keep, and people read.
const (
	maxName  = 128
	maxText  = 1024
	maxItems = 16
	// maxAmount keeps sums of what nodes have far from the end of the numbers.
	maxAmount = 1 << 50
)

// heartbeatEvery is how old a sign of life must be to be written anew: a little
// less than agents wait between two reports without news.
const heartbeatEvery = wire.ReportEvery * 3 / 4

// clip makes what an agent says fit for people: a line of limited length.
func clip(s string, limit int) string {
	s = strings.ToValidUTF8(s[:min(len(s), limit)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// nothing is what an agent is told that only has to know that it was heard.
type nothing struct{}

// nodeHandler serves what a node asks for.
type nodeHandler = func(http.ResponseWriter, *http.Request, *resource.Node)

// paced lets an agent report at the pace that it may, by one of its paces.
func (h *Hub) paced(by func(*paces) flowcontrol.RateLimiter, serve nodeHandler) nodeHandler {
	return func(w http.ResponseWriter, r *http.Request, node *resource.Node) {
		if !by(h.pace(node.Name)).TryAccept() {
			w.Header().Set("Retry-After", strconv.Itoa(int(wire.ReportPace/time.Second)))
			h.answer(w, nil, refuse(http.StatusTooManyRequests, "node %s reports too often", node.Name))
			return
		}
		serve(w, r, node)
	}
}

// takeReport takes down what an agent sees.
func (h *Hub) takeReport(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	reply(h, w, r, func(rep wire.Report) (wire.ReportAnswer, error) {
		return h.report(r.Context(), node, rep, source.Addr().Unmap())
	})
}

// report takes down a report that came from this address. One without news costs
// a write of the node every ReportEvery, and wakes nobody.
func (h *Hub) report(ctx context.Context, node *resource.Node, rep wire.Report, source netip.Addr) (wire.ReportAnswer, error) {
	answer := wire.ReportAnswer{Anew: node.Silent()}
	look := func(n *resource.Node) { answer.Show = h.note(n, rep, source) }
	if left := without(node.Status.Addresses, append(rep.Addresses, node.Spec.Addresses...)); left != nil &&
		!h.pace(node.Name).addresses.TryAccept() {
		rep.Addresses = append(rep.Addresses, left...) // not yet
	}
	if seen := *node; time.Since(node.Status.HeartbeatAt) >= heartbeatEvery || !same(&seen, look) {
		_, err := store.Of[resource.Node](h.cfg.Store).Modify(ctx, node.Name, func(n *resource.Node) error {
			if n.UID != node.UID || n.Gone() {
				return store.ErrNotFound
			}
			look(n)
			n.Status.HeartbeatAt = time.Now().UTC()
			return nil
		})
		if errors.Is(err, store.ErrNotFound) { // since a moment ago: the cache has not heard of it
			return answer, refuse(http.StatusGone, "node %q was removed from the platform", node.Name)
		}
		if err != nil {
			return answer, err
		}
	}
	for _, m := range rep.Machines {
		if err := h.takeMachine(ctx, node, m); err != nil {
			return answer, err
		}
	}
	for _, v := range rep.Volumes {
		if err := h.takeVolume(ctx, node, v); err != nil {
			return answer, err
		}
	}
	if err := h.dropPools(ctx, node, rep.Pools); err != nil {
		return answer, err
	}
	if err := h.takeMembers(ctx, node, rep.StorageMembers); err != nil {
		return answer, err
	}
	return answer, h.release(ctx, node.UID, rep.Holds)
}

// takeItems takes down what an agent sees of its items. Kinds that this server does not know are
// a newer agent's.
func (h *Hub) takeItems(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	reply(h, w, r, func(page wire.Items) (nothing, error) {
		var failed error
		for _, item := range page.Items {
			take := h.items[item.Kind]
			if take == nil || r.Context().Err() != nil {
				continue
			}
			// The page comes again; one that always fails keeps none of the others from being taken down.
			if err := take(r.Context(), node, item.Report); err != nil && failed == nil {
				failed = err
			}
		}
		if failed == nil {
			failed = r.Context().Err()
		}
		return nothing{}, failed
	})
}

// itemTaker takes down what is said of an item, JSON as its kind has it.
type itemTaker func(ctx context.Context, node *resource.Node, said json.RawMessage) error

// reads reads what is said for take, which takes down what is news of it.
func reads[R any](take func(context.Context, *resource.Node, R) error) itemTaker {
	return func(ctx context.Context, node *resource.Node, said json.RawMessage) error {
		var rep R
		if err := json.Unmarshal(said, &rep); err != nil {
			return refuse(http.StatusBadRequest, "an item is not understood: %v", err)
		}
		return take(ctx, node, rep)
	}
}

// same says whether look changes nothing of n.
func same(n *resource.Node, look func(*resource.Node)) bool {
	before, err := json.Marshal(n)
	if err != nil {
		return false
	}
	look(n)
	after, err := json.Marshal(n)
	return err == nil && string(before) == string(after)
}

// note takes down what a report says of the node itself, as far as a host is
// believed. It returns the addresses that it shall show to have.
func (h *Hub) note(n *resource.Node, rep wire.Report, source netip.Addr) (show []netip.Addr) {
	s := &n.Status
	s.Version, s.Kernel, s.OS = clip(rep.Version, maxName), clip(rep.Kernel, maxName), clip(rep.OS, maxName)
	s.Drivers = nil
	for _, d := range rep.Drivers[:min(len(rep.Drivers), maxItems)] {
		s.Drivers = append(s.Drivers, clip(d, maxName))
	}
	notePools(n, rep.Pools)
	was := s.Conditions
	s.Conditions = nil
	say := func(c resource.Condition) {
		if old := was.Get(c.Type); old != nil && old.Status == c.Status {
			c.Since = old.Since
		}
		s.Conditions.Set(c)
	}
	for _, p := range rep.Problems[:min(len(rep.Problems), maxItems-6)] { // and six of ours
		p.Type, p.Reason, p.Message, p.Since = clip(p.Type, maxName), clip(p.Reason, maxName), clip(p.Message, maxText), time.Time{}
		if p.Status != resource.True && p.Status != resource.False {
			p.Status = resource.Unknown
		}
		switch p.Type {
		case resource.NodeAddressConfirmed, resource.NodeAddressesShown, resource.NodeCapacityConfirmed,
			resource.NodeReporting, resource.NodeCopiesMoved, resource.NodeStorageCurrent, "NetworksReady":
			// The platform's to say.
		default:
			say(p)
		}
	}
	var troubles []string
	for _, net := range rep.Networks {
		if net.Message != "" && len(troubles) < maxItems {
			troubles = append(troubles, "network "+net.ID+": "+net.Message)
		}
	}
	no := func(kind, reason, message string) {
		say(resource.Condition{Type: kind, Status: resource.False, Reason: reason, Message: clip(message, maxText)})
	}
	if troubles != nil {
		no("NetworksReady", "NotReady", strings.Join(troubles, "; "))
	}
	if trouble := h.noteAddress(n, rep.Address, source); trouble != "" {
		no(resource.NodeAddressConfirmed, "Differs", trouble)
	}
	show, trouble := h.noteAddresses(n, rep.Addresses)
	if trouble != "" {
		no(resource.NodeAddressesShown, "NotShown", trouble)
	}
	if reason, trouble := noteCapacity(n, rep.Capacity); trouble != "" {
		no(resource.NodeCapacityConfirmed, reason, trouble)
	}
	if s.StorageOld = rep.StorageOld; s.StorageOld {
		reason, trouble := oldStorage(n)
		no(resource.NodeStorageCurrent, reason, trouble)
	}
	if n.Deleting() {
		if trouble := h.shared().moving(n, h.cfg.Volumes.Get); trouble != "" {
			no(resource.NodeCopiesMoved, "Moving", trouble)
		}
	}
	switch {
	case n.Deleting():
		s.Phase = resource.Deleting
	case s.Address.IsValid():
		s.Phase = resource.Ready
	default:
		s.Phase = resource.Pending // nobody can reach what would run on it
	}
	return show
}

// noteAddress decides on which address the node is. A host that could choose would
// cut off any address from all tenants, since none may reach a host; and be let
// into workspaces' networks in the name of another.
func (h *Hub) noteAddress(n *resource.Node, claim, source netip.Addr) (trouble string) {
	s, set := &n.Status, n.Spec.Address.IsValid()
	fix := fmt.Sprintf("mp nodes set %s --address", n.Name)
	if !s.Address.IsValid() && claim == source {
		s.Address = claim
	}
	if set {
		why, _ := h.cantBeAt(n.Name, n.Spec.Address)
		was, _ := h.cantBeAt(n.Name, s.Address)
		switch {
		case why == "":
			s.Address = n.Spec.Address
		case was == "": // nobody else's traffic comes here, and the node isn't cut off
			return fmt.Sprintf("a sysadmin has set its address to %v, but %s: it is at %v as before; set the right one with: %s ADDRESS",
				n.Spec.Address, why, s.Address, fix)
		default:
			s.Address = netip.Addr{}
			return fmt.Sprintf("a sysadmin has set its address to %v, but %s: set the right one with: %s ADDRESS",
				n.Spec.Address, why, fix)
		}
	}
	if s.Address.IsValid() {
		if why, remedy := h.cantBeAt(n.Name, s.Address); why != "" {
			s.Address = netip.Addr{}
			return why + ": " + remedy
		}
	}
	switch {
	case !s.Address.IsValid():
		return fmt.Sprintf("it says that its address is %v, but reports from %v, so nobody knows where it is: "+
			"set `address` in the configuration of the host, or confirm that it has both with: %s %v", claim, source, fix, claim)
	case claim != s.Address:
		return fmt.Sprintf("it says that its address is %v, and %v is what counts: "+
			"if it has moved, confirm that with: %s %v", claim, s.Address, fix, claim)
	case source != s.Address && !set:
		return fmt.Sprintf("its reports come from %v: if that is an address of its own, "+
			"confirm the other with: %s %v", source, fix, s.Address)
	}
	return ""
}

// cantBeAt says why a node can't be at an address, and what to do if it says that it is.
func (h *Hub) cantBeAt(node string, address netip.Addr) (why, remedy string) {
	for _, other := range h.cfg.Nodes.List("") {
		if other.Name != node && other.Status.Address == address && address.IsValid() {
			return fmt.Sprintf("%v is the address of node %s", address, other.Name),
				"set `address` in the configuration of one of them, or remove the one that is gone"
		}
	}
	if err := h.CheckAddress(address); err != nil {
		return err.Error(), "set `address` in the node's configuration"
	}
	return "", ""
}

// CheckAddress says why no node can be at an address, nil if one can. It may be called
// concurrently.
func (h *Hub) CheckAddress(address netip.Addr) error {
	// The others send it their workspaces' traffic: it must be a host's.
	plan := h.cfg.Plan
	if !address.Is4() || !address.IsGlobalUnicast() ||
		plan.Nodes.Contains(address) || plan.Pods.Contains(address) || plan.Services.Contains(address) {
		return fmt.Errorf("%v can't be a host's IPv4 address on the platform's network", address)
	}
	if address == h.cfg.Address {
		return fmt.Errorf("%v is the server's address", address)
	}
	return nil
}

// noteCapacity takes down what the node has: no more than it had at first, or a
// sysadmin has set, for machines go to the host that has most.
func noteCapacity(n *resource.Node, claim resource.Size) (reason, trouble string) {
	s := &n.Status
	if s.Confirmed == (resource.Size{}) {
		s.Confirmed = resource.Size{MilliCPU: amount(claim.MilliCPU), MemoryBytes: amount(claim.MemoryBytes),
			DiskBytes: amount(claim.DiskBytes)}
	}
	var more []string
	reason = resource.DiskGrown
	for _, x := range []struct {
		what              string
		claim, first, set int64
		to                *int64
		text              func(resource.Size) string
	}{
		{"CPU", claim.MilliCPU, s.Confirmed.MilliCPU, n.Spec.Capacity.MilliCPU, &s.Capacity.MilliCPU, resource.Size.CPU},
		{"memory", claim.MemoryBytes, s.Confirmed.MemoryBytes, n.Spec.Capacity.MemoryBytes, &s.Capacity.MemoryBytes, resource.Size.Memory},
		{"disk", claim.DiskBytes, s.Confirmed.DiskBytes, n.Spec.Capacity.DiskBytes, &s.Capacity.DiskBytes, resource.Size.Disk},
	} {
		most := cmp.Or(x.set, x.first)
		*x.to = amount(x.claim)
		if *x.to <= most {
			continue
		}
		says := x.text(s.Capacity)
		*x.to = most
		if amount(x.claim)-most <= most/8 { // a new kernel, a few files less: that is no growth
			continue
		}
		more = append(more, fmt.Sprintf("%s of %s instead of %s", says, x.what, x.text(s.Capacity)))
		if x.what != "disk" {
			reason = "Grown"
		}
	}
	if more == nil {
		return "", ""
	}
	return reason, fmt.Sprintf("it says that it has %s; "+
		"if it has grown, confirm that with: mp nodes set %s --cpu, --memory or --disk", strings.Join(more, ", "), n.Name)
}

func amount(x int64) int64 { return min(max(x, 0), maxAmount) }

// takeMachine takes down what is news of a machine.
func (h *Hub) takeMachine(ctx context.Context, node *resource.Node, rep wire.MachineReport) error {
	own := func(m *resource.Machine) bool { return m.UID == rep.UID && m.Spec.Node == node.Name }
	return takeDown(ctx, h.cfg.Machines, store.Of[resource.Machine](h.cfg.Store), rep.Key, false, own, func(m *resource.Machine) {
		c := resource.Condition{Type: resource.MachineRunning, Status: resource.False, Reason: "NotRunning",
			Message: clip(rep.Message, maxText)}
		if rep.Running {
			c = resource.Condition{Type: resource.MachineRunning, Status: resource.True, Reason: "Running"}
		}
		m.Status.Conditions.Set(c)
		// A machine that shall stay is not removed because a node says so.
		if rep.Removed && m.Deleting() {
			m.Status.Conditions.Set(resource.Condition{Type: resource.MachineRemoved, Status: resource.True, Reason: "Removed"})
		}
		m.Status.StartedAt, m.Status.Restarts, m.Status.NoVolumes = rep.StartedAt, rep.Restarts, rep.NoVolumes
	})
}

// takeDown has look write down what is news of the object with this key, if it is meant. What the cache
// knows so already is not written. unheard: it may be news although this server's cache doesn't know yet that
// something of it shall be removed. One that the cache has not heard of is looked for in the store: it is told once.
func takeDown[P resource.Object](
	ctx context.Context, cache *store.Cache[P], kind store.Kind[P], key string, unheard bool, meant func(P) bool, look func(P),
) error {
	if seen, ok := cache.Get(key); ok {
		was, _ := cache.Get(key) // a copy of its own
		if !meant(seen) {
			return nil // another, or not this node's: nothing to take down
		}
		if look(seen); !unheard && reflect.DeepEqual(was, seen) {
			return nil
		}
	}
	_, err := kind.Modify(ctx, key, func(now P) error {
		if !meant(now) {
			return store.ErrSkip
		}
		look(now)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return nil
	}
	return err
}
