package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// rules is what the kernel is to hold, as the cluster is now.
type rules struct {
	// pods are the addresses of this machine's pods; others may not pass its links.
	pods map[netip.Addr]bool
	// ways are, by direction, the chains that decide for pods that policies
	// select. Everything passes to and from others.
	ways [2]map[netip.Addr]string
	// chains by name. A name stands for what is in it, so that chains are added
	// and removed, never changed.
	chains map[string]chain
	sets   map[string]*set
	// troubles are what can't be enforced, by policy.
	troubles map[*policy]string
}

// chain is of a policy, or of the policies that one pod is selected by.
type chain struct {
	comment string
	rules   []rule
}

// rule accepts what all its parts match, unless it is of another kind.
type rule struct {
	jump string // to a chain, and nothing else
	drop bool

	d        direction
	peers    *set   // of the other side
	blocks   []span // of the other side; empty: any
	protocol corev1.Protocol
	ports    []span // empty: all
	named    *set   // of the receiver's address and port
}

// set is one of the kernel's. It is kept up to date by whoever knows a change,
// and remembers what of it the kernel has not heard.
type set struct {
	name  string
	ports bool                             // it is of addresses with ports
	match func(*pod, labels.Set) []element // with the labels of its namespace
	of    map[string][]element             // pod's UID: what it brings
	count map[element]int                  // how many pods bring it
	fresh map[element]bool                 // touched since it was written: was it in then?
	used  bool
}

// element is an address, or an address and a port.
type element struct {
	address netip.Addr
	port    uint16 // 0: none
}

// update makes the set hold what the pod brings now; nil is a pod that went.
func (s *set) update(uid string, now []element) {
	before := s.of[uid]
	if slices.Equal(before, now) {
		return
	}
	note := func(e element) {
		if _, ok := s.fresh[e]; !ok {
			_, s.fresh[e] = s.count[e]
		}
	}
	for _, e := range now {
		note(e)
		s.count[e]++
	}
	for _, e := range before {
		note(e)
		if s.count[e]--; s.count[e] == 0 {
			delete(s.count, e)
		}
	}
	if len(now) == 0 {
		delete(s.of, uid)
	} else {
		s.of[uid] = now
	}
}

// podsPrefix begins the names of chains that jump to those of policies.
const podsPrefix = "pods-"

// hash names things in the kernel by what they are.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// world is what is known of the cluster. It is not safe for concurrent use.
type world struct {
	pods       map[string]*pod // by UID
	names      map[types.NamespacedName]string
	namespaces map[string]*namespace
	nodes      map[string]*node
	policies   map[string]map[string]*policy // by namespace and name
	local      map[netip.Addr]resident
	sets       map[string]*set // by name
	room       int             // maxElements, but in tests
}

// resident is a pod of this machine, as the container runtime tells it.
type resident struct{ Namespace, Name, UID string }

func newWorld() *world {
	return &world{
		pods: map[string]*pod{}, names: map[types.NamespacedName]string{},
		namespaces: map[string]*namespace{}, nodes: map[string]*node{}, policies: map[string]map[string]*policy{},
		local: map[netip.Addr]resident{}, sets: map[string]*set{}, room: maxElements,
	}
}

func (w *world) setPod(p *pod) {
	if before, ok := w.names[key(&p.ObjectMeta)]; ok && before != string(p.UID) {
		w.deletePod(before) // its end was not seen
	}
	w.names[key(&p.ObjectMeta)] = string(p.UID)
	mine := *p // what an informer holds stays as it is
	mine.address = w.addressOf(p)
	w.pods[string(p.UID)] = &mine
	w.refresh(&mine)
}

func (w *world) deletePod(uid string) {
	if p := w.pods[uid]; p != nil && w.names[key(&p.ObjectMeta)] == uid {
		delete(w.names, key(&p.ObjectMeta))
	}
	delete(w.pods, uid)
	for _, s := range w.sets {
		s.update(uid, nil)
	}
}

func (w *world) refresh(p *pod) {
	of := w.namespaceLabels(p.Namespace)
	for _, s := range w.sets {
		s.update(string(p.UID), s.match(p, of))
	}
}

