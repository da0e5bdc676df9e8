package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/lab"
)

// helloPods is the label of the app's pods.
const helloPods = "app.kubernetes.io/name=hello"

// testRecovery breaks one thing after the other; all comes back by itself, and
// what isn't broken does not notice.
func testRecovery(t *testing.T, d *datacenter) {
	d.probe(t)
	d.serves(t)
	t.Run("an instance goes", func(t *testing.T) { d.instanceGoes(t) })
	t.Run("plane killed", func(t *testing.T) {
		before := d.pods(t, helloPods)
		d.kubectl(t, "create", "configmap", "remember", "--from-literal=what=this", "--dry-run=none")
		defer d.kubectl(t, "delete", "configmap", "remember", "--wait=false")
		for pid := range d.processes(t, d.server, "kube plane --config") {
			d.kill(t, d.server, pid)
		}
		eventually(t, 90*time.Second, "the API is back", func(context.Context) error {
			r := d.kube(t, d.kubeconfig(), "", "get", "configmap", "remember", "-o", "jsonpath={.data.what}")
			if r.code != 0 || r.out != "this" {
				return errors.New(r.String())
			}
			return nil
		})
		d.nodesReady(t, 2)
		d.same(t, before)
	})
	t.Run("containerd and kubelet killed", func(t *testing.T) {
		before := d.pods(t, helloPods)
		h := d.nodes[0]
		both := func() map[string]string {
			return merged(d.processes(t, h, "runtime/containerd --config"), d.processes(t, h, "kube kubelet"))
		}
		old := both()
		if len(old) < 2 {
			t.Fatalf("node1 runs only %v", old)
		}
		for pid := range old {
			d.kill(t, h, pid)
		}
		eventually(t, 30*time.Second, "they run again", func(context.Context) error {
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
		before, machines := d.pods(t, helloPods), d.machineStarts(t)
		d.restart(t, d.server)
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("server killed", func(t *testing.T) {
		before, machines := d.pods(t, helloPods), d.machineStarts(t)
		if err := d.server.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.gone(t, d.server)
		d.partsReady(t, d.server)
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("agent restarts", func(t *testing.T) {
		before, machines := d.pods(t, helloPods), d.machineStarts(t)
		start := d.stop(t, d.nodes[0])
		if _, err := d.hello(t.Context(), d.client()); err != nil {
			t.Errorf("while the agent is off: %v", err)
		}
		start()
		if err := d.nodes[1].Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.gone(t, d.nodes[1])
		d.partsReady(t, d.nodes[1])
		d.serves(t)
		d.same(t, before)
		d.sameMachines(t, machines)
	})
	t.Run("power loss", func(t *testing.T) {
		addresses := d.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.addresses[0].address}{"\n"}{end}`)
		h, before := d.nodes[1], d.pods(t, "app=probe")
		if err := h.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.partsReady(t, h)
		// Kubernetes takes a node for Ready long after it was gone: what counts is
		// that its pod has been started anew.
		eventually(t, time.Minute, "the machine's pod runs again", func(context.Context) error {
			for name, p := range d.pods(t, "app=probe") {
				if old := before[name]; p.restarts > old.restarts && p.containerID != old.containerID {
					return nil
				}
			}
			return errors.New("it does not")
		})
		d.serves(t)
		d.kubelets(t)
		if got := d.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.addresses[0].address}{"\n"}{end}`); got != addresses {
			t.Errorf("nodes are\n%s\nwere\n%s", got, addresses)
		}
		d.kubectl(t, "rollout", "status", "deploy/hello", "--timeout", "90s")
	})
}

// serves waits until the API and the app answer and all nodes are Ready.
func (d *datacenter) serves(t *testing.T) {
	t.Helper()
	d.answers(t)
	d.nodesReady(t, 2)
}

// kubelets waits until the kubelet of every machine runs commands in its pods,
// and these reach each other.
func (d *datacenter) kubelets(t *testing.T) {
	t.Helper()
	for name := range d.pods(t, "app=probe") {
		eventually(t, time.Minute, "commands run in "+name, func(context.Context) error {
			r := d.kube(t, d.kubeconfig(), "", "exec", name, "--", "/probe", "try", "http:http://probe.default/healthz")
			if r.code != 0 || !strings.Contains(r.out, "open 200") {
				return errors.New(r.String())
			}
			return nil
		})
	}
}

// same checks that pods are the ones that were, none restarted.
func (d *datacenter) same(t *testing.T, before map[string]pod) {
	t.Helper()
	if now := d.pods(t, helloPods); !maps.Equal(now, before) {
		t.Errorf("pods are\n%v\nwere\n%v", now, before)
	}
}

// instanceGoes deletes an instance under requests: none fails, and none
// reaches it a second after it began to go.
func (d *datacenter) instanceGoes(t *testing.T) {
	pods := slices.Sorted(maps.Keys(d.pods(t, helloPods)))
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
			c := d.client()
			c.Transport.(*http.Transport).DisableKeepAlives = false
			for ctx.Err() == nil {
				instance, err := d.hello(ctx, c)
				mu.Lock()
				if requests++; err != nil && ctx.Err() == nil {
					failures = append(failures, err)
				} else {
					last[instance] = time.Now()
				}
				mu.Unlock()
			}
		})
	}
	d.kubectl(t, "delete", "pod", pods[0], "--wait=false")
	deleted := time.Now()
	d.kubectl(t, "rollout", "status", "deploy/hello", "--timeout", "60s")
	cancel()
	wg.Wait()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests failed, the first with: %v", len(failures), requests, failures[0])
	}
	if late := last[pods[0]].Sub(deleted); late > time.Second {
		t.Errorf("the instance was asked %s after it was deleted", late)
	}
	t.Logf("%d requests, the instance was last asked %s after it was deleted", requests, last[pods[0]].Sub(deleted))
}

// processes returns the ids, as the host sees them, of processes whose command
// line holds some words, with when each was started.
func (d *datacenter) processes(t *testing.T, h *lab.Host, words string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(h.Root("proc", "[0-9]*", "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(cmdline), "\x00", " "), words) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything: count from its end.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		all[filepath.Base(filepath.Dir(file))] = fields[19]
	}
	return all
}

func (d *datacenter) kill(t *testing.T, h *lab.Host, pid string) {
	t.Helper()
	if _, err := h.Run(t.Context(), "kill", "-9", pid); err != nil {
		t.Fatal(err)
	}
}

// gone waits until a killed appliance has been started again.
func (d *datacenter) gone(t *testing.T, h *lab.Host) {
	t.Helper()
	before := -1
	eventually(t, 30*time.Second, h.Name()+" starts again", func(ctx context.Context) error {
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

// machineStarts is the process 1 of each machine, and when it was started.
func (d *datacenter) machineStarts(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, h := range d.nodes {
		found := d.processes(t, h, "/opt/multipaas/init --config")
		if len(found) == 0 {
			t.Fatalf("no machine runs on %s", h.Name())
		}
		for pid, started := range found {
			all[h.Name()+" "+pid] = started
		}
	}
	return all
}

func (d *datacenter) sameMachines(t *testing.T, before map[string]string) {
	t.Helper()
	if now := d.machineStarts(t); !maps.Equal(now, before) {
		t.Errorf("machines are %v, were %v", now, before)
	}
}
