// Package balancer measures modules/balancer beside nginx and haproxy, and what
// routes cost it.
//
// Ours runs alone, as a process of its own with the configuration that the
// server gives it, on a real store: beside a whole server nobody could say whose
// CPU time was used. All three have the same half of the cores, the same
// certificate type and the same app behind them; load and app have the other
// half. Everything stands in a network namespace of its own.
//
// Parties: testing/bench runs it; nothing else may import it.
package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// Section is that of the balancer.
func Section() measure.Section {
	return measure.Section{Name: "balancer", About: "TLS to HTTP/1.1 proxy beside Debian's nginx and haproxy, each on the same half of the cores", Run: run}
}

const (
	domain      = "bench.internal"
	oursPort    = 8441
	nginxPort   = 8442
	haproxyPort = 8443
	rounds      = 3
)

func loads(quick bool) []load {
	seconds := 3
	if quick {
		seconds = 1
	}
	return []load{
		{name: "http1 1KB", path: "/1k", h1: true, clients: 32, streams: 1, seconds: seconds},
		{name: "http2 1KB", path: "/1k", clients: 8, streams: 8, seconds: seconds},
		{name: "new TLS 1KB", path: "/1k", h1: true, clients: 16, streams: 1, fresh: true, seconds: seconds},
		{name: "http1 1MB", path: "/1m", h1: true, clients: 8, streams: 1, seconds: seconds},
		{name: "http2 1MB", path: "/1m", clients: 4, streams: 2, seconds: seconds},
	}
}

// hostOf is the host of the i-th route. A workspace has 100 of them.
func hostOf(i int) string {
	return fmt.Sprintf("h%d.%s", i, suffixOf(i))
}

func suffixOf(i int) string         { return fmt.Sprintf("w%d.org.acc.%s", i/100, domain) }
func workspaceOf(i int) string      { return fmt.Sprintf("acc/org/w%d", i/100) }
func (s *site) dir(n string) string { return filepath.Join(s.env.Dir, n) }

// proxy is one that runs.
type proxy struct{ pid, port int }

// site is all that stands while the balancers are measured.
type site struct {
	env            *measure.Env
	net            *measure.Net
	measured, rest []int // cores
	ca             *pki.CA
	etcd           *etcd.Server
	client         *clientv3.Client
	store          *store.Store
	children       []*measure.Child
	proxies        map[string]proxy
}

func run(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	env.VersionOf(ctx, "nginx", "nginx", "-v")
	env.VersionOf(ctx, "haproxy", "haproxy", "-v")
	env.VersionOf(ctx, "h2load", "h2load", "--version")
	s := &site{env: env, proxies: map[string]proxy{}}
	s.measured, s.rest = measure.Halves()
	if s.net, err = measure.NewNet(ctx, env, "10.42.0.2/32", "10.42.0.3/32"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.net.Remove()) }()
	defer func() {
		for _, c := range s.children {
			err = errors.Join(err, c.Stop())
		}
	}()
	stop, err := s.startEtcd(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := s.startApp(ctx); err != nil {
		return nil, err
	}
	if err := s.startPeers(ctx); err != nil {
		return nil, err
	}
	if err := s.seed(ctx, 1); err != nil {
		return nil, err
	}
	ours, _, err := s.startOurs(ctx, 1)
	if err != nil {
		return nil, err
	}
	for _, l := range loads(env.Quick) {
		env.Logf("balancer: %s", l.name)
		r, err := s.beside(ctx, l)
		results = append(results, r...)
		if err != nil {
			return results, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if err := ours.Stop(); err != nil {
		return results, err
	}
	r, err := s.routes(ctx)
	return append(results, r...), err
}

// beside measures all three under one load.
func (s *site) beside(ctx context.Context, l load) ([]measure.Result, error) {
	var contenders []measure.Contender
	for _, name := range []string{"ours", "nginx", "haproxy"} {
		p := s.proxies[name]
		contenders = append(contenders, measure.Contender{Name: name, Measure: func(ctx context.Context) (measure.Sample, error) {
			return s.run(ctx, l, p.port, p.pid)
		}})
	}
	stats, err := measure.Alternate(ctx, s.env.Rounds(rounds), contenders...)
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%s: %d connections", l.name, l.clients)
	switch {
	case l.fresh:
		note += ", each for one request with a full handshake"
	case l.streams > 1:
		note += fmt.Sprintf(" with %d streams", l.streams)
	}
	var results []measure.Result
	for _, n := range []struct {
		key, what, unit string
		better          measure.Better
	}{
		{"rate", "rate", "req/s", measure.Higher},
		{"p50", "p50", "ms", measure.Lower},
		{"p99", "p99", "ms", measure.Lower},
		{"cpu", "CPU per 1,000", "ms", measure.Lower},
	} {
		for _, peer := range []string{"nginx", "haproxy"} {
			r := measure.Result{Name: "balancer/" + l.name + "/" + n.what, Unit: n.unit, Better: n.better,
				Ours: stats["ours"][n.key], Peer: peer, PeerStat: stats[peer][n.key]}
			if n.key == "rate" {
				r.Note = note
				if peer == "nginx" {
					r.Goal.Ratio = 0.5
				}
			}
			results = append(results, r)
		}
	}
	return results, nil
}

// startEtcd starts a store for our balancer, in this process.
func (s *site) startEtcd(ctx context.Context) (stop func() error, err error) {
	if s.ca, err = pki.LoadOrCreateCA(s.dir("pki"), "bench"); err != nil {
		return nil, err
	}
	if s.etcd, err = newEtcd(s.env.Dir); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- s.etcd.Run(ctx, func() { close(ready) }) }()
	select {
	case err := <-done:
		cancel()
		return nil, err
	case <-ready:
	}
	if s.client, err = s.etcd.Client(); err != nil {
		cancel()
		return nil, errors.Join(err, <-done)
	}
	s.store = store.New(s.client)
	return func() error {
		s.client.Close()
		cancel()
		return <-done
	}, nil
}

// newEtcd describes the store below a folder.
func newEtcd(dir string) (*etcd.Server, error) {
	ca, err := pki.LoadOrCreateCA(filepath.Join(dir, "etcd-pki"), "bench etcd")
	if err != nil {
		return nil, err
	}
	return etcd.New(etcd.Config{Dir: filepath.Join(dir, "etcd"), Name: "bench", Socket: filepath.Join(dir, "etcd.sock"), CA: ca}), nil
}

func (s *site) start(name string, cmd *exec.Cmd) (*measure.Child, error) {
	c, err := measure.Start(s.env, name, cmd)
	if err == nil {
		s.children = append(s.children, c)
	}
	return c, err
}

// get asks for the small body of a host by a new connection to a port.
func (s *site) get(ctx context.Context, port int, host string) (*http.Response, error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.ca.CertPEM())
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.net.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		}}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/1k", nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && (resp.StatusCode != http.StatusOK || len(body) != 1<<10) {
		err = fmt.Errorf("%s: %d bytes", resp.Status, len(body))
	}
	return resp, err
}