// namespaceLabels are nil for a namespace that isn't known, which no selector
// but that by name takes in.
func (w *world) namespaceLabels(name string) labels.Set {
	n, ok := w.namespaces[name]
	if !ok {
		return nil
	}
	if n.Labels == nil {
		return labels.Set{}
	}
	return n.Labels
}

// setNamespace takes nil for a namespace that went.
func (w *world) setNamespace(name string, n *namespace) {
	if n == nil {
		delete(w.namespaces, name)
	} else {
		w.namespaces[name] = n
	}
	for _, p := range w.pods {
		if p.Namespace == name {
			w.refresh(p)
		}
	}
}

// setNode takes nil for a node that went.
func (w *world) setNode(name string, n *node) {
	if n == nil {
		delete(w.nodes, name)
	} else {
		w.nodes[name] = n
	}
	for _, p := range w.pods {
		if p.node == name {
			w.locate(p)
		}
	}
}

func (w *world) setPolicy(p *policy) {
	if w.policies[p.Namespace] == nil {
		w.policies[p.Namespace] = map[string]*policy{}
	}
	w.policies[p.Namespace][p.Name] = p
}

func (w *world) deletePolicy(namespace, name string) {
	delete(w.policies[namespace], name)
	if len(w.policies[namespace]) == 0 {
		delete(w.policies, namespace)
	}
}

// setLocal says which pods run on this machine. Their addresses are known here
// before kubelet has told the API server.
func (w *world) setLocal(local map[netip.Addr]resident) {
	if maps.Equal(w.local, local) {
		return
	}
	before := w.local
	w.local = local
	for _, p := range w.pods {
		_, was := before[p.told]
		_, is := local[p.told]
		if was || is || !p.told.IsValid() {
			w.locate(p)
		}
	}
}

func (w *world) locate(p *pod) {
	if now := w.addressOf(p); now != p.address {
		p.address = now
		w.refresh(p)
	}
}

// addressOf is the address that counts as a pod's: one of its node's range, which no
// other pod of this machine has by now.
func (w *world) addressOf(p *pod) netip.Addr {
	if p.told.IsValid() {
		if r, here := w.local[p.told]; here && r.UID != string(p.UID) || p.node != "" && !w.nodes[p.node].has(p.told) {
			return netip.Addr{}
		}
		return p.told
	}
	for a, r := range w.local {
		if r.UID == string(p.UID) {
			return a
		}
	}
	return netip.Addr{}
}

// known says whether the rules for a pod of this machine are those that the
// policies ask for: false, if they are shut because the cluster has not told of
// this pod yet.
func (w *world) known(r resident) bool {
	return len(w.policies[r.Namespace]) == 0 || w.pods[r.UID] != nil
}

// set returns the set with a key, filled.
func (w *world) set(name string, ports bool, match func(*pod, labels.Set) []element) *set {
	s, ok := w.sets[name]
	if !ok {
		s = &set{name: name, ports: ports, match: match,
			of: map[string][]element{}, count: map[element]int{}, fresh: map[element]bool{}}
		w.sets[name] = s
		for uid, p := range w.pods {
			s.update(uid, match(p, w.namespaceLabels(p.Namespace)))
		}
	}
	return s
}

func (w *world) peers(peers []peer) *set {
	return w.set("peers-"+hash(peersKey(peers)), false, func(p *pod, of labels.Set) []element {
		if p.address.IsValid() && slices.ContainsFunc(peers, func(o peer) bool { return o.is(p, of) }) {
			return []element{{address: p.address}}
		}
		return nil
	})
}

func (w *world) named(protocol corev1.Protocol, name string) *set {
	return w.set("named-"+hash(string(protocol), name), true, func(p *pod, _ labels.Set) (all []element) {
		for _, o := range p.ports {
			if p.address.IsValid() && o.protocol == protocol && o.name == name {
				all = append(all, element{p.address, o.port})
			}
		}
		return all
	})
}

