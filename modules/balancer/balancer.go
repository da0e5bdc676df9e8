// Package balancer is where the outside comes in: HTTPS by host name to the pods
// of tenants' apps (Balancer), and TLS by server name to the workspaces' planes
// (PlaneRouter).
//
// It promises that a host name leads only into the workspace it belongs to, that
// a pod gets no new requests once Kubernetes says that it leaves, and that what
// was routed goes on being served while the store, the planes or both are away,
// also over a restart. DESIGN.md says how, and why so.
//
// Parties: the apps controller writes routes into the store; planes tell the
// endpoints; the platform's authority signs certificates; the composition root
// runs it. Only that root imports this package.
package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// CertificatesPrefix is where certificates are kept in etcd.
const CertificatesPrefix = "/multipaas-certificates/"

const (
	headerTimeout = 10 * time.Second // a client sends its header at once, or is an attack
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10 // cookies of 20 KiB have been seen
	drainTimeout  = 15 * time.Second

	// What part of the files that the process may open connections and requests
	// may take, so that enough is left for etcd and the planes: 1/4 for HTTPS and 1/4
	// for the pods behind it, 1/32 for HTTP, 1/16 each for the API and the
	// registry, 1/8 for the planes (planeShare). The unit gives 1,048,576 files.
	httpsShare, requestShare, httpShare = 4, 4, 32
	// workspaceShare is the part of the requests that one workspace may have under
	// way. An app that never answers, and a client that keeps asking it, would else
	// be all that is served: over HTTP/2 a connection carries hundreds.
	workspaceShare = 4
	// askerShare is the part of these that one address may have: who reads slowly, for
	// as long as he likes, shall not be all that a workspace serves.
	askerShare = 2

	// gather is how long changes of a workspace's services are gathered before
	// its endpoints are listed anew.
	gather = 20 * time.Millisecond
	// certificateWorkers make certificates: each takes about 10 ms, most of it
	// waiting for etcd. A workspace has one of them at most, an account half.
	certificateWorkers = 8
)

// Config is what the balancer needs to know.
type Config struct {
	HTTPAddr  string // "host:port" for plain HTTP, which only redirects; empty: none
	HTTPSAddr string // "host:port" for HTTPS
	Dir       string // the saved table and copies of certificates; made if missing
	Domain    string // routes are for hosts below it
	Store     *store.Store
	Etcd      *clientv3.Client // for certificates, below CertificatesPrefix
	Signer    Signer
	Workspaces
	Pods       netip.Prefix // of every workspace: nothing else is a backend
	Log        *slog.Logger
	Registerer prometheus.Registerer // takes the metrics of the work queues; may be nil
}

// asker is who asks for something of a workspace.
type asker struct {
	workspace string
	source    netip.Prefix
}

// Balancer serves the routes.
type Balancer struct {
	cfg          Config
	table        *table
	proxy        *httputil.ReverseProxy
	requests     *limiter.Limiter[string] // under way, by workspace
	asked        *limiter.Limiter[asker]  // the same, of each who asks
	vigil        vigil
	routes       *store.Cache[*resource.Route]
	certificates *certificates

	// Hosts whose certificate is to be looked after, and workspaces whose set
	// of services has changed.
	hosts      *reconcile.Loop[string]
	workspaces *reconcile.Loop[string]

	followers map[string]func() // by workspace: end it, and wait until it has

	http, https place
}

// place is where something listens. It is safe for concurrent use.
type place struct {
	mu   sync.Mutex
	addr net.Addr
}

func (p *place) get() net.Addr { p.mu.Lock(); defer p.mu.Unlock(); return p.addr }

func (p *place) listen(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addr = ln.Addr()
	return ln, nil
}

