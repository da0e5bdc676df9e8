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
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/util/workqueue"

	"github.com/multipaas/multipaas/appliance/crowd"
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
	// sourceShare is the part of those connections that one address may have, and
	// workspaceShare the part of the requests that one workspace may have under
	// way. An app that never answers, and a client that keeps asking it, would else
	// be all that is served: over HTTP/2 a connection carries hundreds.
	sourceShare, workspaceShare = 4, 4

	// gather is how long changes of a workspace's services are gathered before
	// its endpoints are listed anew.
	gather = 20 * time.Millisecond
	// certificateWorkers make certificates: each takes about 10 ms, most of it
	// waiting for etcd.
	certificateWorkers = 4
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
	// Pods is the network of the pods in every workspace: nothing else is a
	// backend. Zero is that of the default address plan, 10.42.0.0/16.
	Pods netip.Prefix
	Log  *slog.Logger
}

// Balancer serves the routes.
type Balancer struct {
	cfg          Config
	log          *slog.Logger
	table        *table
	proxy        *httputil.ReverseProxy
	requests     *crowd.Crowd[string] // under way, by workspace
	routes       *store.Cache[*resource.Route]
	certificates *certificates

	// Hosts whose certificate is to be looked after, and workspaces whose set
	// of services has changed.
	hosts      workqueue.TypedRateLimitingInterface[string]
	workspaces workqueue.TypedRateLimitingInterface[string]

	mu     sync.Mutex
	synced bool // the cache of routes is complete
	http   net.Addr
	https  net.Addr
}

// New makes a balancer from cfg. It touches nothing before Run.
func New(cfg Config) *Balancer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if !cfg.Pods.IsValid() {
		cfg.Pods = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42}), 16)
	}
	b := &Balancer{
		cfg: cfg, log: cfg.Log, proxy: newProxy(cfg.Log),
		requests:   crowd.New[string](crowd.Files()/requestShare/workspaceShare, crowd.Files()/requestShare),
		routes:     store.Of[resource.Route](cfg.Store).Cache(cfg.Log),
		hosts:      newQueue(),
		workspaces: newQueue(),
	}
	b.table = newTable(b.dialer, func(workspace string) { b.workspaces.AddAfter(workspace, gather) })
	b.routes.OnChange(b.changed)
	return b
}

// newQueue retries what fails after 0.1 seconds first and 30 at most.
func newQueue() workqueue.TypedRateLimitingInterface[string] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 30*time.Second))
}

// dialer asks for each connection anew how to get into the workspace: its
// network may have been made again.
func (b *Balancer) dialer(workspace string) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		dial, err := b.cfg.Dialer(workspace)
		if err != nil {
			return nil, err
		}
		return dial(ctx, network, address)
	}
}

// HTTPAddr and HTTPSAddr are where it listens; nil before it is ready.
func (b *Balancer) HTTPAddr() net.Addr { b.mu.Lock(); defer b.mu.Unlock(); return b.http }

// HTTPSAddr see HTTPAddr.
func (b *Balancer) HTTPSAddr() net.Addr { b.mu.Lock(); defer b.mu.Unlock(); return b.https }

func (b *Balancer) httpsPort() string {
	if tcp, ok := b.HTTPSAddr().(*net.TCPAddr); ok {
		return strconv.Itoa(tcp.Port)
	}
	return "443"
}

// Run serves until ctx is done. It is ready once it listens: with the routes it
// had when it last ran, if the store is not there yet.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the balancer's folder: %w", err)
	}
	file := filepath.Join(b.cfg.Dir, "routes.json")
	if err := b.table.load(file); err != nil {
		b.log.Warn("starting without the routes of last time", "err", err)
	}
	b.certificates = newCertificates(newStorage(b.cfg.Etcd, CertificatesPrefix), filepath.Join(b.cfg.Dir, "certificates"), b.cfg.Signer, b.table.has, b.log)
	defer b.certificates.close()

	var wg sync.WaitGroup
	defer wg.Wait()
	work, stop := context.WithCancel(ctx)
	defer stop()
	defer b.hosts.ShutDown()
	defer b.workspaces.ShutDown()
	wg.Go(func() { b.keepSaved(work, file) })
	wg.Go(func() { b.followWorkspaces(work) })
	for range certificateWorkers {
		wg.Go(func() { b.lookAfterCertificates(work) })
	}
	failed := make(chan error, 3)
	wg.Go(func() {
		if err := b.routes.Run(work, func() { b.complete(work) }); err != nil && work.Err() == nil {
			failed <- fmt.Errorf("follow routes: %w", err)
		}
	})

	secure, err := net.Listen("tcp", b.cfg.HTTPSAddr)
	if err != nil {
		return fmt.Errorf("balancer: %w", err)
	}
	defer secure.Close()
	app := b.server(http.HandlerFunc(b.serveRoute))
	app.ConnState = gatherHTTP2
	app.TLSConfig = &tls.Config{GetCertificate: b.certificates.get, MinVersion: tls.VersionTLS12,
		// Records of 1.4 KB at first would show the beginning of an answer one
		// round trip earlier on a slow line, and are as many writes.
		DynamicRecordSizingDisabled: true}
	b.mu.Lock()
	b.https = secure.Addr()
	b.mu.Unlock()
	go func() { failed <- app.ServeTLS(gathering{bounded(secure, httpsShare)}, "", "") }()
	servers := []*http.Server{app}
	if b.cfg.HTTPAddr != "" {
		plain, err := net.Listen("tcp", b.cfg.HTTPAddr)
		if err != nil {
			app.Close()
			return fmt.Errorf("balancer: %w", err)
		}
		defer plain.Close()
		b.mu.Lock()
		b.http = plain.Addr()
		b.mu.Unlock()
		redirect := b.server(http.HandlerFunc(b.redirect))
		go func() { failed <- redirect.Serve(bounded(plain, httpShare)) }()
		servers = append(servers, redirect)
	}
	ready()

	select {
	case err = <-failed:
		err = fmt.Errorf("balancer: %w", err)
	case <-ctx.Done():
	}
	// Requests under way may end; streams and upgraded connections that don't
	// are cut.
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(bound) != nil {
			s.Close()
		}
	}
	return err
}

