package attack

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

// suite is the datacenter that all parts share, with the pods of both tenants.
type suite struct {
	*dctest.Datacenter
	box string // kubeconfig of A's workspace, as its owner

	// attacker is A's pod in namespace default of box: root in its container
	// with the default capabilities, CAP_NET_RAW among them. It runs /tool.
	attacker pod
	// victims are B's pods in namespace default of shop, one per machine, which run
	// /tool too.
	victims []pod
	shop    string // id of B's workspace
	tool    v1.Image
	old     *aging // tokens that expire while the suite runs
	keeps   kept   // volumes of B's and A's

	table table
}

// pod is a pod of one of the tenants.
type pod struct {
	kubeconfig, name, ip string
	node                 string // its machine
}

// TestAttack runs the parts in an order: those that only look come before those
// that use everything up. Each part can be run alone.
func TestAttack(t *testing.T) {
	s := &suite{Datacenter: dctest.Start(t, "attack")}
	defer s.report(t)
	s.BeginBox(t)
	s.setUp(t)
	s.old = s.beginToAge(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"reach", testReach},
		{"addresses", testAddresses},
		{"raw", testRaw},
		{"neighbours", testNeighbours},
		{"admission", testAdmission},
		{"developers", testDevelopers},
		{"plane", testPlane},
		{"dns", testDNS},
		{"api", testAPI},
		{"tokens", testTokens},
		{"offers", testOffers},
		{"hosts", testHosts},
		{"registry", testRegistry},
		{"door", testDoor},
		{"images", testImages},
		{"setuid", testSetuid},
		{"unmasked", testUnmasked},
		{"rooted", testRooted},
		{"walled", testWalled},
		{"held", testHeld},
		{"volumes", testVolumes},
		{"pots", testPots},
		{"paths", testPaths},
		{"external", testExternal},
		{"front", testFront},
		{"http2", testHTTP2},
		{"resources", testResources},
		{"expiry", testExpiry},
	} {
		began := time.Now()
		t.Run(part.name, func(t *testing.T) {
			defer s.Tell(t)
			part.test(t, s)
		})
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// setUp runs the tool in pods of both tenants.
func (s *suite) setUp(t *testing.T) {
	t.Helper()
	_, s.tool = s.PushProgram(t, "tool", "./testing/e2e/attack/tool")
	wait.For(t, wait.Patience, "B's tool is applied", func(context.Context) error {
		if r := s.Kube(t, s.Kubeconfig(), toolManifest(s.Image("acme/web", "tool")), "apply", "-f", "-"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	s.box = s.Box(t)
	wait.For(t, wait.Patience, "A's tool is applied", func(context.Context) error {
		if r := s.Kube(t, s.box, toolManifest(s.Image("beta/ops", "tool")), "apply", "-f", "-"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	ready := s.beginToKeep(t)
	s.victims = s.toolPods(t, s.Kubeconfig())
	if len(s.victims) != 2 {
		t.Fatalf("B's tool runs in %d pods, want 2", len(s.victims))
	}
	s.attacker = s.toolPods(t, s.box)[0]
	ready()
}

// toolPods waits until the tool runs on all machines of a workspace.
func (s *suite) toolPods(t *testing.T, kubeconfig string) []pod {
	t.Helper()
	if r := s.Kube(t, kubeconfig, "", "rollout", "status", "daemonset/tool", "--timeout", "5m"); r.Code != 0 {
		t.Fatal(r)
	}
	r := s.Kube(t, kubeconfig, "", "get", "pods", "-l", "app=tool", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}`)
	var all []pod
	for line := range strings.Lines(r.Out) {
		if f := strings.Fields(line); len(f) == 3 {
			all = append(all, pod{kubeconfig: kubeconfig, name: f[0], ip: f[1], node: f[2]})
		}
	}
	if len(all) == 0 {
		t.Fatalf("the tool runs in no pod: %s", r)
	}
	return all
}

// in runs a command in a pod.
func (s *suite) in(t testing.TB, p pod, args ...string) dctest.Result {
	t.Helper()
	return s.exec(t, p.kubeconfig, "default", p.name, "", args...)
}

// exec runs a command in a pod of a namespace: again, if kubectl got no connection to
// the pod, so that what the caller reads was said there.
func (s *suite) exec(t testing.TB, kubeconfig, namespace, name, stdin string, args ...string) (r dctest.Result) {
	t.Helper()
	command := []string{"exec", "-n", namespace, name}
	if stdin != "" {
		command = append(command, "-i")
	}
	for range 5 {
		r = s.Kube(t, kubeconfig, stdin, slices.Concat(command, []string{"--"}, args)...)
		if r.Code == 0 || !slices.ContainsFunc(noConnection, func(sign string) bool { return strings.Contains(r.Err, sign) }) {
			return r
		}
		time.Sleep(time.Second)
	}
	return r
}

// noConnection are words of kubectl's that tell of one that did not come about.
var noConnection = []string{"error dialing backend", "unable to upgrade connection", "Unable to connect to the server", "TLS handshake timeout", "http2: ", "EOF", "the server is currently unable", "Internal error occurred"}

// toolManifest runs the tool on every machine, as root: what baseline leaves.
func toolManifest(image string) string {
	return strings.ReplaceAll(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: tool, namespace: default}
spec:
  selector: {matchLabels: {app: tool}}
  template:
    metadata: {labels: {app: tool}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: tool
        image: "IMAGE"
        args: [wait]
        securityContext: {runAsUser: 0, runAsGroup: 0}
        readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: tool, namespace: default}
spec:
  selector: {app: tool}
  ports: [{port: 80, targetPort: 8080}]
`, "IMAGE", image)
}
