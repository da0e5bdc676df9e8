package dctest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// DoorPorts are those of the platform's front door: what anybody reaches of a server,
// pods as well.
var DoorPorts = []int{80, 443, 5000, 6443, 7443}

// Door are the front door's targets, as Attempts takes them.
func (d *Datacenter) Door() (targets []string) {
	for _, p := range DoorPorts {
		targets = append(targets, fmt.Sprintf("tcp:%s:%d", d.Server.Address(), p))
	}
	return targets
}

// Attempts asks a pod to try addresses and returns what came of each: "open ..."
// or "closed ...".
func (d *Datacenter) Attempts(t testing.TB, kubeconfig, pod string, targets ...string) map[string]string {
	t.Helper()
	r := d.Kube(t, kubeconfig, "", append([]string{"exec", pod, "--", "/probe", "try"}, targets...)...)
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

// Reached is Attempts for what must be open: what is not is tried a few times more,
// for packets may be lost.
func (d *Datacenter) Reached(t testing.TB, kubeconfig, pod string, targets ...string) map[string]string {
	t.Helper()
	all := d.Attempts(t, kubeconfig, pod, targets...)
	for range 4 {
		closed := slices.DeleteFunc(slices.Clone(targets), func(target string) bool { return strings.HasPrefix(all[target], "open") })
		if len(closed) == 0 {
			break
		}
		maps.Copy(all, d.Attempts(t, kubeconfig, pod, closed...))
	}
	return all
}

// ProbeImage is the image of the probe in the platform's registry.
func (d *Datacenter) ProbeImage(organization string) string { return d.Image(organization, "probe") }

// PushProbe puts the probe in both accounts' repositories, once.
func (d *Datacenter) PushProbe(t testing.TB) {
	t.Helper()
	if d.Pushed {
		return
	}
	d.ProbeLayout, d.ProbeV1 = d.PushProgram(t, "probe", "./testing/e2e/probe")
	d.Pushed = true
}

// Probe runs the probe on every machine of acme/web/shop, with a Service, and
// returns its pods.
func (d *Datacenter) Probe(t testing.TB) []Pod {
	t.Helper()
	d.PushProbe(t)
	d.Apply(t, ProbeManifest(d.ProbeImage("acme/web")))
	d.Kubectl(t, "rollout", "status", "daemonset/probe", "--timeout", "5m")
	var all []Pod
	for _, p := range d.Pods(t, "app=probe") {
		all = append(all, p)
	}
	if len(all) != 2 {
		t.Fatalf("the probe runs in %d pods, want 2", len(all))
	}
	return all
}

func ProbeManifest(image string) string {
	return strings.ReplaceAll(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: default}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: probe, image: "IMAGE", args: [wait], readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: default}
spec:
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080}]
`, "IMAGE", image)
}
