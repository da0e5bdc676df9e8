package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// guarded are the pods x/a, x/b, v/a, ... of three namespaces: a's on one machine, b's
// on the other, all serving on three ports.
type guarded struct {
	*suite
	ips map[string]string // by "x/a"
}

var (
	guardedPods  = []string{"x/a", "x/b", "v/a", "v/b", "z/a", "z/b"}
	guardedPorts = []string{"tcp:8080", "tcp:8081", "udp:8053"}
)

func testPolicy(t *testing.T, d *suite) {
	g := d.guardedPods(t)
	defer d.Kubectl(t, "delete", "namespace", "x", "v", "z", "--wait=false")
	t.Run("nothing is kept apart", func(t *testing.T) { g.expect(t, nil, nil) })
	sideBySide(t, map[string]func(*testing.T){
		"who may reach whom": g.whoMayReachWhom,
		"the front door":     d.frontDoor,
	})
	t.Run("what changes", func(t *testing.T) { g.whatChanges(t) })
	t.Run("from the first packet", func(t *testing.T) { g.firstPacket(t) })
}

func (d *suite) guardedPods(t *testing.T) *guarded {
	t.Helper()
	var docs strings.Builder
	machines := strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	for _, ns := range []string{"x", "v", "z"} {
		fmt.Fprintf(&docs, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {ns: %s}}}\n", ns, ns)
		for i, name := range []string{"a", "b"} {
			fmt.Fprintf(&docs, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {pod: %s, guarded: "yes"}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: %q
    args: [wait]
    ports: [{name: web, containerPort: 8080}, {name: echo, containerPort: 8053, protocol: UDP}]
    readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}
`, name, ns, name, machines[i%len(machines)], d.ProbeImage("acme/web"))
		}
	}
	d.PushProbe(t)
	d.Apply(t, docs.String())
	g := &guarded{suite: d, ips: map[string]string{}}
	d.Kubectl(t, "wait", "pod", "-A", "-l", "guarded=yes", "--for=condition=Ready", "--timeout=3m")
	list := d.Kubectl(t, "get", "pods", "-A", "-l", "guarded=yes", "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.podIP}{"\n"}{end}`)
	for line := range strings.Lines(list) {
		name, ip, _ := strings.Cut(strings.TrimSpace(line), " ")
		g.ips[name] = ip
	}
	return g
}

// reached tries all pods' ports from all pods, and returns "x/a > x/b tcp:8080" for
// each that answers.
func (g *guarded) reached(t testing.TB) map[string]bool {
	t.Helper()
	got := map[string]bool{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, from := range guardedPods {
		all.Go(func() {
			ns, pod, _ := strings.Cut(from, "/")
			names, command := map[string]string{}, []string{"exec", "-n", ns, pod, "--", "/probe", "try"}
			for _, to := range guardedPods {
				for _, port := range guardedPorts {
					network, number, _ := strings.Cut(port, ":")
					target := fmt.Sprintf("%s:%s:%s", network, g.ips[to], number)
					names[target] = fmt.Sprintf("%s > %s %s", from, to, port)
					command = append(command, target)
				}
			}
			r := g.Kube(t, g.Kubeconfig(), "", command...)
			if r.Code != 0 {
				t.Error(r)
			}
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(r.Out) {
				target, outcome, _ := strings.Cut(strings.TrimSpace(line), " ")
				got[names[target]] = strings.HasPrefix(outcome, "open")
			}
		})
	}
	all.Wait()
	return got
}

// expect compares what pods reach with what they may: to says for some pods who
// reaches them by which port ("x/a tcp:8080"; "* udp:8053"), from for some what they
// reach. Everything else is open, and nobody is kept from himself.
func (g *guarded) expect(t *testing.T, to, from map[string][]string) {
	t.Helper()
	allows := func(list []string, who, port string) bool {
		return slices.Contains(list, who+" "+port) || slices.Contains(list, "* "+port) || slices.Contains(list, who+" *")
	}
	want := map[string]bool{}
	for _, a := range guardedPods {
		for _, b := range guardedPods {
			for _, port := range guardedPorts {
				in, guardedIn := to[b]
				out, guardedOut := from[a]
				want[fmt.Sprintf("%s > %s %s", a, b, port)] = a == b || (!guardedIn || allows(in, a, port)) && (!guardedOut || allows(out, b, port))
			}
		}
	}
	var wrong []string
	wait.For(t, wait.Patience, "pods reach those that policies let them reach, and no others", func(context.Context) error {
		got := g.reached(t)
		wrong = nil
		for _, attempt := range slices.Sorted(maps.Keys(want)) {
			if got[attempt] != want[attempt] {
				wrong = append(wrong, fmt.Sprintf("%s: %v", attempt, got[attempt]))
			}
		}
		if len(wrong) > 0 {
			return errors.New(strings.Join(wrong, "; "))
		}
		return nil
	})
}

func (g *guarded) whoMayReachWhom(t *testing.T) {
	g.Apply(t, strings.NewReplacer("X_A", g.ips["x/a"], "Y_A", g.ips["v/a"], "X_B", g.ips["x/b"]).Replace(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: x}
spec: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: by-label-and-name, namespace: x}
spec:
  podSelector: {matchLabels: {pod: b}}
  ingress:
  - {from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: web}, {port: echo, protocol: UDP}]}
  - {from: [{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {}}], ports: [{port: 8053, protocol: UDP}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: by-namespace-and-range, namespace: v}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - {from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x]}]}}], ports: [{port: 8081, endPort: 8090}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: by-both-and-block, namespace: v}
