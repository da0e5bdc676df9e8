// Package linklocal is what the platform offers to a machine at the link-local
// address inside the machine's own network namespace: a registry over HTTP, with
// the payload's images and whatever the platform's registry has for the
// machine's workspace, and a resolver.
//
// It promises that who asks is known by the socket that was asked, so no
// credential is handed out, and that one machine can take no more than its share
// of connections and queries. Without upstream resolvers queries are refused at
// once: "no such name" would be a lie that gets cached, and SERVFAIL makes some
// resolvers ask again.
//
// Parties: the agent of a host opens and closes endpoints; containerd and the
// pods of a machine ask. It runs on hosts only. Only package appliance may
// import it.
package linklocal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// Config is what Endpoints need.
type Config struct {
	// Images is the payload's folder of OCI layouts, images/NAME.
	Images string
	// Transport reaches the platform's registry, which answers what a machine pulls
	// except for the payload's images, with the certificate of this node. nil:
	// nothing else can be pulled.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Endpoints are what the platform offers to a machine at the link-local address
// inside its own network namespace: a registry over HTTP and a resolver. Who
// asks is known by where it listens, so there is no credential. It is safe for
// concurrent use.
type Endpoints struct {
	cfg      Config
	log      *slog.Logger
	dns      *resolver
	registry atomic.Pointer[string] // host:port

	mu   sync.Mutex
	open map[string]*endpoint // by machine's UID
}

// New opens nothing yet.
func New(cfg Config) *Endpoints {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Endpoints{cfg: cfg, log: cfg.Log, dns: newResolver(), open: map[string]*endpoint{}}
}

// SetState says where names are asked for from now on, and where images are. No
// upstream resolvers: queries are refused at once.
func (e *Endpoints) SetState(s *wire.State) {
	e.dns.setUpstreams(s.UpstreamDNS)
	e.registry.Store(&s.Registry)
}

// endpoint is what listens for one machine.
type endpoint struct {
	namespace uint64 // inode: a namespace made anew has another
	http      *http.Server
	dns       []*dns.Server
	done      sync.WaitGroup
}

// Open listens for a machine in its network namespace. Open already is no
// error; if the namespace was made anew, it listens anew.
func (e *Endpoints) Open(ctx context.Context, m wire.Machine, workspace, path string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	inode, err := namespaceInode(path)
	if err != nil {
		return err
	}
	if old := e.open[m.UID]; old != nil {
		if old.namespace == inode {
			return nil
		}
		old.close()
		delete(e.open, m.UID)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := e.listen(m, workspace, path)
	if err != nil {
		return fmt.Errorf("open endpoints of machine %s: %w", m.Name, err)
	}
	p.namespace = inode
	e.open[m.UID] = p
	return nil
}

func (e *Endpoints) listen(m wire.Machine, workspace, path string) (*endpoint, error) {
	if filepath.Dir(path) != netns.Root {
		return nil, fmt.Errorf("network namespace %s is not in %s", path, netns.Root)
	}
	ns, err := netns.Open(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	registry, err := ns.Listen("tcp", netip.AddrPortFrom(wire.LinkLocal, wire.RegistryPort).String())
	if err != nil {
		return nil, err
	}
	address := netip.AddrPortFrom(wire.LinkLocal, 53).String()
	stream, err := ns.Listen("tcp", address)
	if err != nil {
		return nil, errors.Join(err, registry.Close())
	}
	packets, err := ns.ListenPacket("udp", address)
	if err != nil {
		return nil, errors.Join(err, registry.Close(), stream.Close())
	}
	var rest http.Handler
	log := e.log.With("machine", m.Name, "workspace", workspace)
	if e.cfg.Transport != nil {
		rest = e.pull(workspace, log)
	}
	p := &endpoint{http: &http.Server{
		Handler:           route(payloadImages{e.cfg.Images}, rest),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	h := e.dns.forMachine()
	p.dns = []*dns.Server{
		{PacketConn: packets, Handler: h},
		{Listener: limitListener(stream, maxDNSStreams), Handler: h, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxTCPQueries: 100},
	}
	// As many as a machine's containerd and pods can sensibly use.
	registry = limitListener(registry, maxRegistryConns)
	p.done.Go(func() {
		if err := p.http.Serve(registry); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("registry endpoint ended", "err", err)
		}
	})
	for _, s := range p.dns {
		// ActivateAndServe and Shutdown race unless one waits for the start.
		started := make(chan struct{})
		failed := make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		p.done.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				failed <- err
				log.Debug("resolver ended", "err", err)
			}
		})
		select {
		case <-started:
		case err := <-failed:
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// Limits for what one machine's tenants can take of the agent.
const (
	maxRegistryConns = 256
	maxDNSStreams    = 64
)

func (p *endpoint) close() {
	_ = p.http.Close()
	for _, s := range p.dns {
		_ = s.Shutdown()
	}
	p.done.Wait()
}

// Close stops listening for a machine. Not open is no error.
func (e *Endpoints) Close(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.open[uid]; p != nil {
		p.close()
		delete(e.open, uid)
	}
}

// CloseAll stops listening for all machines.
func (e *Endpoints) CloseAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for uid, p := range e.open {
		p.close()
		delete(e.open, uid)
	}
}

// route sends what is asked of the payload's registry there, and all else on.
func route(payload, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if inner, ok := strings.CutPrefix(r.URL.Path, "/v2/"+wire.PayloadRegistry+"/"); ok {
			r2 := r.Clone(r.Context())
			r2.URL.Path = "/v2/" + inner
			payload.ServeHTTP(w, r2)
			return
		}
		switch ns := r.URL.Query().Get("ns"); {
		case ns == wire.PayloadRegistry, ns == "" && (r.URL.Path == "/v2/" || r.URL.Path == "/v2"):
			payload.ServeHTTP(w, r)
		case rest != nil:
			rest.ServeHTTP(w, r)
		default:
			registryError(w, http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("this platform has no registry %q", ns))
		}
	})
}

// limitListener lets at most n connections be open at a time.
func limitListener(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
