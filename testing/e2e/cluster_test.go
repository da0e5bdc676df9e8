package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/testpki"
	"github.com/multipaas/multipaas/testing/wait"
)

// testCluster tries what makes a cluster: its network, and the plane's ways to
// servers in pods.
func testCluster(t *testing.T, d *suite) {
	probe := d.Probe(t)
	t.Run("network", func(t *testing.T) {
		vip := d.Kubectl(t, "get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}")
		targets := []string{
			"http:http://" + vip + "/healthz",
			"http:http://probe/healthz",
			"http:http://probe.default.svc.cluster.local/healthz",
			"tcp:kubernetes.default.svc.cluster.local:443",
			"udp:10.43.0.10:53", "tcp:10.43.0.10:53",
		}
		for _, p := range probe {
			targets = append(targets, "http:http://"+p.IP+":8080/healthz")
		}
		for _, from := range probe {
			got := d.Reached(t, d.Kubeconfig(), from.Name, targets...)
			for _, target := range targets {
				if !strings.HasPrefix(got[target], "open") {
					t.Errorf("from %s on %s: %s is %s", from.IP, from.Node, target, got[target])
				}
			}
		}
	})
	ca := newServerCertificate(t)
	webhook := func(t *testing.T) {
		d.serveInPod(t, ca, "webhook")
		d.Apply(t, fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: probe}
webhooks:
- name: probe.multipaas.test
  clientConfig: {service: {name: webhook, namespace: default, port: 443}, caBundle: %s}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  objectSelector: {matchLabels: {probe: "yes"}}
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
`, base64.StdEncoding.EncodeToString(ca.certPEM)))
		defer d.Kubectl(t, "delete", "mutatingwebhookconfiguration", "probe")
		wait.For(t, wait.Patience, "the webhook is asked", func(context.Context) error {
			r := d.Kube(t, d.Kubeconfig(), `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"hooked-","labels":{"probe":"yes"}}}`,
				"create", "-f", "-", "--dry-run=server", "-o", `jsonpath={.metadata.labels.probe\.multipaas\.test/seen}`)
			if r.Code != 0 || r.Out != "yes" {
				return errors.New(r.String())
			}
			return nil
		})
	}
	aggregated := func(t *testing.T) {
		d.serveInPod(t, ca, "apiserver")
		d.Apply(t, fmt.Sprintf(`
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.probe.multipaas.test}
spec:
  group: probe.multipaas.test
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 10
  caBundle: %s
  service: {name: apiserver, namespace: default, port: 443}
`, base64.StdEncoding.EncodeToString(ca.certPEM)))
		defer d.Kubectl(t, "delete", "apiservice", "v1.probe.multipaas.test")
		d.Kubectl(t, "wait", "apiservice/v1.probe.multipaas.test", "--for=condition=Available", "--timeout=5m")
		// The proxy hears of a group a moment after it is Available.
		wait.For(t, wait.Patience, "the API in the pod answers an EchoList with who asks", func(context.Context) error {
			if r := d.Kube(t, d.Kubeconfig(), "", "get", "--raw", "/apis/probe.multipaas.test/v1/echoes"); !strings.Contains(r.Out, `"EchoList"`) || !strings.Contains(r.Out, "owner@acme.example") {
				return errors.New(r.String())
			}
			return nil
		})
	}
	sideBySide(t, map[string]func(*testing.T){
		"names of the tenant's own": func(t *testing.T) { d.customNames(t, probe) },
		"admission webhook":         webhook,
		"aggregated API":            aggregated,
	})
	t.Run("pod security", func(t *testing.T) { d.podSecurity(t) })
}

// serverCertificate is for servers in pods.
type serverCertificate struct{ certPEM, serverCert, serverKey []byte }

func newServerCertificate(t *testing.T) serverCertificate {
	t.Helper()
	ca := testpki.New(t)
	c := serverCertificate{certPEM: ca.CertPEM()}
	var err error
	c.serverCert, c.serverKey, err = ca.Issue(pki.Request{CommonName: "probe", Hosts: []string{"webhook.default.svc", "apiserver.default.svc"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serveInPod runs a server of the probe in a pod behind a Service of its name.
func (d *suite) serveInPod(t *testing.T, c serverCertificate, mode string) {
	t.Helper()
	d.Apply(t, strings.NewReplacer("MODE", mode, "IMAGE", d.ProbeImage("acme/web"),
		"CERT", base64.StdEncoding.EncodeToString(c.serverCert), "KEY", base64.StdEncoding.EncodeToString(c.serverKey)).Replace(`
