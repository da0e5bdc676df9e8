package balancer

import (
	"context"
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
	// planeDrain is how long open connections may go on when the router stops;
	// watches never end by themselves.
	planeDrain = 2 * time.Second
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
	cfg PlaneRouterConfig
	log *slog.Logger

	sources *limiter.Limiter[netip.Addr]

	mu    sync.Mutex
	addr  net.Addr
	conns map[net.Conn]bool
}

// NewPlaneRouter makes a router. It listens in Run.
func NewPlaneRouter(cfg PlaneRouterConfig) *PlaneRouter {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &PlaneRouter{
		cfg:     cfg,
		log:     cfg.Log,
		sources: limiter.New[netip.Addr](perSource, max(perSource, limiter.Files()/planeShare)),
		conns:   map[net.Conn]bool{},
	}
}

// Addr is where it listens; nil before it is ready.
func (p *PlaneRouter) Addr() net.Addr { p.mu.Lock(); defer p.mu.Unlock(); return p.addr }

// Run serves until ctx is done. It is ready once it listens.
func (p *PlaneRouter) Run(ctx context.Context, ready func()) error {
	ln, err := net.Listen("tcp", p.cfg.Addr)
	if err != nil {
		return fmt.Errorf("planes' router: %w", err)
	}
	p.mu.Lock()
	p.addr = ln.Addr()
	p.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	ready()

	// Connections are cut planeDrain after ctx is done.
	connCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var wg sync.WaitGroup
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			// Out of file descriptors, most likely: others may end.
			p.log.Warn("accept a connection", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !p.enter(conn) {
			p.log.Debug("too many connections from one address", "remote", conn.RemoteAddr().String())
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer p.leave(conn)
			p.serve(connCtx, conn)
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(planeDrain):
		cut()
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		<-ended
	}
	return nil
}

func (p *PlaneRouter) enter(conn net.Conn) bool {
	if !p.sources.Enter(limiter.Source(conn)) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = true
	return true
}

func (p *PlaneRouter) leave(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	p.sources.Leave(limiter.Source(conn))
}

func (p *PlaneRouter) serve(ctx context.Context, conn net.Conn) {
	conn.SetDeadline(time.Now().Add(helloTimeout))
	hello, err := readHello(conn)
	if err != nil {
		p.log.Debug("not a TLS client", "remote", conn.RemoteAddr().String(), "err", err)
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
		p.log.Debug("plane can't be reached", "name", name, "err", err)
		alert(conn, alertInternalError)
		return
	}
	defer plane.Close()
	p.mu.Lock()
	p.conns[plane] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, plane)
		p.mu.Unlock()
	}()
	if ctx.Err() != nil {
		return // the cut came before plane was in the list
	}
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
	keepAlive(a)
	keepAlive(b)
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

// keepAlive finds peers that are gone without a word, within two minutes.
func keepAlive(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4})
	}
}
