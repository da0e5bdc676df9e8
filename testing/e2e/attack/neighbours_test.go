package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// neighbours are pods of one workspace, on one machine: what its NetworkPolicies
// and their links keep apart. The attacker is a pod that no policy selects.
type neighbours struct {
	*suite
	// guarded takes UDP from the friend on watchPort, and sends nothing. It serves
	// on 8080, and prints the marks of what reaches its link.
	guarded, friend pod
	vip, nodePort   string // of the guarded pod's Service
	byHand          string // of one with the same endpoint, written by hand
	friendVIP       string
	friendPort      string
}

// testNeighbours tries to get past policies, and to be taken for another pod.
func testNeighbours(t *testing.T, s *suite) {
	n := s.neighbours(t)
	defer s.Kube(t, s.box, "", "delete", "networkpolicy/guarded", "pod/guarded", "pod/friend", "service/guarded", "service/friend", "service/by-hand", "--wait=false")
	attacker := s.podSender(t, "neighbour of the pod, root", s.attacker)
	friend := s.podSender(t, "friend of the pod", n.friend)
	honest := func() error { return n.honest(t, friend) }
	if !s.control(t, "a friend's honest packet reaches the guarded pod", honest()) {
		return
	}
	n.frames(t, attacker, honest)
	var all sync.WaitGroup
	all.Go(func() { n.ways(t) })
	// Data must not leave a pod that may send nothing.
	all.Go(func() { n.closed(t, "connect to ", n.guarded, n.outwardTargets()) })
	all.Go(func() { n.racing(t) })
	all.Wait()
	n.killed(t, honest)
}

// neighbours makes the pods and what leads to them.
func (s *suite) neighbours(t *testing.T) *neighbours {
	t.Helper()
	n := &neighbours{suite: s}
	image := s.Image("beta/ops", "tool")
	manifest := strings.NewReplacer("IMAGE", image).Replace(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guarded, namespace: default}
spec:
  podSelector: {matchLabels: {app: guarded}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 40404, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: guarded, namespace: default, labels: {app: guarded}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: tool, image: "IMAGE", args: [wait], securityContext: {runAsUser: 0}, readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}}
  - {name: watch, image: "IMAGE", args: [watch, "40404"], securityContext: {runAsUser: 0}}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: default, labels: {app: friend}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: tool, image: "IMAGE", args: [wait], securityContext: {runAsUser: 0}, readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}}
  - {name: watch, image: "IMAGE", args: [watch, "40404"], securityContext: {runAsUser: 0}}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: default}
spec: {type: NodePort, selector: {app: guarded}, ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, port: 40404, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: friend, namespace: default}
spec: {type: NodePort, selector: {app: friend}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: default}
spec: {ports: [{port: 80, targetPort: 8080}]}
`)
	if r := s.Kube(t, s.box, manifest, "apply", "-f", "-"); r.Code != 0 {
		t.Fatal(r)
	}
	of := func(kind, name, path string) string {
		t.Helper()
		return strings.TrimSpace(s.Kube(t, s.box, "", "get", kind, name, "-o", "jsonpath="+path).Out)
	}
	for name, p := range map[string]*pod{"guarded": &n.guarded, "friend": &n.friend} {
		if r := s.Kube(t, s.box, "", "wait", "pod", name, "--for=condition=Ready", "--timeout=3m"); r.Code != 0 {
			t.Fatal(r)
		}
		*p = pod{kubeconfig: s.box, name: name, ip: of("pod", name, "{.status.podIP}")}
	}
	if r := s.Kube(t, s.box, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand, namespace: default, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [%s]}]
`, n.guarded.ip), "apply", "-f", "-"); r.Code != 0 {
		t.Fatal(r)
	}
	n.vip, n.byHand = of("service", "guarded", "{.spec.clusterIP}"), of("service", "by-hand", "{.spec.clusterIP}")
	n.nodePort = of("service", "guarded", "{.spec.ports[0].nodePort}")
	n.friendVIP, n.friendPort = of("service", "friend", "{.spec.clusterIP}"), of("service", "friend", "{.spec.ports[0].nodePort}")
	return n
}

