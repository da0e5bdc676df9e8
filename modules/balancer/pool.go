package balancer

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A pod is a switch or two away: a connection takes a millisecond, and a
	// lost SYN is sent again after one second.
	dialTimeout = 1500 * time.Millisecond
	// answerTimeout is how long an app may think before it answers: a report may
	// take long, and one that hangs takes a place of its own workspace's only.
	answerTimeout = time.Hour
	// restFirst and restMost are how long a backend that can't be reached is
	// left out; doubled each time in a row. It stays the last resort.
	restFirst = 500 * time.Millisecond
	restMost  = 10 * time.Second
	// maxTries bounds the backends that are tried for one request, and
	// maxReplays those that it is given to again after it was sent.
	maxTries   = 8
	maxReplays = 2
	idlePerPod = 64 // idle connections kept to a pod
	// smallBody is what apps read before they answer, whatever it is. After more than
	// that a connection takes no further request.
	smallBody = 64 << 10
	// maxCompared bounds the backends that are looked at for one request.
	maxCompared = 32
)

// errNoBackend is returned when a service has no pod that is ready.
var errNoBackend = errors.New("no instance is ready")

// errCrowded is for requests of a workspace that has too many under way.
var errCrowded = errors.New("too many requests are under way")

// dialError is an error from before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// bodyError is an error of the client's: what it sends can't be read.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

// DialFunc opens a connection inside a workspace's network.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// service names a Kubernetes service of a workspace.
type service struct {
	Workspace string `json:"workspace"`
	Namespace string `json:"namespace"`
	Name      string `json:"service"`
}

// pool is the pods behind one port of a service. Routes to the same port share
// it.
type pool struct {
	workspace string
	site      string // see keepToSite
	port      uint16
	dial      DialFunc

	next     atomic.Uint32
	backends atomic.Pointer[[]*backend]

	routes []*entry // that lead here; guarded by the table's lock
}

// backend is one pod.
type backend struct {
	address string
	site    string
	dial    DialFunc
	links   links
	// Made when they are first used: with 50,000 routes, most are not.
	http1, grpc atomic.Pointer[http.Transport]

	active   atomic.Int64 // requests
	failures atomic.Int32 // in a row
	rests    atomic.Int64 // until, in Unix nanoseconds
	retired  atomic.Bool
}

func newPool(workspace, site string, port uint16, dial DialFunc) *pool {
	p := &pool{workspace: workspace, site: site, port: port, dial: dial}
	p.backends.Store(&[]*backend{})
	return p
}

// set makes addrs the backends. Those that stay keep their connections; those
// that go lose the idle ones now, and the others when their requests end. Calls
// must not overlap.
func (p *pool) set(addrs []netip.Addr) {
	old := map[string]*backend{}
	for _, b := range *p.backends.Load() {
		old[b.address] = b
	}
	list := make([]*backend, 0, len(addrs))
	for _, a := range addrs {
		address := netip.AddrPortFrom(a, p.port).String()
		b := old[address]
		if b == nil {
			b = &backend{address: address, site: p.site, dial: p.dial}
		}
		delete(old, address)
		list = append(list, b)
	}
	p.backends.Store(&list)
	for _, b := range old {
		b.retire()
	}
}

// connect opens a connection to the pod.
func (b *backend) connect(ctx context.Context, network, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := b.dial(ctx, network, b.address)
	if err != nil {
		return nil, &dialError{err}
	}
	return conn, nil
}

// uploadConn is a connection to a pod that may answer before it has read all of a
// request, and close. What is sent to it then fails, while its answer waits to be
// read: so once a part of the request was written, failures are left to the reader,
// who gets the answer or an error too (RFC 9112, 9.5). HTTP/2 has a way of its own.
type uploadConn struct {
	net.Conn
	// written says that a part of the request was. After an upgrade net/http may still
	// flush while what upgraded writes.
	written atomic.Bool
}

// begin is called before each request on the connection.
func (c *uploadConn) begin() { c.written.Store(false) }

func (c *uploadConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.written.Load() && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)) {
		return len(p), nil
	}
	if n > 0 {
		c.written.Store(true)
	}
	return n, err
}

