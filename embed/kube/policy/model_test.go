package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"
)

// model is a cluster, and what the API's documentation says of it.
type model struct {
	namespaces map[string]*corev1.Namespace
	pods       map[string]*corev1.Pod // by name
	policies   map[string]*networking.NetworkPolicy
	local      map[string]bool // by name
}

// packet is the first of a connection.
type packet struct {
	from, to netip.Addr
	protocol corev1.Protocol
	port     uint16
}

func (m *model) at(a netip.Addr) (all []*corev1.Pod) {
	for _, p := range m.pods {
		if !p.Spec.HostNetwork && p.Status.PodIP == a.String() && p.Status.Phase != corev1.PodSucceeded {
			all = append(all, p)
		}
	}
	return all
}

// passes says whether a packet passes this machine.
func (m *model) passes(p packet) bool {
	if p.from == p.to {
		return true
	}
	for d, self := range []netip.Addr{ingress: p.to, egress: p.from} {
		other := []netip.Addr{ingress: p.from, egress: p.to}[d]
		for _, pod := range m.at(self) {
			if m.local[pod.Name] && !m.allowed(direction(d), pod, other, p) {
				return false
			}
		}
	}
	return true
}

func (m *model) allowed(d direction, self *corev1.Pod, other netip.Addr, p packet) bool {
	isolated := false
	for _, policy := range m.policies {
		selects, _ := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
		if policy.Namespace != self.Namespace || !selects.Matches(labels.Set(self.Labels)) {
			continue
		}
		kinds := policy.Spec.PolicyTypes
		if len(kinds) == 0 {
			kinds = append(kinds, networking.PolicyTypeIngress)
			if len(policy.Spec.Egress) > 0 {
				kinds = append(kinds, networking.PolicyTypeEgress)
			}
		}
		if d == ingress && slices.Contains(kinds, networking.PolicyTypeIngress) {
			isolated = true
			for _, r := range policy.Spec.Ingress {
				if m.peer(policy.Namespace, r.From, other) && m.port(r.Ports, p) {
					return true
				}
			}
		}
		if d == egress && slices.Contains(kinds, networking.PolicyTypeEgress) {
			isolated = true
			for _, r := range policy.Spec.Egress {
				if m.peer(policy.Namespace, r.To, other) && m.port(r.Ports, p) {
					return true
				}
			}
		}
	}
	return !isolated
}

func (m *model) peer(namespace string, peers []networking.NetworkPolicyPeer, other netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			in := netip.MustParsePrefix(p.IPBlock.CIDR).Contains(other)
			for _, e := range p.IPBlock.Except {
				in = in && !netip.MustParsePrefix(e).Contains(other)
			}
			if in {
				return true
			}
			continue
		}
		for _, pod := range m.at(other) {
			ok := p.NamespaceSelector != nil || pod.Namespace == namespace
			if p.NamespaceSelector != nil {
				s, _ := metav1.LabelSelectorAsSelector(p.NamespaceSelector)
				n := m.namespaces[pod.Namespace]
				ok = n != nil && s.Matches(labels.Set(n.Labels))
			}
			if p.PodSelector != nil {
				s, _ := metav1.LabelSelectorAsSelector(p.PodSelector)
				ok = ok && s.Matches(labels.Set(pod.Labels))
			}
			if ok {
				return true
			}
		}
	}
	return false
}

func (m *model) port(ports []networking.NetworkPolicyPort, p packet) bool {
	if len(ports) == 0 {
		return true
	}
	for _, o := range ports {
		protocol := corev1.ProtocolTCP
		if o.Protocol != nil {
			protocol = *o.Protocol
		}
		switch {
		case protocol != p.protocol:
		case o.Port == nil:
			return true
		case o.Port.Type == intstr.String:
			for _, pod := range m.at(p.to) {
				for _, c := range pod.Spec.Containers {
					for _, port := range c.Ports {
						if port.Name == o.Port.StrVal && port.Protocol == protocol && uint16(port.ContainerPort) == p.port {
							return true
						}
					}
				}
			}
		case o.EndPort != nil:
			if int32(p.port) >= o.Port.IntVal && int32(p.port) <= *o.EndPort {
				return true
			}
		case o.Port.IntVal == int32(p.port):
			return true
		}
	}
	return false
}

