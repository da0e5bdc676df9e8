package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/caddyserver/certmagic"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// changes is how often a change is made, and coldHosts how many hosts are asked
// for the first time, for each number of routes.
const (
	changes   = 7
	coldHosts = 50
)

// routes measures what routes cost our balancer.
func (s *site) routes(ctx context.Context) ([]measure.Result, error) {
	counts := []int{1, 1000, 50_000}
	if s.env.Quick {
		counts = []int{1, 1000}
	}
	var results []measure.Result
	for _, n := range counts {
		s.env.Logf("balancer: %d routes", n)
		r, err := s.withRoutes(ctx, n)
		results = append(results, r...)
		if err != nil {
			return results, fmt.Errorf("%d routes: %w", n, err)
		}
	}
	return results, nil
}

func (s *site) withRoutes(ctx context.Context, n int) (results []measure.Result, err error) {
	if err := s.seed(ctx, n); err != nil {
		return nil, err
	}
	add := func(what, unit string, stat measure.Stat, note string) {
		results = append(results, measure.Result{Name: fmt.Sprintf("balancer/%s routes/%s", grouped(n), what), Unit: unit, Better: measure.Lower, Ours: stat, Note: note})
	}
	c, took, err := s.startOurs(ctx, n)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	add("start to answer", "ms", measure.Summarize(milliseconds(took)), "from the start of the process to the answer for the last host")
	if err := s.settled(ctx, c.PID); err != nil {
		return results, err
	}
	m, err := measure.MemoryOf(c.PID)
	if err != nil {
		return results, err
	}
	add("anonymous memory", "MB", measure.Summarize(float64(m.Anonymous)/1e6), "")

	l := load{path: "/1k", h1: true, clients: 1, streams: 1}
	times, _, err := s.h2load(ctx, l, oursPort, 2000)
	if err != nil {
		return results, err
	}
	add("p50 alone", "ms", measure.Summarize(measure.Percentile(times, 0.5)), "keep-alive: a lookup and one request with nothing else to do")

	var cold []float64
	for range min(coldHosts, n) {
		began := time.Now()
		if _, err := s.get(ctx, oursPort, hostOf(rand.IntN(n))); err != nil {
			return results, err
		}
		cold = append(cold, milliseconds(time.Since(began)))
	}
	add("first visit p50", "ms", measure.Summarize(measure.Percentile(cold, 0.5)), "the certificate is read from disk first")

	var come, gone []float64
	for i := range changes {
		host := "new" + strconv.Itoa(i) + "." + suffixOf(0)
		r := route(host, 0)
		began := time.Now()
		if err := store.Of[resource.Route](s.store).Create(ctx, r); err != nil {
			return results, err
		}
		if err := c.Await(ctx, time.Minute, func(ctx context.Context) error { _, err := s.get(ctx, oursPort, host); return err }); err != nil {
			return results, err
		}
		come = append(come, milliseconds(time.Since(began)))
		began = time.Now()
		if _, err := store.Of[resource.Route](s.store).MarkDeleted(ctx, r.Key()); err != nil {
			return results, err
		}
		err := c.Await(ctx, time.Minute, func(ctx context.Context) error {
			if _, err := s.get(ctx, oursPort, host); err == nil {
				return errors.New("a route that has gone is served")
			}
			return nil
		})
		if err != nil {
			return results, err
		}
		gone = append(gone, milliseconds(time.Since(began)))
	}
	add("new route served", "ms", measure.Summarize(come...), "from the write to the store to an answer, certificate made meanwhile")
	add("old route refused", "ms", measure.Summarize(gone...), "")
	return results, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// grouped writes 50000 as 50,000.
func grouped(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// settled waits until a process has nothing left to do: it uses less than 2 %
// of a core for half a second.
func (s *site) settled(ctx context.Context, pid int) error {
	for range 120 {
		used, err := measure.Idle(ctx, pid, 500*time.Millisecond)
		if err != nil || used < 0.02 {
			return err
		}
	}
	return fmt.Errorf("process %d does not come to rest", pid)
}

func route(host string, i int) *resource.Route {
	r := &resource.Route{Workspace: workspaceOf(i), Namespace: "default", Service: "app", Port: 8080}
	r.Name = host
	return r
}

// seed leaves what a balancer with n routes has when it starts again: routes in
// the store, the saved table, certificates in its folder.
func (s *site) seed(ctx context.Context, n int) error {
	for _, prefix := range []string{"/multipaas/", balancer.CertificatesPrefix} {
		if _, err := s.client.Delete(ctx, prefix, clientv3.WithPrefix()); err != nil {
			return err
		}
	}
	dir := balancerDir(s.env.Dir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	type saved struct {
		Routes    []map[string]any `json:"routes"`
		Endpoints []map[string]any `json:"endpoints"`
	}
	tables := map[string]*saved{} // by workspace
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(16)
	var ops []store.Op
	for i := range n {
		r := route(hostOf(i), i)
		r.Status.Conditions.Set(resource.Condition{Type: resource.RouteReady, Status: resource.True, Reason: "Served",
			Message: "Requests for " + r.Name + " reach the app."})
		ops = append(ops, store.Of[resource.Route](s.store).CreateOp(r))
		if len(ops) == 50 || i == n-1 {
			batch := ops
			work.Go(func() error { return s.store.Commit(ctx, batch...) })
			ops = nil
		}
		table := tables[r.Workspace]
		if table == nil {
			table = &saved{}
			tables[r.Workspace] = table
		}
		table.Routes = append(table.Routes, map[string]any{"host": r.Name, "workspace": r.Workspace, "namespace": r.Namespace, "service": r.Service, "port": r.Port})
		if i%100 == 0 {
			table.Endpoints = append(table.Endpoints, map[string]any{"workspace": r.Workspace, "namespace": r.Namespace, "service": r.Service,
				"addresses": []string{"10.42.0.2", "10.42.0.3"}})
		}
		work.Go(func() error { return s.certificate(r.Name) })
	}
	if err := work.Wait(); err != nil {
		return fmt.Errorf("write %d routes: %w", n, err)
	}
	folder := filepath.Join(dir, "routes")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for workspace, table := range tables {
		data, err := json.Marshal(table)
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, url.PathEscape(workspace)+".json"), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// certificate puts the certificate of a host where the balancer keeps its own.
func (s *site) certificate(host string) error {
	cert, key, err := s.ca.Issue(pki.Request{CommonName: host, Hosts: []string{host}, Server: true})
	if err != nil {
		return err
	}
	meta, err := json.Marshal(certmagic.CertificateResource{SANs: []string{host}})
	if err != nil {
		return err
	}
	const issuer = "platform"
	keys := certmagic.StorageKeys
	for name, data := range map[string][]byte{keys.SiteCert(issuer, host): cert, keys.SitePrivateKey(issuer, host): key, keys.SiteMeta(issuer, host): meta} {
		file := filepath.Join(balancerDir(s.env.Dir), "certificates", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