// seen are the marks that have reached a pod's link.
func (n *neighbours) seen(t testing.TB, p pod) map[string]bool {
	t.Helper()
	marks := map[string]bool{}
	for line := range strings.Lines(n.Kube(t, p.kubeconfig, "", "logs", p.name, "-c", "watch").Out) {
		mark, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		marks[mark] = true
	}
	return marks
}

// honest sends what the policy allows, until it is there.
func (n *neighbours) honest(t testing.TB, friend *sender) error {
	m := &maker{t: t, from: friend.place}
	for range 5 {
		mark, to := newMark(), netip.MustParseAddr(n.guarded.ip)
		if err := friend.send(t.Context(), m.udp(m.ethernet(to), friend.address(), to, watchPort, payload(mark))); err != nil {
			return err
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if n.seen(t, n.guarded)[mark] {
				return nil
			}
		}
	}
	return errors.New("it doesn't arrive")
}

// frames are made by hand: none may come to another pod's link.
func (n *neighbours) frames(t *testing.T, from *sender, honest func() error) {
	m := &maker{t: t, from: from.place}
	own, guarded, friend := from.address(), netip.MustParseAddr(n.guarded.ip), netip.MustParseAddr(n.friend.ip)
	m.protocols(own, guarded, "a pod that doesn't let the sender in")
	m.oddities(own, guarded, friend, "a pod that doesn't let the sender in")
	liars := map[string]netip.Addr{"the pod's friend": friend, "the pod itself": guarded, "the gateway": netip.MustParseAddr(from.Gateway),
		"the machine": netip.MustParseAddr("172.30.0.11"), "the plane": plan.Plane, "a host's place": plan.Gateway(1),
		"another machine's pod": netip.MustParseAddr("10.42.2.9"), "a pod that isn't": netip.MustParseAddr("10.42.1.250"), "the link-local endpoints": wire.LinkLocal,
		"the cluster's DNS": plan.DNS, "loopback": netip.MustParseAddr("127.0.0.1"), "nobody": netip.MustParseAddr("0.0.0.0"),
		"broadcast": netip.MustParseAddr("255.255.255.255"), "the internet": netip.MustParseAddr("198.51.100.7")}
	for whose, liar := range liars {
		m.add("UDP from the address of "+whose, func(mark string) [][]byte {
			return [][]byte{m.udp(m.ethernet(guarded), liar, guarded, watchPort, payload(mark))}
		})
		m.add("TCP SYN from the address of "+whose, func(mark string) [][]byte {
			ip := header(liar, guarded, layers.IPProtocolTCP)
			tcp := &layers.TCP{SrcPort: 40405, DstPort: 8080, SYN: true, Seq: 1, Window: 1024}
			_ = tcp.SetNetworkLayerForChecksum(ip)
			return [][]byte{m.frame(m.ethernet(guarded), ip, tcp, payload(mark))}
		})
		m.add("an answer to nothing, from the address of "+whose, func(mark string) [][]byte {
			ip := header(liar, guarded, layers.IPProtocolTCP)
			tcp := &layers.TCP{SrcPort: 443, DstPort: 40405, SYN: true, ACK: true, Seq: 1, Ack: 1, Window: 1024}
			_ = tcp.SetNetworkLayerForChecksum(ip)
			return [][]byte{m.frame(m.ethernet(guarded), ip, tcp, payload(mark))}
		})
	}
	// Past the gateway, to where another's link would be if there were one for all.
	for whose, to := range map[string]string{"everybody": "ff:ff:ff:ff:ff:ff", "a guess": "0a:58:0a:2a:01:03", "all hosts": "01:00:5e:00:00:01"} {
		for liar, address := range map[string]netip.Addr{"its own address": own, "the friend's": friend} {
			m.add(fmt.Sprintf("UDP in a frame to %s, from %s", whose, liar), func(mark string) [][]byte {
				e := m.ethernet(guarded)
				e.DstMAC = mac(to)
				return [][]byte{m.udp(e, address, guarded, watchPort, payload(mark))}
			})
		}
	}
	for _, to := range []string{"255.255.255.255", "10.42.1.255", "224.0.0.1", "239.1.1.1"} {
		a := netip.MustParseAddr(to)
		m.add("UDP to all at "+to, func(mark string) [][]byte {
			e := m.ethernet(a)
			e.DstMAC = broadcast
			return [][]byte{m.udp(e, own, a, watchPort, payload(mark))}
		})
	}
	m.links(liars)
	var frames [][]byte
	for _, c := range m.all {
		frames = append(frames, c.frames...)
	}
	err := from.send(t.Context(), frames...)
	if err == nil {
		err = honest()
	}
	if !n.control(t, "after all frames of a neighbour a friend's honest packet arrives", err) {
		return
	}
	guardedSaw, friendSaw := n.seen(t, n.guarded), n.seen(t, n.friend)
	for _, c := range m.all {
		n.record(t, attempt{What: c.what, From: from.who, Want: "reaches no other pod", Blocked: !guardedSaw[c.mark] && !friendSaw[c.mark],
			Got: fmt.Sprintf("seen by the guarded pod: %v, by its friend: %v", guardedSaw[c.mark], friendSaw[c.mark])})
	}
}

