// Package api measures the API of a real server with many workspaces in its
// store.
//
// The records are written straight into the server's etcd, as workspaces that
// another server runs: this one lists, caches and watches them, and starts
// nothing for them. One workspace of its own runs beside them.
//
// Parties: testing/bench runs it; nothing else may import it.
package api

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/bench/site"
	"github.com/multipaas/multipaas/testing/datacenter"
)

// Section is that of the API.
func Section() measure.Section {
	return measure.Section{Name: "api", About: "a real server with records of many workspaces, asked by one client by HTTPS", Run: run}
}

const (
	asks       = 300 // of each kind
	events     = 50
	pause      = 10 * time.Millisecond // one who asks more often for long is refused
	perOrg     = 100                   // workspaces in an organization
	idleFor    = 10 * time.Second
	elsewhere  = "elsewhere" // the server that runs these workspaces
	recordNote = "records of workspaces that another server runs: nothing is started for them"
)

func run(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	s, err := site.Up(ctx, env)
	if err != nil {
		return nil, err
	}
	client, err := etcdClient(s)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	b := &bench{env: env, site: s, store: store.New(client)}
	counts := []int{10, 1000, 10_000}
	if env.Quick {
		counts = []int{10, 1000}
	}
	for _, n := range counts {
		env.Logf("api: %d workspaces", n)
		if err := b.grow(ctx, n); err != nil {
			return results, err
		}
		r, err := b.measure(ctx, n)
		results = append(results, r...)
		if err != nil {
			return results, fmt.Errorf("%d workspaces: %w", n, err)
		}
	}
	return results, nil
}

type bench struct {
	env   *measure.Env
	site  *site.Site
	store *store.Store
	have  int // records
}

// etcdClient is one of the server's own datastore, as its root.
func etcdClient(s *site.Site) (*clientv3.Client, error) {
	ca, err := pki.LoadOrCreateCA(s.Server.Data("pki", "etcd"), "")
	if err != nil {
		return nil, err
	}
	server := etcd.New(etcd.Config{Dir: s.Server.Data("etcd"), Name: "server", Socket: s.Server.Root("run", "multipaas", "etcd.sock"), CA: ca})
	return server.Client()
}

func organization(i int) string { return fmt.Sprintf("org%d", i/perOrg) }
func name(i int) string         { return fmt.Sprintf("ws%d", i) }
func path(i int) string {
	return "/v1/accounts/acme/organizations/" + organization(i) + "/workspaces"
}

// grow writes records until there are n.
func (b *bench) grow(ctx context.Context, n int) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	var ops []store.Op
	for i := b.have; i < n; i++ {
		if i%perOrg == 0 {
			o := &resource.Organization{InAccount: resource.InAccount{Account: "acme"}}
			o.Name = organization(i)
			ops = append(ops, store.Of[resource.Organization](b.store).CreateOp(o))
		}
		w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/"+organization(i), name(i))}
		w.Spec = resource.WorkspaceSpec{
			KubernetesVersion: "1.36",
			Datastore:         resource.Kine,
			Machines:          3,
			MachineSize:       resource.Size{MilliCPU: 2000, MemoryBytes: 4 << 30, DiskBytes: 20 << 30},
			PodSecurity:       "baseline",
		}
		id := fmt.Sprintf("%08x", 0xb0000000+i)
		w.Status = resource.WorkspaceStatus{
			State:         resource.State{Phase: resource.Ready},
			ID:            id,
			VNI:           uint32(1<<20 + i),
			MachinesReady: 3,
			Server:        elsewhere,
			APIHost:       id + ".k8s." + datacenter.Domain,
		}
		for _, c := range []string{resource.WorkspaceNetworkReady, resource.WorkspacePlaneReady, resource.WorkspaceAddonsReady, resource.WorkspaceScheduled, resource.WorkspaceMachinesReady} {
			w.Status.Conditions.Set(resource.Condition{Type: c, Status: resource.True, Reason: "Ready"})
		}
		ops = append(ops, store.Of[resource.Workspace](b.store).CreateOp(w))
		if len(ops) >= 50 || i == n-1 {
			batch := ops
			work.Go(func() error { return b.store.Commit(ctx, batch...) })
			ops = nil
		}
	}
	b.have = max(b.have, n)
	if err := work.Wait(); err != nil {
		return fmt.Errorf("write %d workspaces: %w", n, err)
	}
	return nil
}

