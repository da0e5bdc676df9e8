package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// helloPods is the label of the app's pods.
const helloPods = "app.kubernetes.io/name=hello"

// testRecovery breaks one thing after the other; all comes back by itself, and
// what isn't broken does not notice.
func testRecovery(t *testing.T, d *suite) {
	d.Probe(t)
	d.serves(t)
	t.Run("an instance goes", func(t *testing.T) { d.instanceGoes(t) })
	t.Run("plane killed", func(t *testing.T) {
		before := d.Pods(t, helloPods)
		d.Kubectl(t, "create", "configmap", "remember", "--from-literal=what=this", "--dry-run=none")
		defer d.Kubectl(t, "delete", "configmap", "remember", "--wait=false")
		for pid := range d.Processes(t, d.Server, "kube plane --config") {
			d.Kill(t, d.Server, pid)
		}
		wait.For(t, wait.Patience, "the API is back", func(context.Context) error {
			r := d.Kube(t, d.Kubeconfig(), "", "get", "configmap", "remember", "-o", "jsonpath={.data.what}")
			if r.Code != 0 || r.Out != "this" {
				return errors.New(r.String())
			}
			return nil
		})
		d.NodesReady(t, 2)
		d.same(t, before)
	})
	t.Run("containerd and kubelet killed", func(t *testing.T) {
		before := d.Pods(t, helloPods)
		h := d.Nodes[0]
		both := func() map[string]string {
			return merged(d.Processes(t, h, "runtime/containerd --config"), d.Processes(t, h, "kube kubelet"))
		}
		old := both()
		if len(old) < 2 {
			t.Fatalf("node1 runs only %v", old)
		}
		for pid := range old {
			d.Kill(t, h, pid)
		}
		wait.For(t, wait.Patience, "they run again", func(context.Context) error {
			now := both()
			for pid := range old {
				if len(now) != len(old) || now[pid] != "" {
					return fmt.Errorf("%v ran, %v run", old, now)
				}
			}
			return nil
		})
		d.serves(t)
		d.kubelets(t)
		d.same(t, before)
	})
	t.Run("server restarts", func(t *testing.T) {
		before, machines := d.Pods(t, helloPods), d.MachineStarts(t)
		d.Restart(t, d.Server)
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("server killed", func(t *testing.T) {
		before, machines := d.Pods(t, helloPods), d.MachineStarts(t)
		if err := d.Server.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.gone(t, d.Server)
		d.PartsReady(t, d.Server)
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("agent restarts", func(t *testing.T) {
		before, machines := d.Pods(t, helloPods), d.MachineStarts(t)
		start := d.Stop(t, d.Nodes[0])
		if _, err := d.Hello(t.Context(), d.Client()); err != nil {
			t.Errorf("while the agent is off: %v", err)
		}
		start()
		if err := d.Nodes[1].Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.gone(t, d.Nodes[1])
		d.PartsReady(t, d.Nodes[1])
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("power loss", func(t *testing.T) {
		addresses := d.Kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.addresses[0].address}{"\n"}{end}`)
		h, before := d.Nodes[1], d.Pods(t, "app=probe")
		if err := h.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
		// Kubernetes takes a node for Ready long after it was gone: what counts is
		// that its pod has been started anew.
		wait.For(t, wait.Patience, "the machine's pod runs again", func(context.Context) error {
			for name, p := range d.Pods(t, "app=probe") {
				if old := before[name]; p.Restarts > old.Restarts && p.ContainerID != old.ContainerID {
					return nil
				}
			}
			return errors.New("it does not")
		})
		d.serves(t)
		d.kubelets(t)
		if got := d.Kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.addresses[0].address}{"\n"}{end}`); got != addresses {
			t.Errorf("nodes are\n%s\nwere\n%s", got, addresses)
		}
		d.Kubectl(t, "rollout", "status", "deploy/hello", "--timeout", "5m")
	})
}

// serves waits until the API and the app answer and all nodes are Ready.
func (d *suite) serves(t *testing.T) {
	t.Helper()
	d.Answers(t)
	d.NodesReady(t, 2)
}

// kubelets waits until the kubelet of every machine runs commands in its pods,
// and these reach each other.
func (d *suite) kubelets(t *testing.T) {
	t.Helper()
	for name := range d.Pods(t, "app=probe") {
		wait.For(t, wait.Patience, "commands run in "+name, func(context.Context) error {
			r := d.Kube(t, d.Kubeconfig(), "", "exec", name, "--", "/probe", "try", "http:http://probe.default/healthz")
			if r.Code != 0 || !strings.Contains(r.Out, "open 200") {
				return errors.New(r.String())
			}
			return nil
		})
	}
}

// same checks that pods are the ones that were, none restarted.
func (d *suite) same(t *testing.T, before map[string]dctest.Pod) {
	t.Helper()
	if now := d.PodsLike(t, helloPods, before); !maps.Equal(now, before) {
		t.Errorf("pods are\n%v\nwere\n%v", now, before)
	}
}

// instanceGoes deletes an instance under requests: none fails, and none that began
// 3 s after reaches it, which is how long one goes on (modules/apps, drainSeconds).
func (d *suite) instanceGoes(t *testing.T) {
	pods := slices.Sorted(maps.Keys(d.Pods(t, helloPods)))
	var (
		mu       sync.Mutex
		last     = map[string]time.Time{}
		failures []error
		requests int
	)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := d.Client()
			c.Transport.(*http.Transport).DisableKeepAlives = false
			for ctx.Err() == nil {
				began := time.Now()
				instance, err := d.Hello(ctx, c)
				mu.Lock()
				if requests++; err != nil && ctx.Err() == nil {
					failures = append(failures, err)
				} else {
					last[instance] = began
				}
				mu.Unlock()
			}
		})
	}
	asked := time.Now()
	d.Kubectl(t, "delete", "pod", pods[0], "--wait=false")
	deleted := time.Now()
	command := deleted.Sub(asked) // which says how busy the machine is
	d.Kubectl(t, "rollout", "status", "deploy/hello", "--timeout", "5m")
	cancel()
	wg.Wait()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests failed, the first with: %v", len(failures), requests, failures[0])
	}
	if late, most := last[pods[0]].Sub(deleted), 3*time.Second+4*command; late > most {
		t.Errorf("the instance was asked %s after it was deleted, want %s at most", late, most)
	}
	t.Logf("%d requests, the instance was last asked %s after it was deleted", requests, last[pods[0]].Sub(deleted))
}

// gone waits until a killed appliance has been started again.
func (d *suite) gone(t *testing.T, h *lab.Host) {
	t.Helper()
	before := -1
	wait.For(t, wait.Patience, h.Name()+" starts again", func(ctx context.Context) error {
		services, err := h.Services(ctx)
		if err != nil {
			return err
		}
		for _, s := range services {
			if s.Name != "multipaas" {
				continue
			}
			if before < 0 && s.PID != 0 && s.Exit == "" {
				before = s.Restarts
			}
			if s.PID != 0 && s.Restarts > 0 {
				return nil
			}
		}
		return errors.New("it is down")
	})
}

func (d *suite) sameMachines(t *testing.T, before map[string]string) {
	t.Helper()
	if now := d.MachineStarts(t); !maps.Equal(now, before) {
		t.Errorf("machines are %v, were %v", now, before)
	}
}