// passes evaluates the rules as the kernel does.
func (r *rules) passes(p packet, fromLink, toLink bool) bool {
	for _, hook := range []struct {
		d    direction
		on   bool
		self netip.Addr
	}{{egress, fromLink, p.from}, {ingress, toLink, p.to}} {
		if !hook.on {
			continue
		}
		if !r.pods[hook.self] {
			return false
		}
		if p.from == p.to {
			continue
		}
		if chain, ok := r.ways[hook.d][hook.self]; ok && r.verdict(chain, p) == "drop" {
			return false
		}
	}
	return true
}

func (r *rules) verdict(name string, p packet) string {
	if name == closed {
		return "drop"
	}
	for _, o := range r.chains[name].rules {
		switch {
		case o.jump != "":
			if v := r.verdict(o.jump, p); v != "" {
				return v
			}
		case o.drop:
			return "drop"
		case o.matches(p):
			return "accept"
		}
	}
	return ""
}

func (r rule) matches(p packet) bool {
	other := p.from
	if r.d == egress {
		other = p.to
	}
	if r.peers != nil && r.peers.count[element{address: other}] == 0 ||
		len(r.blocks) > 0 && !contains(r.blocks, number(other)) ||
		r.protocol != "" && r.protocol != p.protocol ||
		len(r.ports) > 0 && !contains(r.ports, uint32(p.port)) {
		return false
	}
	return r.named == nil || r.named.count[element{p.to, p.port}] > 0
}

func pick[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

func randomLabels(r *rand.Rand) map[string]string {
	l := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if r.IntN(3) > 0 {
			l[k] = pick(r, "a", "b", "c")
		}
	}
	return l
}

func randomSelector(r *rand.Rand) metav1.LabelSelector {
	var s metav1.LabelSelector
	switch r.IntN(4) {
	case 0:
		s.MatchLabels = map[string]string{pick(r, "app", "tier"): pick(r, "a", "b", "c")}
	case 1:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: pick(r, "app", "tier"),
			Operator: pick(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{pick(r, "a", "b"), "c"}}}
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: pick(r, "app", "tier"),
			Operator: pick(r, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}
	}
	return s
}

var blocks = []networking.IPBlock{
	{CIDR: "0.0.0.0/0"}, {CIDR: "0.0.0.0/0", Except: []string{"10.42.0.0/16"}}, {CIDR: "0.0.0.0/0", Except: []string{"0.0.0.0/1", "255.0.0.0/8"}},
	{CIDR: "10.42.1.0/24"}, {CIDR: "10.42.1.0/24", Except: []string{"10.42.1.2/31", "10.42.1.3/32", "10.42.1.0/32"}},
	{CIDR: "10.42.1.3/30"}, {CIDR: "192.0.2.7/32"}, {CIDR: "::/0"}, {CIDR: "10.42.1.4/32", Except: []string{"10.42.1.4/32"}},
}

func randomPeers(r *rand.Rand) (all []networking.NetworkPolicyPeer) {
	for range r.IntN(4) {
		var p networking.NetworkPolicyPeer
		if r.IntN(3) == 0 {
			p.IPBlock = new(pick(r, blocks...))
			all = append(all, p)
			continue
		}
		if s := randomSelector(r); r.IntN(2) == 0 {
			p.PodSelector = &s
		}
		if s := randomSelector(r); r.IntN(2) == 0 || p.PodSelector == nil {
			p.NamespaceSelector = &s
		}
		all = append(all, p)
	}
	return all
}

func randomPorts(r *rand.Rand) (all []networking.NetworkPolicyPort) {
	for range r.IntN(4) {
		var p networking.NetworkPolicyPort
		if r.IntN(2) == 0 {
			p.Protocol = new(pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
		}
		switch r.IntN(5) {
		case 0:
		case 1:
			p.Port = new(intstr.FromString(pick(r, "web", "dns", "none")))
		case 2:
			p.Port, p.EndPort = new(intstr.FromInt32(pick[int32](r, 53, 80, 81))), new(pick[int32](r, 81, 443, 65535))
		default:
			p.Port = new(intstr.FromInt32(pick[int32](r, 53, 80, 81, 443)))
		}
		all = append(all, p)
	}
	return all
}

func randomPolicy(r *rand.Rand, namespace, name string) *networking.NetworkPolicy {
	p := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.PodSelector = randomSelector(r)
	for range r.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networking.NetworkPolicyIngressRule{From: randomPeers(r), Ports: randomPorts(r)})
	}
	for range r.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networking.NetworkPolicyEgressRule{To: randomPeers(r), Ports: randomPorts(r)})
	}
	p.Spec.PolicyTypes = pick(r, nil, []networking.PolicyType{networking.PolicyTypeIngress}, []networking.PolicyType{networking.PolicyTypeEgress},
		[]networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress})
	return p
}

