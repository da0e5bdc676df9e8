package balancer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/resource"
)

// Planes reaches the workspaces' planes.
type Planes interface {
	// DialPlane opens a connection to the API server of the plane with that TLS
	// server name, which is in lower case. It is called once per connection,
	// from many goroutines, and may block until ctx is done.
	// resource.ErrUnknownPlane: there is none of that name.
	DialPlane(ctx context.Context, serverName string) (net.Conn, error)
}

const (
	helloTimeout     = 10 * time.Second // for the ClientHello; a slow line needs one
	planeDialTimeout = 5 * time.Second
	// perSource bounds the connections from one address. A client has one or
	// two, and a site behind one address some hundred of them.
	perSource = 1024
	// planeShare is the part of the process's files that all of them may take; each
	// takes a second one, to its plane. See httpsShare.
	planeShare = 16
	planeDrain = 2 * time.Second // when the router stops: watches never end by themselves
)

// The alerts that TLS has for what we say, as fatal ones.
const (
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// PlaneRouterConfig is what a PlaneRouter needs to know.
type PlaneRouterConfig struct {
	Addr   string // "host:port" to listen on
	Planes Planes
	Log    *slog.Logger
}

// PlaneRouter passes TLS connections to the planes by the server name that
// clients ask for. It holds no key and sees nothing of what is said: TLS ends in
// the plane.
type PlaneRouter struct {
	cfg     PlaneRouterConfig
	sources *limiter.Limiter[netip.Prefix]
	vigil   vigil
	at      place
}

// NewPlaneRouter makes a router. It listens in Run.
func NewPlaneRouter(cfg PlaneRouterConfig) *PlaneRouter {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &PlaneRouter{cfg: cfg, sources: limiter.New[netip.Prefix](perSource, max(perSource, limiter.Files()/planeShare))}
}

// Addr is where it listens; nil before it is ready.
func (p *PlaneRouter) Addr() net.Addr { return p.at.get() }

// Run serves until ctx is done. It is ready once it listens.
func (p *PlaneRouter) Run(ctx context.Context, ready func()) error {
	ln, err := p.at.listen(p.cfg.Addr)
	if err != nil {
		return fmt.Errorf("planes' router: %w", err)
	}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	ready()

	// Connections are cut planeDrain after ctx is done.
	connCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var wg sync.WaitGroup
	wg.Go(func() { p.vigil.run(ctx) })
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			// Out of file descriptors, most likely: others may end.
			p.cfg.Log.Warn("accept a connection", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		source := limiter.Source(conn)
		if !p.sources.Enter(source) {
			p.cfg.Log.Debug("too many connections from one address", "remote", conn.RemoteAddr().String())
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer p.sources.Leave(source)
			defer conn.Close()
			p.serve(connCtx, conn)
		})
	}
	defer time.AfterFunc(planeDrain, cut).Stop()
	wg.Wait()
	return nil
}

func (p *PlaneRouter) serve(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(helloTimeout))
	hello, err := readHello(conn)
	if err != nil {
		p.cfg.Log.Debug("not a TLS client", "remote", conn.RemoteAddr().String(), "err", err)
		return
	}
	conn.SetDeadline(time.Time{})
	name, ok := canonicalHost(hello.serverName)
	if !ok {
		alert(conn, alertUnrecognizedName)
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, planeDialTimeout)
	plane, err := p.cfg.Planes.DialPlane(dialCtx, name)
	cancel()
	switch {
	case errors.Is(err, resource.ErrUnknownPlane):
		alert(conn, alertUnrecognizedName)
		return
	case err != nil:
		p.cfg.Log.Debug("plane can't be reached", "name", name, "err", err)
		alert(conn, alertInternalError)
		return
	}
	defer plane.Close()
	defer p.vigil.watch(conn, clientSilence)()
	defer p.vigil.watch(plane, clientSilence)()
	defer context.AfterFunc(ctx, func() { plane.Close() })()
	if _, err := plane.Write(hello.recorded); err != nil {
		return
	}
	splice(conn, plane)
}

// alert ends a connection before the handshake with a fatal TLS alert.
func alert(conn net.Conn, code byte) {
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	conn.Write([]byte{21, 3, 3, 0, 2, 2, code}) // alert, TLS 1.2, two bytes: fatal, code
}

// splice passes bytes both ways until both sides have ended, or one is broken.
// Between two TCP connections the kernel moves the bytes itself.
func splice(a, b net.Conn) {
	done := make(chan error, 2)
	pass := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		} else if !ok {
			err = io.ErrClosedPipe // it can't be ended by halves
		}
		done <- err
	}
	go pass(a, b)
	go pass(b, a)
	if err := <-done; err != nil {
		a.Close()
		b.Close()
	}
	<-done
}

// maxHello bounds what is read before the server name is known. A ClientHello
// has a few hundred bytes, 2 KiB with post-quantum keys.
const maxHello = 32 << 10

// clientHello is the beginning of a TLS connection.
type clientHello struct {
	serverName string
	recorded   []byte // everything that was read
}

// errHello ends the handshake once the ClientHello was read.
var errHello = errors.New("the ClientHello is here")

// readHello reads a ClientHello from conn, and no more than maxHello bytes, and
// writes nothing. crypto/tls parses it: it begins a handshake on a connection
// that only records.
func readHello(conn net.Conn) (clientHello, error) {
	rec := &recorder{Conn: conn}
	var h clientHello
	var found bool
	err := tls.Server(rec, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h.serverName, found = info.ServerName, true
		return nil, errHello
	}}).Handshake()
	if !found {
		return clientHello{}, fmt.Errorf("read ClientHello: %w", err)
	}
	h.recorded = rec.read.Bytes()
	return h, nil
}

// recorder keeps what is read and swallows what is written.
type recorder struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	left := maxHello - r.read.Len()
	if left <= 0 {
		return 0, io.ErrShortBuffer
	}
	n, err := r.Conn.Read(p[:min(len(p), left)])
	r.read.Write(p[:n])
	return n, err
}

// Write swallows the alert that crypto/tls sends when we end the handshake.
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// Close leaves the connection open.
func (r *recorder) Close() error { return nil }
