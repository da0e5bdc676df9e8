package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What is kept of the cluster's objects. A machine's memory is its tenant's, but
// what a pod has in fields that no rule asks for needs not lie in it.

type pod struct {
	metav1.ObjectMeta // namespace, name, UID, labels
	node              string
	told              netip.Addr // what its status says
	address           netip.Addr // what is believed
	ports             []namedPort
}

type namedPort struct {
	protocol corev1.Protocol
	name     string
	port     uint16
}

type namespace struct{ metav1.ObjectMeta } // name, labels

// node is a machine, with the ranges of its pods' addresses. A kubelet says itself which
// addresses its pods have, but not what its ranges are: they are written once.
type node struct {
	metav1.ObjectMeta // name
	ranges            []netip.Prefix
}

func (n *node) has(a netip.Addr) bool {
	return n != nil && slices.ContainsFunc(n.ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// policy is a NetworkPolicy, read.
type policy struct {
	metav1.ObjectMeta // namespace, name, UID
	selects           labels.Selector
	ways              [2]*way // by direction; nil: it says nothing about this one
	entries           int     // how many things it enumerates
	trouble           string  // what of it can't be enforced; that much is closed
}

// direction is of packets as the pod sees them.
type direction int

const (
	ingress direction = iota
	egress
)

// way is what a policy allows in one direction.
type way struct{ clauses []clause }

// clause allows some ports of, or for, some peers.
type clause struct {
	anybody bool
	peers   []peer
	blocks  []span
	ports   []ports // none is all of all protocols
}

// peer are pods. Their namespace is one by name, or those with these labels.
type peer struct {
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
}

func (p peer) String() string {
	if p.namespaces == nil {
		return fmt.Sprintf("%q %q", p.namespace, p.pods)
	}
	return fmt.Sprintf("* %q %q", p.namespaces, p.pods)
}

// ports are those of one protocol: spans, and names that pods give to ports.
type ports struct {
	protocol corev1.Protocol
	all      bool
	spans    []span
	names    []string
}

// Bounds. What is beyond is closed, and an event says so.
const (
	maxEntries  = 16 << 10  // of one policy: ports, peers and blocks; the longest lists of a cloud's addresses have half of it
	maxElements = 128 << 10 // in the kernel's sets, of all policies for the pods of this machine; about 16 MiB
)

func key(m *metav1.ObjectMeta) types.NamespacedName {
	return types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
}

func bare(m metav1.ObjectMeta, l map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: l}
}

// slim is what informers keep of an object. It may be given what it returned.
func slim(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return slimPod(o), nil
	case *corev1.Namespace:
		return &namespace{bare(o.ObjectMeta, o.Labels)}, nil
	case *corev1.Node:
		n := &node{ObjectMeta: bare(o.ObjectMeta, nil)}
		for _, r := range o.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(r); err == nil {
				n.ranges = append(n.ranges, p)
			}
		}
		return n, nil
	case *networking.NetworkPolicy:
		return read(o), nil
	}
	return object, nil
}

// slimPod has no address if the pod has none of its own: pods in their machine's
// network are what the machine is, to which policies don't apply.
func slimPod(o *corev1.Pod) *pod {
	p := &pod{ObjectMeta: bare(o.ObjectMeta, o.Labels), node: o.Spec.NodeName}
	if o.Spec.HostNetwork || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return p
	}
	for _, ip := range o.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() {
			p.told = a
			break
		}
	}
	for _, containers := range [][]corev1.Container{o.Spec.InitContainers, o.Spec.Containers} {
		for _, c := range containers {
			for _, port := range c.Ports {
				if port.Name != "" {
					p.ports = append(p.ports, namedPort{protocolOf(&port.Protocol), port.Name, uint16(port.ContainerPort)})
				}
			}
		}
	}
	return p
}

func protocolOf(p *corev1.Protocol) corev1.Protocol {
	if p == nil || *p == "" {
		return corev1.ProtocolTCP
	}
	return *p
}