apiVersion: v1
kind: Secret
metadata: {name: MODE-tls, namespace: default}
type: kubernetes.io/tls
data: {tls.crt: "CERT", tls.key: "KEY"}
---
apiVersion: v1
kind: Service
metadata: {name: MODE, namespace: default}
spec: {selector: {app: MODE}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: MODE, namespace: default, labels: {app: MODE}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: IMAGE
    args: [MODE]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
    volumeMounts: [{name: tls, mountPath: /tls}]
  volumes: [{name: tls, secret: {secretName: MODE-tls}}]
`))
	d.Kubectl(t, "wait", "pod/"+mode, "--for=condition=Ready", "--timeout=5m")
}

// podSecurity tries pods that would take over their machine.
func (d *suite) podSecurity(t *testing.T) {
	d.Apply(t, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"loose","labels":{"pod-security.kubernetes.io/enforce":"privileged"}}}`)
	const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad","namespace":"loose"},"spec":{%s"containers":[{%s"name":"c","image":"multipaas.internal/hello:1"}]}}`
	bad := map[string]string{
		"hostNetwork":       fmt.Sprintf(pod, `"hostNetwork":true,`, ""),
		"hostPID":           fmt.Sprintf(pod, `"hostPID":true,`, ""),
		"hostPath":          fmt.Sprintf(pod, `"volumes":[{"name":"v","hostPath":{"path":"/"}}],`, ""),
		"hostPort":          fmt.Sprintf(pod, "", `"ports":[{"containerPort":80,"hostPort":80}],`),
		"privileged":        fmt.Sprintf(pod, "", `"securityContext":{"privileged":true},`),
		"capability":        fmt.Sprintf(pod, "", `"securityContext":{"capabilities":{"add":["SYS_ADMIN"]}},`),
		"volume hostPath":   `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"bad"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":"/"}}}`,
		"volume local path": `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"bad"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"local":{"path":"/"},"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]}}}}`,
	}
	// try writes all of them, each for itself, without keeping any.
	all := strings.Join(slices.Collect(maps.Values(bad)), "\n---\n")
	try := func(taken int) error {
		r := d.Kube(t, d.Kubeconfig(), all, "create", "-f", "-", "--dry-run=server")
		if yes, no := strings.Count(r.Out, " created "), strings.Count(r.Err, "Error from server"); yes != taken || yes+no != len(bad) {
			return fmt.Errorf("%d are taken and %d refused: %s", yes, no, r)
		}
		return nil
	}
	if err := try(0); err != nil {
		t.Errorf("taken, though baseline is enforced:\n%v", err)
	}
	if r := d.MP(t, owner, "ws", "set", "shop", "--pod-security", "privileged"); r.Code != 6 {
		t.Errorf("the tenant lifts it himself: %s; want exit 6", r)
	}
	set := func(level string) {
		d.Must(t, admin, "ws", "set", "shop", "--account", "acme", "--organization", "web", "--pod-security", level, "--timeout", "5m")
	}
	set("privileged")
	wait.For(t, wait.Patience, "privileged pods are taken", func(context.Context) error { return try(len(bad)) })
	if got := d.Must(t, owner, "ws", "show", "shop", "-o", "yaml"); !strings.Contains(got, "privileged") {
		t.Errorf("ws show does not say that it was lifted:\n%s", got)
	}
	// Taken is not all: it runs, in a machine that has not what it wants of the host.
	d.Apply(t, bad["privileged"])
	d.Kubectl(t, "wait", "pod/bad", "--namespace", "loose", "--for=condition=Ready", "--timeout=2m")
	d.Kubectl(t, "delete", "pod/bad", "--namespace", "loose", "--grace-period=1")
	set("baseline")
	wait.For(t, wait.Patience, "they are refused again", func(context.Context) error { return try(0) })
}

// customNames are added by the tenant to cluster DNS, together with what CoreDNS
// can't read: that is left out and told, and all other names stay.
func (d *suite) customNames(t *testing.T, probe []dctest.Pod) {
	d.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns-custom, namespace: kube-system}
data:
  zone.server: |
    company.example:53 {
        hosts {
            %s intranet.company.example
        }
    }
  more.override: |
    hosts {
        %s more.example
        fallthrough
    }
  broken.server: |
    company2.example:53 {
        no-such-plugin
`, probe[1].IP, probe[1].IP))
	defer d.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns-custom")
	// kubelet and CoreDNS take what is new within two minutes; new pods have it at once.
	d.Kubectl(t, "rollout", "restart", "-n", "kube-system", "deploy/coredns")
	d.Kubectl(t, "rollout", "status", "-n", "kube-system", "deploy/coredns", "--timeout", "60s")
	targets := []string{"http:http://intranet.company.example:8080/healthz", "http:http://more.example:8080/healthz", "http:http://probe/healthz"}
	got := d.Reached(t, d.Kubeconfig(), probe[0].Name, targets...)
	for _, target := range targets {
		if !strings.HasPrefix(got[target], "open") {
			t.Errorf("%s is %s", target, got[target])
		}
	}
	if said := d.Kubectl(t, "get", "events", "-n", "kube-system", "--field-selector", "involvedObject.name=coredns-custom"); !strings.Contains(said, "broken.server is left out") {
		t.Errorf("events of coredns-custom: %q", said)
	}
}