// transport is the one for gRPC, by HTTP/2 without TLS, or that for HTTP/1.1.
func (b *backend) transport(grpc bool) *http.Transport {
	kept := &b.http1
	if grpc {
		kept = &b.grpc
	}
	if t := kept.Load(); t != nil {
		return t
	}
	t := &http.Transport{
		DialContext:            b.connect,
		Protocols:              new(http.Protocols),
		MaxIdleConnsPerHost:    idlePerPod,
		IdleConnTimeout:        linkIdle,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true, // what the app says is what the client gets
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
	t.Protocols.SetHTTP1(!grpc)
	t.Protocols.SetUnencryptedHTTP2(grpc)
	if !grpc { // the header of a stream's answer may come with its first message, hours later
		t.ResponseHeaderTimeout = answerTimeout
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := b.connect(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &uploadConn{Conn: conn}, nil
		}
	}
	kept.CompareAndSwap(nil, t)
	return kept.Load()
}

func (b *backend) retire() {
	b.retired.Store(true)
	b.links.closeIdle(true)
	b.closeIdle()
}

func (b *backend) closeIdle() {
	for _, kept := range []*atomic.Pointer[http.Transport]{&b.http1, &b.grpc} {
		if t := kept.Load(); t != nil {
			t.CloseIdleConnections()
		}
	}
}

// pick chooses the backend with the fewest requests under way, in turn if that
// is the same, and leaves out those that were tried. Those that rest come last. Of
// many it looks at the next maxCompared, unless all of these rest: two that are drawn
// are almost as good as all, and a tenant may have a thousand.
func (p *pool) pick(tried []*backend) *backend {
	list := *p.backends.Load()
	if len(list) == 0 {
		return nil
	}
	start := int(p.next.Add(1) % uint32(len(list)))
	now := time.Now().UnixNano()
	var best, resting *backend
	for i := range list {
		if i >= maxCompared && best != nil {
			break
		}
		b := list[(start+i)%len(list)]
		switch {
		case slices.Contains(tried, b):
		case b.rests.Load() > now:
			if resting == nil || b.rests.Load() < resting.rests.Load() {
				resting = b
			}
		case best == nil || b.active.Load() < best.active.Load():
			best = b
		}
	}
	return cmp.Or(best, resting)
}

func (b *backend) failed() {
	rest := min(restFirst<<min(b.failures.Add(1)-1, 10), restMost)
	b.rests.Store(time.Now().Add(rest).UnixNano())
}

func (b *backend) reached() {
	if b.failures.Load() != 0 {
		b.failures.Store(0)
		b.rests.Store(0)
	}
}

// try sends the request to a backend, and to the next one if that can't be
// reached. If it was sent and no answer came, it is sent again only if it has no
// body and its method says that this does no harm.
func (p *pool) try(
	w http.ResponseWriter, req *http.Request,
	send func(*backend, http.ResponseWriter, *http.Request) (*http.Response, error),
) (*http.Response, error) {
	var room [maxTries]*backend
	tried := room[:0]
	var body *unreadBody
	// A request by HTTP/2 has a Body that is empty.
	if req.ContentLength != 0 && req.Body != nil && req.Body != http.NoBody {
		body = &unreadBody{ReadCloser: req.Body}
		out := *req
		out.Body = body
		req = &out
	}
	err := errNoBackend
	for replays := 0; len(tried) < maxTries; {
		b := p.pick(tried)
		if b == nil {
			return nil, err
		}
		tried = append(tried, b)
		var resp *http.Response
		resp, err = send(b, w, req)
		if err == nil {
			b.reached()
			return resp, nil
		}
		var notSent *dialError
		switch {
		case req.Context().Err() != nil:
			return nil, err
		case errors.As(err, &notSent):
			b.failed()
			if body != nil && body.read.Load() {
				return nil, err
			}
		case body == nil && replayable(req.Method) && !isTimeout(err) && replays < maxReplays:
			replays++
		default:
			return nil, err
		}
	}
	return nil, err
}

// send sends a request by the library's client.
func (b *backend) send(_ http.ResponseWriter, in *http.Request) (*http.Response, error) {
	req := in.WithContext(httptrace.WithClientTrace(in.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if c, ok := info.Conn.(*uploadConn); ok {
				c.begin()
			}
		},
		// This comes before the trace of the proxy, which passes it on.
		Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
			keepToSite(http.Header(header), b.site)
			return nil
		},
	}))
	u := *in.URL
	u.Host = b.address
	req.URL = &u
	// An app that has not read all of it may close behind its answer, and say so or not.
	req.Close = !isGRPC(in) && in.Body != nil && (in.ContentLength < 0 || in.ContentLength > smallBody)
	b.active.Add(1)
	var resp *http.Response
	done := sync.OnceFunc(func() {
		if resp != nil {
			keepTrailers(resp.Trailer) // they are there when the body has ended
		}
		b.active.Add(-1)
		if b.retired.Load() {
			b.closeIdle()
		}
	})
	resp, err := b.transport(isGRPC(in)).RoundTrip(req)
	if err != nil {
		done()
		return nil, err
	}
	keepToSite(resp.Header, b.site)
	keepTrailers(resp.Trailer)
	if rw, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgradedBody{countedBody{rw, done}, rw}
	} else {
		resp.Body = &countedBody{resp.Body, done}
	}
	return resp, nil
}

// replayable says whether sending a request twice does no harm.
func replayable(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions || method == http.MethodTrace
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// isGRPC says whether the request needs HTTP/2 on its whole way.
func isGRPC(req *http.Request) bool {
	if req.ProtoMajor != 2 {
		return false
	}
	// grpc-web is not, which goes over every version of HTTP.
	kind, _, _ := strings.Cut(req.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
}

// unreadBody is a request's body that the transport can't close, so that it can
// be sent to another backend, and that knows whether it can.
type unreadBody struct {
	io.ReadCloser
	read atomic.Bool
}

func (b *unreadBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &bodyError{err}
	}
	return n, err
}

// Close leaves the body to the proxy, which closes it when the request ends.
func (b *unreadBody) Close() error { return nil }

// countedBody is a response's body that tells when it ends.
type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}

// upgradedBody is countedBody for a connection that became something else.
type upgradedBody struct {
	countedBody
	io.Writer
}