// ways lead to the guarded pod by other names than its address.
func (n *neighbours) ways(t *testing.T) {
	machine := "172.30.0.11"
	gateway := "10.42.1.1"
	all := map[string]string{
		"tcp:" + n.guarded.ip + ":8080":                     "its address",
		"udp:" + n.guarded.ip + ":40404":                    "its address, a port that is its friend's",
		"tcp:" + n.vip + ":80":                              "its Service",
		"udp:" + n.vip + ":40404":                           "its Service, by UDP",
		"tcp:guarded.default.svc.cluster.local:80":          "its Service's name",
		"tcp:" + n.byHand + ":80":                           "a Service with endpoints made by hand",
		"tcp:" + machine + ":" + n.nodePort:                 "its port on the machine",
		"tcp:" + gateway + ":" + n.nodePort:                 "its port on the gateway of pods",
		"tcp:" + wire.LinkLocal.String() + ":" + n.nodePort: "its port on the link-local address",
	}
	targets := slices.Sorted(maps.Keys(all))
	// The same ways lead to the friend, whom no policy selects.
	free := []string{"tcp:" + n.friend.ip + ":8080", "tcp:" + n.friendVIP + ":80", "tcp:friend.default.svc.cluster.local:80",
		"tcp:" + machine + ":" + n.friendPort}
	got := n.tries(t, n.attacker, free)
	for range 4 {
		maps.Copy(got, n.tries(t, n.attacker, slices.DeleteFunc(slices.Clone(free), func(f string) bool { return strings.HasPrefix(got[f], "open") })))
	}
	var err error
	for _, target := range free {
		if !strings.HasPrefix(got[target], "open") {
			err = errors.Join(err, fmt.Errorf("%s is %s", target, got[target]))
		}
	}
	if !n.control(t, "a pod reaches one that no policy selects, in all ways", err) {
		return
	}
	got = n.tries(t, n.attacker, targets)
	for _, target := range targets {
		n.record(t, attempt{What: "connect to a guarded pod by " + all[target] + ", " + target, From: "neighbour of the pod, root", Want: "no answer",
			Got: got[target], Blocked: strings.HasPrefix(got[target], "closed")})
	}
}

// outwardTargets are what a pod that may send nothing could send to.
func (n *neighbours) outwardTargets() []string {
	return []string{
		"tcp:" + n.friend.ip + ":8080", "tcp:" + n.attacker.ip + ":8080", "udp:" + n.friend.ip + ":40404",
		"tcp:172.30.0.1:6443", "tcp:10.43.0.1:443", "udp:10.43.0.10:53", "tcp:10.43.0.10:53",
		"udp:169.254.20.10:53", "tcp:169.254.20.10:53", "tcp:169.254.20.10:5000",
		"tcp:172.30.0.11:10250", "tcp:10.42.1.1:10250", "tcp:172.30.0.11:10256", "tcp:10.42.1.1:10256", "tcp:172.30.0.11:" + n.friendPort, "tcp:10.42.1.1:" + n.friendPort,
		"tcp:" + n.friendVIP + ":80", "tcp:friend.default.svc.cluster.local:80", "tcp:" + n.Server.Address().String() + ":443", "tcp:" + n.Lab.Address().String() + ":443",
	}
}