spec:
  podSelector: {matchLabels: {pod: b}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - {namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: a}}}
    - {ipBlock: {cidr: X_A/32}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-dns-and-one, namespace: z}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
  - {to: [{ipBlock: {cidr: X_B/32}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all-but, namespace: z}
spec:
  podSelector: {matchLabels: {pod: b}}
  ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16, except: [X_A/32, Y_A/32]}}], ports: [{protocol: UDP}, {port: 8080}]}]
`))
	g.expect(t, map[string][]string{
		"x/a": nil,
		"x/b": {"x/a tcp:8080", "x/a udp:8053", "z/a udp:8053", "z/b udp:8053"},
		"v/a": {"x/a tcp:8081", "x/b tcp:8081"},
		"v/b": {"z/a *", "x/a *"},
		"z/b": {"x/b udp:8053", "v/b udp:8053", "z/a udp:8053", "x/b tcp:8080", "v/b tcp:8080", "z/a tcp:8080"},
	}, map[string][]string{"z/a": {"x/b *"}})
	// Names are asked of a Service, whose address is not among what is allowed.
	got := g.tryFrom(t, "z/a", "udp:10.43.0.10:53", "tcp:10.43.0.10:53", "tcp:10.43.0.1:443", "tcp:172.30.0.1:6443", "udp:169.254.20.10:53", "tcp:169.254.20.10:5000")
	for target, want := range map[string]bool{"udp:10.43.0.10:53": true, "tcp:10.43.0.10:53": true, "tcp:10.43.0.1:443": false,
		"tcp:172.30.0.1:6443": false, "udp:169.254.20.10:53": false, "tcp:169.254.20.10:5000": false} {
		if strings.HasPrefix(got[target], "open") != want {
			t.Errorf("a pod that may ask only for names: %s is %s", target, got[target])
		}
	}
	// Nobody reaches x/a, but for kubelet.
	g.Kubectl(t, "wait", "pod", "a", "-n", "x", "--for=condition=Ready", "--timeout=1m")
}

func (g *guarded) tryFrom(t testing.TB, from string, targets ...string) map[string]string {
	t.Helper()
	ns, pod, _ := strings.Cut(from, "/")
	r := g.Kube(t, g.Kubeconfig(), "", append([]string{"exec", "-n", ns, pod, "--", "/probe", "try"}, targets...)...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	all := map[string]string{}
	for line := range strings.Lines(r.Out) {
		target, outcome, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[target] = outcome
	}
	return all
}

// whatChanges: labels of pods and of namespaces, and policies that are written
// anew or go.
func (g *guarded) whatChanges(t *testing.T) {
	g.Kubectl(t, "label", "pod", "a", "-n", "x", "pod=c", "--overwrite")                                                                             // x/a is selected by none, and no peer of x/b
	g.Kubectl(t, "label", "namespace", "v", "ns=z", "--overwrite")                                                                                   // v's pods may what z's may
	g.Kubectl(t, "delete", "networkpolicy", "-n", "z", "--all")                                                                                      // z is open
	g.Kubectl(t, "patch", "networkpolicy", "by-both-and-block", "-n", "v", "--type=json", "-p", `[{"op":"remove","path":"/spec/ingress/0/from/1"}]`) // not by x/a any more
	g.expect(t, map[string][]string{
		"x/b": {"z/a udp:8053", "z/b udp:8053", "v/a udp:8053", "v/b udp:8053"},
		"v/a": {"x/a tcp:8081", "x/b tcp:8081"},
		"v/b": {"z/a *", "v/a *"},
	}, nil)
}

// firstPacket: pods that may send nothing send nothing from their first instruction
// on; and others have their network then.
func (g *guarded) firstPacket(t *testing.T) {
	g.Apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silent, namespace: z}
spec: {podSelector: {matchLabels: {silent: "yes"}}, policyTypes: [Egress]}
`)
	var docs strings.Builder
	const count = 3
	for i := range 2 * count {
		fmt.Fprintf(&docs, `---
apiVersion: v1
kind: Pod
metadata: {name: first-%d, namespace: z, labels: {silent: %q}}
spec:
  restartPolicy: Never
  containers: [{name: probe, image: %q, args: [try, "tcp:%s:8080", "udp:%[4]s:8053", "tcp:172.30.0.1:6443"]}]
`, i, []string{"yes", "no"}[i%2], g.ProbeImage("acme/web"), g.ips["z/b"])
	}
	g.Apply(t, docs.String())
	g.Kubectl(t, "wait", "pod", "-n", "z", "-l", "silent", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=2m")
	for silent, want := range map[string]string{"yes": " closed ", "no": " open "} {
		lines := strings.Split(g.Kubectl(t, "logs", "-n", "z", "-l", "silent="+silent), "\n")
		if len(lines) != 3*count {
			t.Errorf("silent %s: %d attempts, want %d", silent, len(lines), 3*count)
		}
		for _, line := range lines {
			if !strings.Contains(line, want) {
				t.Errorf("silent %s: %s", silent, line)
			}
		}
	}
}

// frontDoor: the balancer is let in as anybody is, by its address.
func (d *suite) frontDoor(t *testing.T) {
	const deny = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hello, namespace: default}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: hello}}
  policyTypes: [Ingress]
`
	defer d.Kubectl(t, "delete", "networkpolicy", "hello", "-n", "default")
	answers := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := d.Hello(ctx, d.Client())
		return err == nil
	}
	await := func(what string, want bool) {
		t.Helper()
		wait.For(t, wait.Patience, what, func(context.Context) error {
			if answers() != want {
				return errors.New("not yet")
			}
			return nil
		})
	}
	d.Apply(t, deny)
	await("an app that lets nobody in doesn't answer at the front door", false)
	d.Apply(t, deny+"  ingress: [{from: [{ipBlock: {cidr: 172.30.0.1/32}}]}]\n")
	await("an app that lets the front door in answers there", true)
}