// New makes a balancer from cfg. It touches nothing before Run.
func New(cfg Config) *Balancer {
	b := &Balancer{
		cfg:       cfg,
		proxy:     newProxy(cfg.Log),
		requests:  limiter.New[string](limiter.Files()/requestShare/workspaceShare, limiter.Files()/requestShare),
		asked:     limiter.New[asker](limiter.Files()/requestShare/workspaceShare/askerShare, limiter.Files()/requestShare),
		routes:    store.Of[resource.Route](cfg.Store).Cache(cfg.Log),
		followers: map[string]func(){},
	}
	b.hosts = reconcile.New(reconcile.Config[string]{
		Name:       "route",
		Log:        cfg.Log,
		Reconcile:  b.lookAfter,
		Tenant:     func(host string) string { return workspaceOf(host, cfg.Domain) },
		Share:      certificateWorkers / 2,
		Workers:    certificateWorkers,
		Registerer: cfg.Registerer,
	})
	b.workspaces = reconcile.New(reconcile.Config[string]{
		Name:       "endpoints",
		Log:        cfg.Log,
		Reconcile:  b.follow,
		Registerer: cfg.Registerer,
	})
	b.table = newTable(cfg.Domain, b.dialer, func(workspace string) { b.workspaces.AddAfter(workspace, gather) })
	b.table.retell = b.hosts.Add
	b.routes.OnChange(b.changed)
	return b
}

// dialer asks for each connection anew how to get into the workspace: its
// network may have been made again.
func (b *Balancer) dialer(workspace string) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		dial, err := b.cfg.Dialer(workspace)
		if err != nil {
			return nil, err
		}
		conn, err := dial(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			return &watchedConn{tcp, b.vigil.watch(tcp, podSilence)}, nil
		}
		return conn, err
	}
}

// HTTPAddr is where it listens; nil before it is ready.
func (b *Balancer) HTTPAddr() net.Addr { return b.http.get() }

// HTTPSAddr see HTTPAddr.
func (b *Balancer) HTTPSAddr() net.Addr { return b.https.get() }

// Run serves until ctx is done. It is ready once it listens: with the routes it
// had when it last ran, if the store is not there yet.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	saved := filepath.Join(b.cfg.Dir, "routes")
	if err := os.MkdirAll(saved, 0o700); err != nil {
		return fmt.Errorf("make the balancer's folder: %w", err)
	}
	if err := b.table.load(saved); err != nil {
		b.cfg.Log.Warn("starting without the routes of last time", "err", err)
	}
	shared, local := newStorage(b.cfg.Etcd, CertificatesPrefix), filepath.Join(b.cfg.Dir, "certificates")
	b.certificates = newCertificates(shared, local, b.cfg.Signer, b.table.has, b.cfg.Log)
	defer b.certificates.close()

	var wg sync.WaitGroup
	defer wg.Wait()
	work, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { b.keepSaved(work, saved) })
	wg.Go(func() { b.vigil.run(work) })
	wg.Go(func() {
		b.workspaces.Run(work)
		b.endFollowers()
	})
	failed := make(chan error, 3)
	wg.Go(func() {
		err := b.routes.Run(work, func() {
			b.forgetOldRoutes()
			// Not before: a host that is no route yet would lose its certificate.
			wg.Go(func() { b.hosts.Run(work) })
			wg.Go(func() { b.findOldCertificates(work) })
		})
		if err != nil && work.Err() == nil {
			failed <- fmt.Errorf("follow routes: %w", err)
		}
	})

	secure, err := b.https.listen(b.cfg.HTTPSAddr)
	if err != nil {
		return fmt.Errorf("balancer: %w", err)
	}
	app := b.server(http.HandlerFunc(b.serveRoute))
	defer app.Close()
	app.ConnState = gatherHTTP2
	app.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, clientKey{}, conn)
	}
	app.TLSConfig = &tls.Config{GetCertificate: b.certificates.get, MinVersion: tls.VersionTLS12,
		// Records of 1.4 KB at first would show the beginning of an answer one
		// round trip earlier on a slow line, and are as many writes.
		DynamicRecordSizingDisabled: true}
	go func() { failed <- app.ServeTLS(gathering{limiter.Listener(secure, httpsShare), &b.vigil}, "", "") }()
	redirect := b.server(http.HandlerFunc(b.redirect))
	defer redirect.Close()
	if b.cfg.HTTPAddr != "" {
		plain, err := b.http.listen(b.cfg.HTTPAddr)
		if err != nil {
			return fmt.Errorf("balancer: %w", err)
		}
		go func() { failed <- redirect.Serve(limiter.Listener(plain, httpShare)) }()
	}
	ready()

	select {
	case err = <-failed:
		err = fmt.Errorf("balancer: %w", err)
	case <-ctx.Done():
	}
	// Requests under way may end; streams that don't are cut.
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	_ = app.Shutdown(bound)
	_ = redirect.Shutdown(bound)
	return err
}