// bounded bounds the connections of a listener.
func bounded(ln net.Listener, share int) net.Listener {
	all := crowd.Files() / share
	return crowd.Listener(ln, crowd.New[netip.Addr](all/sourceShare, all))
}

func (b *Balancer) server(h http.Handler) *http.Server {
	// No timeouts on bodies: uploads, downloads and streams take as long as
	// they take.
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug), // handshakes that fail, mostly
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

// complete is called when all routes were told: what is left from last time or
// has a certificate, but is no route now, goes.
func (b *Balancer) complete(ctx context.Context) {
	b.mu.Lock()
	b.synced = true
	b.mu.Unlock()
	for _, host := range b.table.hosts() {
		if _, ok := b.routes.Get(host); !ok {
			b.table.remove(host)
			b.hosts.Add(host)
		}
	}
	for _, r := range b.routes.List("") {
		b.hosts.Add(r.Name)
	}
	go func() {
		stored, err := b.certificates.stored(ctx)
		if err != nil {
			b.log.Warn("look for certificates of hosts that have gone", "err", err)
		}
		for _, host := range stored {
			if !b.table.has(host) {
				b.hosts.Add(host)
			}
		}
	}()
}

// lookAfterCertificates sees that each host that is routed has a certificate,
// that others have none, and that the routes say so.
func (b *Balancer) lookAfterCertificates(ctx context.Context) {
	for {
		host, quit := b.hosts.Get()
		if quit {
			return
		}
		err := b.lookAfter(ctx, host)
		if err != nil && ctx.Err() == nil {
			b.log.Warn("route is not ready", "host", host, "err", err)
			b.hosts.AddRateLimited(host)
		} else {
			b.hosts.Forget(host)
		}
		b.hosts.Done(host)
	}
}

func (b *Balancer) lookAfter(ctx context.Context, host string) error {
	b.mu.Lock()
	synced := b.synced
	b.mu.Unlock()
	if ctx.Err() != nil || !synced {
		return ctx.Err() // complete tells all hosts again
	}
	r, ok := b.routes.Get(host)
	if !ok || r.Deleting() {
		return b.certificates.remove(ctx, host)
	}
	if why := checkRoute(r, b.cfg.Domain); why != "" {
		b.log.Warn("route is refused", "host", host, "workspace", r.Workspace, "reason", why)
		return b.tell(ctx, r, resource.Condition{Type: resource.RouteReady, Status: resource.False, Reason: "Refused", Message: why, Final: true})
	}
	if !r.Status.Conditions.Is(resource.RouteReady) || !b.certificates.isLocal(ctx, host) {
		if err := b.certificates.ensure(ctx, host); err != nil {
			terr := b.tell(ctx, r, resource.Condition{Type: resource.RouteReady, Status: resource.False, Reason: "NoCertificate",
				Message: "The certificate for " + host + " can't be made now. It is tried again."})
			return errors.Join(err, terr)
		}
	}
	return b.tell(ctx, r, resource.Condition{Type: resource.RouteReady, Status: resource.True, Reason: "Served",
		Message: "Requests for " + host + " reach the app."})
}

// tell writes a condition of a route, if it is new.
func (b *Balancer) tell(ctx context.Context, r *resource.Route, c resource.Condition) error {
	if old := r.Status.Conditions.Get(c.Type); old != nil && old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
		return nil
	}
	_, err := store.Of[resource.Route](b.cfg.Store).Modify(ctx, r.Key(), func(r *resource.Route) error {
		r.Status.Conditions.Set(c)
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("write condition of route %s: %w", r.Key(), err)
	}
	return nil
}

// followWorkspaces has one follower for each workspace that has routes, and a
// new one when its set of services changes.
func (b *Balancer) followWorkspaces(ctx context.Context) {
	type running struct {
		stop context.CancelFunc
		done chan struct{}
	}
	followers := map[string]running{}
	end := func(workspace string) {
		if f, ok := followers[workspace]; ok {
			f.stop()
			<-f.done
			delete(followers, workspace)
		}
	}
	defer func() {
		for _, f := range followers {
			f.stop()
		}
		for _, f := range followers {
			<-f.done
		}
	}()
	for {
		workspace, quit := b.workspaces.Get()
		if quit {
			return
		}
		end(workspace)
		if services := b.table.routed(workspace); len(services) > 0 && ctx.Err() == nil {
			fctx, stop := context.WithCancel(ctx)
			done := make(chan struct{})
			followers[workspace] = running{stop, done}
			go func() {
				defer close(done)
				follow(fctx, b.cfg.Workspaces, workspace, b.cfg.Pods, services, b.table.setEndpoints, b.log)
			}()
		}
		b.workspaces.Done(workspace)
	}
}