var spaces = []string{"x", "y", "z"}

func randomPod(r *rand.Rand, name string, address int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, spaces...), Name: name, UID: types.UID(name), Labels: randomLabels(r)}}
	p.Status.PodIP = fmt.Sprintf("10.42.1.%d", address)
	p.Status.PodIPs = []corev1.PodIP{{IP: "fd00::1"}, {IP: p.Status.PodIP}}
	p.Status.Phase = pick(r, corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded)
	p.Spec.HostNetwork = r.IntN(10) == 0
	p.Spec.Containers = []corev1.Container{{}, {}}
	if r.IntN(2) == 0 {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: pick[int32](r, 80, 81), Protocol: corev1.ProtocolTCP}}
	}
	if r.IntN(2) == 0 {
		p.Spec.Containers[1].Ports = []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolTCP}}
	}
	return p
}

// TestModel: whatever happens in a cluster, in whatever order, packets pass as the
// documentation says, the rules are those that would be made of the cluster anew, and
// the kernel takes each change.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			m := &model{namespaces: map[string]*corev1.Namespace{}, pods: map[string]*corev1.Pod{}, policies: map[string]*networking.NetworkPolicy{}, local: map[string]bool{}}
			w := newWorld()
			k := kernel{nft: knftables.NewFake(knftables.IPv4Family, tableName)}
			for step := range 40 {
				m.step(r, w)
				rules := w.rules()
				if err := k.write(t.Context(), rules); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				m.compare(t, step, rules)
				if step%10 == 0 {
					m.anew(t, k)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// step changes something, in the model and in the world.
func (m *model) step(r *rand.Rand, w *world) {
	set := func(o any) any {
		s, err := slim(o)
		if err != nil {
			panic(err)
		}
		return s
	}
	switch r.IntN(6) {
	case 0:
		name := pick(r, spaces...)
		if m.namespaces[name] != nil && r.IntN(4) == 0 {
			delete(m.namespaces, name)
			w.setNamespace(name, nil)
			return
		}
		m.namespaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: randomLabels(r)}}
		w.setNamespace(name, set(m.namespaces[name]).(*namespace))
	case 1, 2:
		namespace, name := pick(r, spaces...), pick(r, "p", "q", "r")
		if m.policies[namespace+"/"+name] != nil && r.IntN(2) == 0 {
			delete(m.policies, namespace+"/"+name)
			w.deletePolicy(namespace, name)
			return
		}
		m.policies[namespace+"/"+name] = randomPolicy(r, namespace, name)
		w.setPolicy(set(m.policies[namespace+"/"+name]).(*policy))
	default:
		i := 1 + r.IntN(8)
		name := fmt.Sprint("pod", i)
		p := m.pods[name]
		if p != nil && r.IntN(3) == 0 {
			delete(m.pods, name)
			delete(m.local, name)
			w.setLocal(m.residents())
			w.deletePod(string(p.UID))
			return
		}
		fresh := randomPod(r, name, i)
		if p != nil {
			fresh.Namespace, fresh.Spec.HostNetwork = p.Namespace, p.Spec.HostNetwork
		}
		if fresh.UID = types.UID(fmt.Sprint(name, "-", r.IntN(1e6))); p != nil && r.IntN(4) > 0 {
			fresh.UID = p.UID // else it is another of its name, and the end of the first was not seen
		}
		m.local[name] = i%2 == 0 && !fresh.Spec.HostNetwork
		if m.local[name] && fresh.Status.Phase == corev1.PodSucceeded {
			fresh.Status.Phase = corev1.PodRunning // its link goes with it
		}
		m.pods[name] = fresh
		w.setLocal(m.residents())
		w.setPod(set(fresh).(*pod))
	}
}

func (m *model) residents() map[netip.Addr]resident {
	all := map[netip.Addr]resident{}
	for name := range m.local {
		if p := m.pods[name]; p != nil && m.local[name] {
			all[netip.MustParseAddr(p.Status.PodIP)] = resident{p.Namespace, p.Name, string(p.UID)}
		}
	}
	return all
}

// compare tries all pairs of addresses.
func (m *model) compare(t *testing.T, step int, r *rules) {
	t.Helper()
	addresses := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("255.1.1.1")}
	link := map[netip.Addr]bool{}
	for i := 1; i <= 8; i++ {
		a := netip.MustParseAddr(fmt.Sprintf("10.42.1.%d", i))
		addresses = append(addresses, a)
		link[a] = m.local[fmt.Sprint("pod", i)]
	}
	for _, from := range addresses {
		for _, to := range addresses {
			for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
				for _, port := range []uint16{53, 80, 82, 443} {
					p := packet{from, to, protocol, port}
					if got, want := r.passes(p, link[from], link[to]), m.passes(p); got != want {
						t.Errorf("step %d: %+v passes: %v, want %v", step, p, got, want)
						return
					}
				}
			}
		}
	}
}