func (b *Balancer) server(h http.Handler) *http.Server {
	// No timeouts on bodies: streams take as long as they take.
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(b.cfg.Log.Handler(), slog.LevelDebug), // handshakes that fail, mostly
	}
}

// changed is told each route that comes, changes or goes.
func (b *Balancer) changed(host string) {
	r, ok := b.routes.Get(host)
	if ok && !r.Deleting() && checkRoute(r, b.cfg.Domain) == "" {
		b.table.put(r)
	} else {
		b.table.remove(host)
	}
	b.hosts.Add(host)
}

// forgetOldRoutes drops what is left from last time, once all routes are known.
func (b *Balancer) forgetOldRoutes() {
	for _, host := range b.table.hosts() {
		if _, ok := b.routes.Get(host); !ok {
			b.table.remove(host)
			b.hosts.Add(host)
		}
	}
}

// findOldCertificates looks for hosts that have a certificate but no route.
func (b *Balancer) findOldCertificates(ctx context.Context) {
	stored, err := b.certificates.stored(ctx)
	if err != nil {
		b.cfg.Log.Warn("look for certificates of hosts that have gone", "err", err)
	}
	for _, host := range stored {
		if !b.table.has(host) {
			b.hosts.Add(host)
		}
	}
}

// lookAfter sees that host has a certificate if it is routed and none if it isn't,
// and that its route says so.
func (b *Balancer) lookAfter(ctx context.Context, host string) (again time.Duration, err error) {
	r, ok := b.routes.Get(host)
	if !ok || r.Deleting() {
		return 0, b.certificates.remove(ctx, host)
	}
	if why := checkRoute(r, b.cfg.Domain); why != "" {
		b.cfg.Log.Warn("route is refused", "host", host, "workspace", r.Workspace, "reason", why)
		return 0, b.setReady(ctx, r, resource.Condition{Status: resource.False, Reason: "Refused", Message: why, Final: true})
	}
	if !r.Status.Conditions.Is(resource.RouteReady) || !b.certificates.isLocal(ctx, host) {
		if err := b.certificates.ensure(ctx, host); err != nil {
			return 0, errors.Join(err, b.setReady(ctx, r, resource.Condition{
				Status:  resource.False,
				Reason:  "NoCertificate",
				Message: "The certificate for " + host + " can't be made now. It is tried again.",
			}))
		}
	}
	if crowded := b.table.crowdedAt(host); crowded != "" {
		return 0, b.setReady(ctx, r, resource.Condition{Status: resource.False, Reason: "TooManyEndpoints", Message: crowded})
	}
	return 0, b.setReady(ctx, r, resource.Condition{
		Status:  resource.True,
		Reason:  "Served",
		Message: "Requests for " + host + " reach the app.",
	})
}

// setReady writes the condition RouteReady of r, if it is new and r still leads where
// it did.
func (b *Balancer) setReady(ctx context.Context, r *resource.Route, c resource.Condition) error {
	c.Type = resource.RouteReady
	old := r.Status.Conditions.Get(c.Type)
	if old != nil && old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
		return nil
	}
	err := store.Of[resource.Route](b.cfg.Store).Observe(ctx, r, func(now *resource.Route) {
		if now.LeadsWhere(r) {
			now.Status.Conditions.Set(c)
		}
	})
	if err != nil {
		return fmt.Errorf("write condition of route %s: %w", r.Key(), err)
	}
	return nil
}

// follow has a follower for a workspace that has routes, and a new one when its set
// of services has changed. One worker calls it, so one at a time.
func (b *Balancer) follow(ctx context.Context, workspace string) (again time.Duration, err error) {
	if end, ok := b.followers[workspace]; ok {
		end()
		delete(b.followers, workspace)
	}
	routed := b.table.routed(workspace)
	if len(routed) == 0 {
		return 0, nil
	}
	f := b.newFollower(workspace, routed)
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // it outlives this look
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx) })
	b.followers[workspace] = func() {
		stop()
		wg.Wait()
	}
	return 0, nil
}

// endFollowers ends all of them once nobody makes new ones.
func (b *Balancer) endFollowers() {
	var wg sync.WaitGroup
	for _, end := range b.followers {
		wg.Go(end)
	}
	wg.Wait()
}