// killed: the rules hold on while what keeps them is away, and comes back.
func (n *neighbours) killed(t *testing.T, honest func() error) {
	home := n.machineSpaces(t, n.workspaceID(t, dctest.Rival, "box"))[0]
	const script = `ns=$(stat -Lc %i /run/netns/"$0"); for p in /proc/[0-9]*; do
[ "$(stat -Lc %i $p/ns/net)" = "$ns" ] && grep -qz kube-proxy $p/cmdline && kill -9 ${p#/proc/} && echo killed; done 2>/dev/null; true`
	out, err := home.host.Run(t.Context(), "sh", "-c", script, home.name)
	if err == nil && strings.TrimSpace(string(out)) != "killed" {
		err = fmt.Errorf("got %q", out)
	}
	if !n.control(t, "the machine's kube-proxy is killed", err) {
		return
	}
	var both sync.WaitGroup
	for from, targets := range map[pod][]string{
		n.attacker: {"tcp:" + n.guarded.ip + ":8080", "udp:" + n.guarded.ip + ":40404", "tcp:" + n.vip + ":80"},
		n.guarded:  {"tcp:" + n.friend.ip + ":8080", "tcp:172.30.0.1:6443", "udp:169.254.20.10:53", "udp:10.43.0.10:53"},
	} {
		both.Go(func() { n.closed(t, "after kube-proxy was killed, connect to ", from, targets) })
	}
	both.Wait()
	n.control(t, "after kube-proxy was killed, a friend's honest packet arrives", honest())
}

// closed records attempts of a pod that must get no answer.
func (n *neighbours) closed(t *testing.T, what string, from pod, targets []string) {
	t.Helper()
	who := "neighbour of the pod, root"
	if from == n.guarded {
		who = "a pod that may send nothing, root"
	}
	got := n.tries(t, from, targets)
	for _, target := range targets {
		n.record(t, attempt{What: what + target, From: who, Want: "no answer", Got: got[target],
			Blocked: strings.HasPrefix(got[target], "closed") && !strings.Contains(got[target], "refused")})
	}
}

// racing pods send before anybody could have made rules for them.
func (n *neighbours) racing(t *testing.T) {
	const count = 6
	var docs strings.Builder
	for i := range count + 1 {
		app := "guarded"
		if i == count {
			app = "free"
		}
		fmt.Fprintf(&docs, `---
apiVersion: v1
kind: Pod
metadata: {name: racing-%d, namespace: default, labels: {app: %s, racing: "yes"}}
spec:
  restartPolicy: Never
  containers: [{name: tool, image: %q, args: [try, "tcp:%s:8080", "udp:10.43.0.10:53"]}]
`, i, app, n.Image("beta/ops", "tool"), n.friend.ip)
	}
	if r := n.Kube(t, n.box, docs.String(), "apply", "-f", "-"); r.Code != 0 {
		t.Fatal(r)
	}
	defer n.Kube(t, n.box, "", "delete", "pods", "-l", "racing=yes", "--wait=false")
	said := func(i int) (text string) {
		wait.For(t, wait.Patience, fmt.Sprintf("racing pod %d has tried", i), func(context.Context) error {
			r := n.Kube(t, n.box, "", "logs", fmt.Sprint("racing-", i))
			if text = r.Out; strings.Count(text, "\n") < 2 {
				return errors.New(r.String())
			}
			return nil
		})
		return text
	}
	var err error
	if got := said(count); strings.Count(got, " open ") != 2 {
		err = errors.New(got)
	}
	if !n.control(t, "a pod that no policy selects reaches others from its first instruction on", err) {
		return
	}
	for i := range count {
		got := said(i)
		n.record(t, attempt{What: "connect from the first instruction on, " + fmt.Sprint(count) + " pods at once", From: "a pod that may send nothing",
			Want: "no answer", Got: got, Blocked: strings.Count(got, " closed ") == 2 && !strings.Contains(got, "refused")})
	}
}
