// Package linklocal is what the platform offers to a machine at the link-local
// address inside the machine's own network namespace: a registry over HTTP, with
// the payload's images and whatever the platform's registry has for the
// machine's workspace, and a resolver.
//
// It promises that who asks is known by the socket that was asked, so no
// credential is handed out, and that one machine can take no more than its share
// of connections and queries. Names of the platform's front door are known here. Without
// upstream resolvers other queries are refused at once: "no such name" would be a lie that gets cached, and SERVFAIL makes some
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
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// Config is what Endpoints need.
type Config struct {
	// Images is the payload's folder of OCI layouts, images/NAME.
	Images string
	// Transport reaches the platform's registry, which answers what a machine pulls
	// except for the payload's images, with the certificate of this node.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Endpoints are those of all machines of a host. It is safe for concurrent use.
type Endpoints struct {
	cfg     Config
	state   atomic.Pointer[wire.State] // has the registry and the upstream resolvers
	timeout time.Duration              // of one question to an upstream

	mu   sync.Mutex
	open map[string]*endpoint // by machine's UID
}

// New opens nothing yet.
func New(cfg Config) *Endpoints {
	e := &Endpoints{cfg: cfg, timeout: upstreamTimeout, open: map[string]*endpoint{}}
	e.SetState(&wire.State{})
	return e
}

// SetState says where names are asked for from now on, which are the front door's, and
// where images are. No upstream resolvers: other queries are refused at once.
func (e *Endpoints) SetState(s *wire.State) { e.state.Store(s) }

// endpoint is what listens for one machine.
type endpoint struct {
	namespace fs.FileInfo // a namespace made anew is another file
	http      *http.Server
	dns       []*dns.Server
	done      sync.WaitGroup
}

// Open listens for a machine in its network namespace. Open already is no
// error; if the namespace was made anew, it listens anew.
func (e *Endpoints) Open(ctx context.Context, m wire.Machine, workspace, path string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	namespace, err := os.Stat(path)
	if err != nil {
		return err
	}
	if old := e.open[m.UID]; old != nil {
		if os.SameFile(old.namespace, namespace) {
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
	p.namespace = namespace
	e.open[m.UID] = p
	return nil
}

func (e *Endpoints) listen(m wire.Machine, workspace, path string) (*endpoint, error) {
	ns, err := netns.OpenPath(path)
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
	log := e.cfg.Log.With("machine", m.Name, "workspace", workspace)
	p := &endpoint{http: &http.Server{
		Handler:           route(payloadImages{e.cfg.Images}, e.pull(workspace, log)),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	h := e.resolver()
	p.dns = []*dns.Server{
		{PacketConn: packets, Handler: h},
		{
			Listener:      netutil.LimitListener(stream, maxDNSStreams),
			Handler:       h,
			ReadTimeout:   5 * time.Second,
			WriteTimeout:  5 * time.Second,
			MaxTCPQueries: 100,
		},
	}
	p.done.Go(func() {
		if err := p.http.Serve(netutil.LimitListener(registry, maxRegistryConns)); !errors.Is(err, http.ErrServerClosed) {
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

// Limits for what one machine's tenants can take of the agent: as many as its
// containerd and pods can sensibly use.
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

// route sends what is asked of the payload's registry there, and all else that
// pulls on. Nothing but a pull passes: behind the door is also where passwords
// are checked, and who asks there counts as the node.
func route(payload, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !pulls(r.URL.Path):
			registryError(w, http.StatusNotFound, "UNSUPPORTED", "a machine's registry has /v2/ and nothing else")
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			registryError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "a machine may only pull; push from outside, after `mp login`")
			return
		}
		if inner, ok := strings.CutPrefix(r.URL.Path, "/v2/"+wire.PayloadRegistry+"/"); ok {
			r2 := r.Clone(r.Context())
			r2.URL.Path = "/v2/" + inner
			payload.ServeHTTP(w, r2)
			return
		}
		switch ns := r.URL.Query().Get("ns"); {
		case ns == wire.PayloadRegistry, ns == "" && (r.URL.Path == "/v2/" || r.URL.Path == "/v2"):
			payload.ServeHTTP(w, r)
		default:
			rest.ServeHTTP(w, r)
		}
	})
}

// pulls says whether a path is one of the distribution API's, written as clients
// write it: what the registry could read as another path is none.
func pulls(p string) bool {
	return p == "/v2" || strings.HasPrefix(p, "/v2/") && path.Clean(p) == strings.TrimSuffix(p, "/")
}