// rules computes what the kernel is to hold. Only policies that select a pod of
// this machine count.
func (w *world) rules() *rules {
	r := &rules{pods: map[netip.Addr]bool{}, ways: [2]map[netip.Addr]string{{}, {}}, chains: map[string]chain{},
		sets: map[string]*set{}, troubles: map[*policy]string{}}
	for _, s := range w.sets {
		s.used = false
	}
	made := map[*policy][2]string{}
	room := w.room
	// In order, so that what finds no room is the same each time.
	for _, a := range slices.SortedFunc(maps.Keys(w.local), netip.Addr.Compare) {
		r.pods[a] = true
		resident := w.local[a]
		if len(w.policies[resident.Namespace]) == 0 {
			continue
		}
		p := w.pods[resident.UID]
		if p == nil {
			r.ways[ingress][a], r.ways[egress][a] = closed, closed
			continue
		}
		var mine [2][]string
		for _, name := range slices.Sorted(maps.Keys(w.policies[p.Namespace])) {
			o := w.policies[p.Namespace][name]
			if !o.selects.Matches(labels.Set(p.Labels)) {
				continue
			}
			chains, ok := made[o]
			if !ok {
				chains = w.compile(r, o, &room)
				made[o] = chains
			}
			for d, c := range chains {
				if c != "" {
					mine[d] = append(mine[d], c)
				}
			}
		}
		for d, names := range mine {
			if len(names) == 0 {
				continue
			}
			all := chain{}
			for _, name := range names {
				all.rules = append(all.rules, rule{jump: name})
			}
			all.rules = append(all.rules, rule{drop: true})
			name := podsPrefix + hash(names...)
			r.chains[name] = all
			r.ways[d][a] = name
		}
	}
	for key, s := range w.sets {
		if !s.used {
			delete(w.sets, key)
		}
	}
	return r
}

// compile makes the chains of a policy, by direction, "" for one that it says
// nothing about. room is how many elements more the kernel may hold.
func (w *world) compile(r *rules, p *policy, room *int) (names [2]string) {
	if p.trouble != "" {
		r.troubles[p] = p.trouble
	}
	var ways [2][]rule
	sets, cost := map[string]*set{}, p.entries
	for d, way := range p.ways {
		if way == nil {
			continue
		}
		for _, c := range way.clauses {
			ways[d] = append(ways[d], w.clause(direction(d), c, sets)...)
		}
	}
	for name, s := range sets {
		if r.sets[name] == nil {
			cost += len(s.count)
		}
	}
	if cost > *room {
		r.troubles[p] = fmt.Sprintf("the policies of a machine's pods may name %d addresses and ports in all, "+
			"and this one is beyond that: nothing of it is allowed; select peers by fewer different selectors", w.room)
		ways = [2][]rule{}
	} else {
		*room -= cost
		for name, s := range sets {
			s.used, r.sets[name] = true, s
		}
	}
	for d, way := range p.ways {
		if way != nil {
			comment := p.Namespace + "/" + p.Name
			names[d] = "policy-" + hash(comment, fmt.Sprint(d), text(ways[d]))
			r.chains[names[d]] = chain{comment: comment[:min(len(comment), 120)], rules: ways[d]}
		}
	}
	return names
}

// clause makes the rules of a clause, and notes the sets that they ask.
func (w *world) clause(d direction, c clause, sets map[string]*set) (all []rule) {
	ask := func(s *set) *set {
		sets[s.name] = s
		return s
	}
	var from []rule
	if c.anybody {
		from = append(from, rule{d: d})
	} else {
		if len(c.peers) > 0 {
			from = append(from, rule{d: d, peers: ask(w.peers(c.peers))})
		}
		if len(c.blocks) > 0 {
			from = append(from, rule{d: d, blocks: c.blocks})
		}
	}
	if len(c.ports) == 0 {
		return from
	}
	for _, f := range from {
		for _, ports := range c.ports {
			f.protocol, f.ports, f.named = ports.protocol, ports.spans, nil
			if ports.all || len(ports.spans) > 0 {
				all = append(all, f)
			}
			f.ports = nil
			for _, name := range ports.names {
				f.named = ask(w.named(ports.protocol, name))
				all = append(all, f)
			}
		}
	}
	return all
}

func (p peer) is(o *pod, of labels.Set) bool {
	if p.namespaces == nil {
		return o.Namespace == p.namespace && p.pods.Matches(labels.Set(o.Labels))
	}
	return of != nil && p.namespaces.Matches(of) && p.pods.Matches(labels.Set(o.Labels))
}
