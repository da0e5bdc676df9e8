package policy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/knftables"
)

// Names in the kernel.
const (
	tableName = "multipaas-policy"
	closed    = "closed"  // the chain of pods of which nothing is known
	links     = `"veth*"` // the machine's ends of its pods' links, as the CNI plugin names them
	podsSet   = "pods"
	selfSet   = "self"
)

// wayMaps are the maps from pods' addresses to chains, by direction.
var wayMaps = [2]string{ingress: "ingress", egress: "egress"}

// text is rules as nft reads them, one per line.
func text(rules []rule) string {
	lines := make([]string, len(rules))
	for i, r := range rules {
		lines[i] = r.String()
	}
	return strings.Join(lines, "\n")
}

func (r rule) String() string {
	switch {
	case r.jump != "":
		return "jump " + r.jump
	case r.drop:
		return "drop"
	}
	other := "ip saddr"
	if r.d == egress {
		other = "ip daddr"
	}
	var parts []string
	if r.peers != nil {
		parts = append(parts, other, "@"+r.peers.name)
	}
	if len(r.blocks) > 0 {
		parts = append(parts, other, braces(r.blocks, address))
	}
	protocol := strings.ToLower(string(r.protocol))
	switch {
	case r.protocol == "":
	case r.named != nil:
		parts = append(parts, "ip daddr .", protocol, "dport @"+r.named.name)
	case len(r.ports) > 0:
		parts = append(parts, protocol, "dport", braces(r.ports, port))
	default:
		parts = append(parts, "meta l4proto", protocol)
	}
	return strings.Join(append(parts, "accept"), " ")
}

// kernel writes rules to nftables. Each change is one transaction: no packet
// meets half of it, and one that fails leaves what was.
type kernel struct {
	nft knftables.Interface
	// written is what the table holds; nil: not known. The next change is then a
	// new table in place of the old.
	written *rules
}