// read reads a policy. What it can't read allows nothing, and is its trouble.
func read(o *networking.NetworkPolicy) *policy {
	p := &policy{ObjectMeta: bare(o.ObjectMeta, nil), selects: labels.Everything()}
	selects, err := metav1.LabelSelectorAsSelector(&o.Spec.PodSelector)
	if err != nil {
		p.doubt("podSelector: %v", err)
	} else {
		p.selects = selects
	}
	kinds := o.Spec.PolicyTypes
	if len(kinds) == 0 {
		kinds = []networking.PolicyType{networking.PolicyTypeIngress}
		if len(o.Spec.Egress) > 0 {
			kinds = append(kinds, networking.PolicyTypeEgress)
		}
	}
	if slices.Contains(kinds, networking.PolicyTypeIngress) {
		p.ways[ingress] = &way{}
		for _, r := range o.Spec.Ingress {
			p.add(ingress, r.From, r.Ports)
		}
	}
	if slices.Contains(kinds, networking.PolicyTypeEgress) {
		p.ways[egress] = &way{}
		for _, r := range o.Spec.Egress {
			p.add(egress, r.To, r.Ports)
		}
	}
	if p.entries > maxEntries {
		p.doubt("it names more than %d ports, peers and blocks: nothing of it is allowed; divide it into several", maxEntries)
		for d, w := range p.ways {
			if w != nil {
				p.ways[d] = &way{}
			}
		}
	}
	return p
}

func (p *policy) doubt(format string, args ...any) {
	if p.trouble == "" {
		p.trouble = fmt.Sprintf(format, args...)
	}
}

func (p *policy) add(d direction, peers []networking.NetworkPolicyPeer, portList []networking.NetworkPolicyPort) {
	if p.entries += 1 + len(peers) + len(portList); p.entries > maxEntries {
		return
	}
	c := clause{anybody: len(peers) == 0}
	for _, o := range peers {
		if o.IPBlock != nil {
			c.blocks = append(c.blocks, p.block(o.IPBlock)...)
			continue
		}
		one := peer{namespace: p.Namespace, pods: labels.Everything()}
		var err error
		if o.NamespaceSelector != nil {
			one.namespaces, err = metav1.LabelSelectorAsSelector(o.NamespaceSelector)
		}
		if o.PodSelector != nil && err == nil {
			one.pods, err = metav1.LabelSelectorAsSelector(o.PodSelector)
		}
		if err != nil {
			p.doubt("a peer's selector: %v", err)
			continue
		}
		c.peers = append(c.peers, one)
	}
	c.blocks = merge(c.blocks)
	if everything(c.blocks, highest) {
		c.anybody = true
	}
	if !c.anybody && len(c.peers) == 0 && len(c.blocks) == 0 {
		return // only IPv6, or only what can't be read
	}
	if len(portList) > 0 {
		if c.ports = p.ports(portList); len(c.ports) == 0 {
			return
		}
	}
	p.ways[d].clauses = append(p.ways[d].clauses, c)
}

func (p *policy) block(o *networking.IPBlock) []span {
	p.entries += len(o.Except)
	whole, ok, err := block(o.CIDR)
	if err != nil {
		p.doubt("ipBlock %q: %v", o.CIDR, err)
	}
	if !ok {
		return nil
	}
	var holes []span
	for _, cidr := range o.Except {
		hole, ok, err := block(cidr)
		if err != nil {
			p.doubt("except %q: %v", cidr, err)
			return nil // what isn't known to be left out isn't let in
		}
		if ok {
			holes = append(holes, hole)
		}
	}
	return without(whole, holes)
}

func (p *policy) ports(list []networking.NetworkPolicyPort) (all []ports) {
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		one := ports{protocol: protocol}
		for _, o := range list {
			if protocolOf(o.Protocol) != protocol {
				continue
			}
			switch {
			case o.Port == nil:
				one.all = true
			case o.Port.Type == intstr.String:
				one.names = append(one.names, o.Port.StrVal)
			default:
				s := span{uint32(o.Port.IntVal), uint32(o.Port.IntVal)}
				if o.EndPort != nil {
					s.to = uint32(*o.EndPort)
				}
				if s.from < 1 || s.to > 65535 || s.from > s.to {
					p.doubt("ports %d-%d are none", int32(s.from), int32(s.to))
					continue
				}
				one.spans = append(one.spans, s)
			}
		}
		if one.all {
			one.spans, one.names = nil, nil
		}
		one.spans = merge(one.spans)
		slices.Sort(one.names)
		one.names = slices.Compact(one.names)
		if one.all || len(one.spans) > 0 || len(one.names) > 0 {
			all = append(all, one)
		}
	}
	for _, o := range list {
		switch protocol := protocolOf(o.Protocol); protocol {
		case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		default:
			p.doubt("protocol %q is not known, and not allowed: have TCP, UDP and SCTP", protocol)
		}
	}
	return all
}

// peersKey is the same for peers that are the same pods, as far as can be told.
func peersKey(peers []peer) string {
	all := make([]string, len(peers))
	for i, p := range peers {
		all[i] = p.String()
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "; ")
}