func (b *bench) measure(ctx context.Context, n int) (results []measure.Result, err error) {
	add := func(what, unit string, value float64, note string) {
		results = append(results, measure.Result{Name: fmt.Sprintf("api/%s/%s", title(n), what), Unit: unit, Better: measure.Lower, Ours: measure.Summarize(value), Note: note})
	}
	times := func(what, note string, ask func(i int) error) error {
		var values []float64
		n := asks
		if b.env.Quick {
			n = asks / 10
		}
		for i := range n + 20 {
			time.Sleep(pause)
			began := time.Now()
			if err := ask(i); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if i >= 20 { // the first ones open connections
				values = append(values, float64(time.Since(began))/float64(time.Millisecond))
			}
		}
		add(what+" p50", "ms", measure.Percentile(values, 0.5), note)
		add(what+" p99", "ms", measure.Percentile(values, 0.99), "")
		return nil
	}
	err = times("get", recordNote, func(i int) error {
		i = (i * 7919) % n // all over the place
		var w resource.Workspace
		if err := b.site.Do(ctx, http.MethodGet, path(i)+"/"+name(i), nil, &w); err != nil {
			return err
		}
		if w.Name != name(i) {
			return fmt.Errorf("asked for %s, got %s", name(i), w.Name)
		}
		return nil
	})
	if err != nil {
		return results, err
	}
	err = times("list", "all workspaces of one organization, at most 100", func(i int) error {
		var list struct{ Items []resource.Workspace }
		if err := b.site.Do(ctx, http.MethodGet, path((i*7919)%n)+"?limit=100", nil, &list); err != nil {
			return err
		}
		if want := min(n, perOrg); len(list.Items) != want {
			return fmt.Errorf("%d workspaces, want %d", len(list.Items), want)
		}
		return nil
	})
	if err != nil {
		return results, err
	}
	watched, err := b.watch(ctx)
	if err != nil {
		return results, fmt.Errorf("watch: %w", err)
	}
	add("watch p50", "ms", measure.Percentile(watched, 0.5), "from a write of a task to the store to its event at the client")
	add("watch p99", "ms", measure.Percentile(watched, 0.99), "")

	pid, err := b.site.ServerPID()
	if err != nil {
		return results, err
	}
	idle, err := measure.IdleAlone(ctx, pid, idleFor)
	if err != nil {
		return results, err
	}
	add("idle CPU", "%", 100*idle, "of one core, by the server's process without its planes")
	m, err := measure.MemoryOfEach(pid)
	if err != nil {
		return results, err
	}
	add("anonymous memory", "MB", float64(m.Anonymous)/1e6, "of the server's process with etcd, API, registry and balancer")
	return results, nil
}

func title(n int) string {
	if n >= 1000 {
		return fmt.Sprintf("%d,%03d ws", n/1000, n%1000)
	}
	return fmt.Sprintf("%d ws", n)
}

// watch follows a task as `mp` does while it is written, and returns how long
// each change took to arrive, in milliseconds.
func (b *bench) watch(ctx context.Context) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	t := &resource.Task{Spec: resource.TaskSpec{Operation: "workspace.update", Kind: "workspaces", Target: "acme/" + organization(0) + "/" + name(0),
		Account: "acme", By: "owner@acme.example", Generation: 1 << 40}, Status: resource.TaskStatus{State: resource.TaskRunning}}
	t.Name = "acme-" + strings.ReplaceAll(store.NewUID(), "-", "")
	if err := store.Of[resource.Task](b.store).Create(ctx, t); err != nil {
		return nil, err
	}
	defer func() {
		if last, err := store.Of[resource.Task](b.store).Get(context.WithoutCancel(ctx), t.Key()); err == nil {
			_ = store.Of[resource.Task](b.store).Delete(context.WithoutCancel(ctx), last) // else it is one record more in a lab that goes
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.site.API()+"/v1/tasks/"+t.Name+"/events", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+b.site.Token)
	resp, err := b.site.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("follow task: %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	until := func(word string) error {
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data:") && strings.Contains(lines.Text(), word) {
				return nil
			}
		}
		return fmt.Errorf("the stream ended before %q: %v", word, lines.Err())
	}
	if err := until(t.Name); err != nil {
		return nil, err
	}
	var values []float64
	for i := range events {
		word := fmt.Sprintf("event-%d-of-the-bench", i)
		began := time.Now()
		if _, err := store.Of[resource.Task](b.store).Modify(ctx, t.Key(), func(t *resource.Task) error { t.Status.Message = word; return nil }); err != nil {
			return nil, err
		}
		if err := until(word); err != nil {
			return nil, err
		}
		values = append(values, float64(time.Since(began))/float64(time.Millisecond))
	}
	return values, nil
}