// write makes the kernel hold the rules. It blocks while nft runs.
func (k *kernel) write(ctx context.Context, want *rules) error {
	tx := k.nft.NewTransaction()
	have := k.written
	if have == nil {
		have = &rules{}
		base(tx)
	}
	for name, s := range want.sets {
		if have.sets[name] != s {
			addSet(tx, s)
			continue
		}
		for e, before := range s.fresh {
			switch _, now := s.count[e]; {
			case now && !before:
				tx.Add(&knftables.Element{Set: name, Key: e.key()})
			case before && !now:
				tx.Delete(&knftables.Element{Set: name, Key: e.key()})
			}
		}
	}
	addChains(tx, have, want)
	writePods(tx, have, want)
	// What nothing leads to any more goes last: pods' chains before those of
	// policies, which they jump to.
	for _, jumping := range []bool{true, false} {
		for name := range have.chains {
			if _, ok := want.chains[name]; !ok && strings.HasPrefix(name, podsPrefix) == jumping {
				tx.Flush(&knftables.Chain{Name: name})
				tx.Delete(&knftables.Chain{Name: name})
			}
		}
	}
	for name := range have.sets {
		if want.sets[name] == nil {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
	if tx.NumOperations() > 0 {
		if err := k.nft.Run(ctx, tx); err != nil {
			k.written = nil
			return fmt.Errorf("write the rules of NetworkPolicies: %w", err)
		}
	}
	for _, s := range want.sets {
		clear(s.fresh)
	}
	k.written = want
	return nil
}

// base makes the table anew, with what doesn't depend on policies.
//
// The two directions are hooks of their own, for "accept" ends a hook: a packet
// between two pods of this machine has to pass both. They come before kube-proxy's
// filters and after its translation of Services' addresses, so that policies
// mean pods. Packets of the side that opened a connection are judged one by one, so that
// a policy cuts what it forbids at once; answers go with their connection. What
// the machine itself sends, kubelet's probes above all, meets no hook.
func base(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Set{Name: podsSet, Type: "ipv4_addr", Comment: knftables.PtrTo("pods of this machine")})
	tx.Add(&knftables.Set{Name: selfSet, Type: "ipv4_addr . ipv4_addr", Comment: knftables.PtrTo("nobody is kept from himself")})
	for _, name := range wayMaps {
		tx.Add(&knftables.Map{Name: name, Type: "ipv4_addr : verdict", Comment: knftables.PtrTo("pods that policies select")})
	}
	chain := func(name string, rules ...string) {
		tx.Add(&knftables.Chain{Name: name})
		for _, r := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	hook := func(name string, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) {
		tx.Add(&knftables.Chain{Name: name, Type: knftables.PtrTo(knftables.FilterType), Hook: &hook, Priority: &priority})
		for _, r := range append([]string{"ct state established ct direction reply accept", "ct state related accept"}, rules...) {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	chain(closed, "drop")
	// Port mappings make the machine's loopback reachable over pods' links.
	chain("from-pod", "ip saddr != @"+podsSet+" drop", "ip daddr 127.0.0.0/8 drop",
		"ip saddr . ip daddr @"+selfSet+" accept", "ip saddr vmap @"+wayMaps[egress])
	chain("to-pod", "ip daddr != @"+podsSet+" drop",
		"ip saddr . ip daddr @"+selfSet+" accept", "ip daddr vmap @"+wayMaps[ingress])
	hook("input", knftables.InputHook, knftables.FilterPriority+"-6", "iifname "+links+" jump from-pod")
	hook("forward-egress", knftables.ForwardHook, knftables.FilterPriority+"-6", "iifname "+links+" jump from-pod")
	hook("forward-ingress", knftables.ForwardHook, knftables.FilterPriority+"-5", "oifname "+links+" jump to-pod")
}

func addSet(tx *knftables.Transaction, s *set) {
	kind := "ipv4_addr"
	if s.ports {
		kind = "ipv4_addr . inet_service"
	}
	made := &knftables.Set{Name: s.name, Type: kind}
	tx.Add(made)
	tx.Flush(made) // a former one of the same name
	for e := range s.count {
		tx.Add(&knftables.Element{Set: s.name, Key: e.key()})
	}
}

func (e element) key() []string {
	if e.port == 0 {
		return []string{e.address.String()}
	}
	return []string{e.address.String(), port(uint32(e.port))}
}

func addChains(tx *knftables.Transaction, have, want *rules) {
	for _, jumping := range []bool{false, true} { // what is jumped to comes first
		for name, c := range want.chains {
			if _, ok := have.chains[name]; ok || strings.HasPrefix(name, podsPrefix) != jumping {
				continue
			}
			made := &knftables.Chain{Name: name}
			if c.comment != "" {
				made.Comment = &c.comment
			}
			tx.Add(made)
			for _, r := range c.rules {
				tx.Add(&knftables.Rule{Chain: name, Rule: r.String()})
			}
		}
	}
}

// writePods writes which pods there are and what decides for them: first what
// decides, though it is all one transaction.
func writePods(tx *knftables.Transaction, have, want *rules) {
	for d, name := range wayMaps {
		verdict := func(a netip.Addr, chain string) *knftables.Element {
			return &knftables.Element{Map: name, Key: []string{a.String()}, Value: []string{"goto " + chain}}
		}
		for a, chain := range have.ways[d] {
			if want.ways[d][a] != chain {
				tx.Delete(verdict(a, chain))
			}
		}
		for a, chain := range want.ways[d] {
			if have.ways[d][a] != chain {
				tx.Add(verdict(a, chain))
			}
		}
	}
	elements := func(a netip.Addr) []*knftables.Element {
		return []*knftables.Element{{Set: podsSet, Key: []string{a.String()}}, {Set: selfSet, Key: []string{a.String(), a.String()}}}
	}
	for a := range want.pods {
		if !have.pods[a] {
			for _, e := range elements(a) {
				tx.Add(e)
			}
		}
	}
	for a := range have.pods {
		if !want.pods[a] {
			for _, e := range elements(a) {
				tx.Delete(e)
			}
		}
	}
}