// anew makes the kernel's table in one go, and compares it with the one that
// many changes have made.
func (m *model) anew(t *testing.T, k kernel) {
	t.Helper()
	w := newWorld()
	for _, o := range m.policies {
		w.setPolicy(read(o))
	}
	for _, o := range m.pods {
		w.setPod(slimPod(o))
	}
	for name, o := range m.namespaces {
		w.setNamespace(name, &namespace{o.ObjectMeta})
	}
	w.setLocal(m.residents())
	fresh := knftables.NewFake(knftables.IPv4Family, tableName)
	if err := (&kernel{nft: fresh}).write(t.Context(), w.rules()); err != nil {
		t.Fatal(err)
	}
	got, want := dump(k.nft.(*knftables.Fake)), dump(fresh)
	if got != want {
		t.Errorf("the table is\n%s\nmade anew it is\n%s", got, want)
	}
}

// dump leaves out what the order of making decides.
func dump(f *knftables.Fake) string {
	lines := strings.Split(f.Dump(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		var all []span
		for range r.IntN(5) {
			from := uint32(r.IntN(20))
			all = append(all, span{from, from + uint32(r.IntN(6))})
		}
		s := span{uint32(r.IntN(10)), uint32(10 + r.IntN(10))}
		merged, left := merge(all), without(s, all)
		for n := range uint32(32) {
			if got, want := contains(merged, n), contains(all, n); got != want {
				t.Fatalf("merge(%v) = %v: %d is in it: %v", all, merged, n, got)
			}
			if got, want := contains(left, n), contains([]span{s}, n) && !contains(all, n); got != want {
				t.Fatalf("without(%v, %v) = %v: %d is in it: %v", s, all, left, n, got)
			}
		}
		for i := 1; i < len(merged); i++ {
			if merged[i].from <= merged[i-1].to+1 {
				t.Fatalf("merge(%v) = %v", all, merged)
			}
		}
	}
	whole := without(span{0, highest}, []span{{0, 9}, {highest - 5, highest}})
	if !slices.Equal(whole, []span{{10, highest - 6}}) {
		t.Errorf("without the ends: %v", whole)
	}
}

// TestBounds: what is beyond the bounds is shut and told, and costs the others nothing.
func TestBounds(t *testing.T) {
	w := newWorld()
	a := netip.MustParseAddr("10.42.1.2")
	w.setNamespace("x", &namespace{metav1.ObjectMeta{Name: "x"}})
	w.setPod(&pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", UID: "u"}, told: a})
	w.setLocal(map[netip.Addr]resident{a: {"x", "p", "u"}})
	long := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "long"}}
	long.Spec.Ingress = []networking.NetworkPolicyIngressRule{{}, {Ports: make([]networking.NetworkPolicyPort, maxEntries)}}
	w.setPolicy(read(long))
	r := w.rules()
	if len(r.troubles) != 1 || r.passes(packet{netip.MustParseAddr("192.0.2.1"), a, corev1.ProtocolTCP, 80}, false, true) {
		t.Errorf("a policy that is too long: troubles %v", r.troubles)
	}
	w.deletePolicy("x", "long")

	w.room = 100
	for i := range 60 {
		w.setPod(&pod{ObjectMeta: metav1.ObjectMeta{Namespace: "y", Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": "a"}},
			told: netip.AddrFrom4([4]byte{10, 100, 0, byte(i)})})
	}
	w.setNamespace("y", &namespace{metav1.ObjectMeta{Name: "y"}})
	for i, value := range []string{"a", "b"} {
		p := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprint("wide", i)}}
		p.Spec.Ingress = []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{},
			PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{value + "x"}}}}}}}}
		w.setPolicy(read(p))
	}
	r = w.rules()
	from := netip.AddrFrom4([4]byte{10, 100, 0, 1})
	if names := slices.Collect(maps.Values(r.troubles)); len(names) != 1 || !strings.Contains(names[0], "beyond") {
		t.Errorf("troubles: %v", names)
	}
	if !r.passes(packet{from, a, corev1.ProtocolTCP, 80}, false, true) || len(w.sets) != 1 {
		t.Errorf("the policy that has room lets nobody in; %d sets", len(w.sets))
	}
}
