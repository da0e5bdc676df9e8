package balancer

import (
	"cmp"
	"crypto/tls"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxGathered is what may wait for the kernel to take it: some records of TLS,
	// which have 16 KiB at most.
	maxGathered = 64 << 10
	// lastWords is how long a connection that is closed may take to pass on what
	// waits.
	lastWords = time.Second
	// lingerSilence and lingerMost are how long what still comes is read and dropped
	// after the last answer of a connection: from who sends nothing, and in all.
	lingerSilence = 5 * time.Second
	lingerMost    = 30 * time.Second
)

// gatherer is the TCP connection below the TLS of an HTTP/2 client. net/http writes
// header, body and what controls the flow one by one, and each is a record of TLS and
// a write to the kernel. Here what comes while others run is gathered, and written at
// once by a goroutine of its own.
//
// HTTP/1.1 has one write for each small answer anyway: nothing is gathered until
// http.Server says that a connection speaks HTTP/2.
type gatherer struct {
	net.Conn
	leave   func() // the watch over it ends
	on      atomic.Bool
	asked   atomic.Bool // whether it is to be on
	lingers atomic.Bool // see lingerAtEnd

	mu      sync.Mutex
	waiting *[]byte       // nil: nothing
	err     error         // of a write, or net.ErrClosed: no more is taken
	some    chan struct{} // has one when something waits, or the end has come
	room    sync.Cond     // what waits got less, or there is an error
	done    chan struct{} // all is written
}

// gathered are the buffers: idle connections have none. A record may come when
// there is almost as much as may wait.
var gathered = sync.Pool{New: func() any { b := make([]byte, 0, maxGathered+17<<10); return &b }}

// gathering makes each connection of a listener a gatherer, and watches it.
type gathering struct {
	net.Listener
	vigil *vigil
}

func (l gathering) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	raw := conn
	if inside, ok := conn.(interface{ NetConn() net.Conn }); ok {
		raw = inside.NetConn()
	}
	return &gatherer{Conn: conn, leave: l.vigil.watch(raw, clientSilence)}, nil
}

// clientKey is where a request's context has its connection.
type clientKey struct{}

// lingerAtEnd has the connection of a request end as RFC 9112, 9.6 wants it: what the
// client still sends is read until it has seen that there is an answer. Else the
// kernel would reset the connection, and the client might lose that.
func lingerAtEnd(r *http.Request) {
	if t, ok := r.Context().Value(clientKey{}).(*tls.Conn); ok {
		if g, ok := t.NetConn().(*gatherer); ok {
			g.lingers.Store(true)
		}
	}
}

// gatherHTTP2 is an http.Server's ConnState.
func gatherHTTP2(conn net.Conn, state http.ConnState) {
	t, ok := conn.(*tls.Conn)
	if !ok || state == http.StateNew || state == http.StateClosed {
		return
	}
	if g, ok := t.NetConn().(*gatherer); ok && !g.asked.Swap(true) && t.ConnectionState().NegotiatedProtocol == "h2" {
		g.start()
	}
}

func (g *gatherer) start() {
	g.some, g.done = make(chan struct{}, 1), make(chan struct{})
	g.room.L = &g.mu
	g.on.Store(true)
	go g.pass()
}

// Write takes p to be written soon. It waits while too much waits already.
func (g *gatherer) Write(p []byte) (int, error) {
	if !g.on.Load() {
		return g.Conn.Write(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting != nil && len(*g.waiting) >= maxGathered && g.err == nil {
		g.room.Wait()
	}
	if g.err != nil {
		return 0, g.err
	}
	if g.waiting == nil {
		g.waiting = gathered.Get().(*[]byte)
	}
	*g.waiting = append(*g.waiting, p...)
	g.tell()
	return len(p), nil
}

func (g *gatherer) tell() {
	select {
	case g.some <- struct{}{}:
	default:
	}
}

// pass writes what was gathered.
func (g *gatherer) pass() {
	defer close(g.done)
	for {
		<-g.some
		runtime.Gosched() // others that can run may have more
		g.mu.Lock()
		buf, ended := g.waiting, g.err != nil
		g.waiting = nil
		g.room.Broadcast()
		g.mu.Unlock()
		if buf != nil {
			_, err := g.Conn.Write(*buf)
			*buf = (*buf)[:0]
			gathered.Put(buf)
			if err != nil {
				g.mu.Lock()
				g.err = err
				g.room.Broadcast()
				g.mu.Unlock()
				return
			}
		}
		if ended {
			return
		}
	}
}

// Close passes on what waits, for a moment at most: the last of it says why the
// connection ends.
func (g *gatherer) Close() error {
	if g.on.Load() {
		g.mu.Lock()
		g.err = cmp.Or(g.err, net.ErrClosed)
		g.tell()
		g.room.Broadcast()
		g.mu.Unlock()
		g.Conn.SetWriteDeadline(time.Now().Add(lastWords))
		<-g.done
	}
	if g.lingers.Swap(false) {
		go g.linger()
		return nil
	}
	g.leave()
	return g.Conn.Close()
}

// linger ends our half of the connection and reads what comes until the other half
// has ended too. TLS is over by then: nothing of it is understood.
func (g *gatherer) linger() {
	defer g.Conn.Close()
	defer g.leave()
	half, ok := g.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	buf := bodyBuffers.Get().(*[]byte)
	defer bodyBuffers.Put(buf)
	for end := time.Now().Add(lingerMost); ; {
		until := time.Now().Add(lingerSilence)
		if until.After(end) {
			until = end
		}
		if g.Conn.SetReadDeadline(until) != nil {
			return
		}
		if _, err := g.Conn.Read(*buf); err != nil {
			return
		}
	}
}

// SetWriteDeadline does nothing once connections gather: crypto/tls sets one that
// has passed when it closes, for those who would write after it.
func (g *gatherer) SetWriteDeadline(t time.Time) error {
	if g.on.Load() {
		return nil
	}
	return g.Conn.SetWriteDeadline(t)
}

// SetDeadline see SetWriteDeadline.
func (g *gatherer) SetDeadline(t time.Time) error {
	if g.on.Load() {
		return g.Conn.SetReadDeadline(t)
	}
	return g.Conn.SetDeadline(t)
}
