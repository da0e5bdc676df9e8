package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
)

// isOurs says whether a header field tells an app where a request comes from or what
// it was on its way: only we say that. CGI, and what came of it, takes every byte of
// a name that is no letter or digit for an underscore: so names are compared without
// those, and none with an underscore reaches an app. Proxy would become a variable
// that tells HTTP clients where to send their requests.
func isOurs(key string) bool {
	if strings.IndexByte(key, '_') >= 0 {
		return true
	}
	var room [32]byte
	name := room[:0]
	for i := 0; i < len(key) && len(name) < len(room); i++ {
		switch c := key[i]; {
		case 'A' <= c && c <= 'Z':
			name = append(name, c|0x20)
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			name = append(name, c)
		}
	}
	switch string(name) {
	case "forwarded", "forwardedfor", "forwardedforip", "forwardedhost", "forwardedproto",
		"xforward", "xforwardfor", "xforwarderfor", "xrealip", "xrealport", "realip",
		"clientip", "clientport", "xclientip", "xclientport", "trueclientip", "xtrueclientip",
		"xclusterclientip", "xremoteip", "xremoteaddr", "remoteaddr", "xoriginatingip", "xproxyuserip", "xenvoyexternaladdress",
		"cfconnectingip", "cfconnectingipv6", "cfpseudoipv4", "cfvisitor", "cfipcountry", "fastlyclientip", "flyclientip",
		"xazureclientip", "xazuresocketip", "xappengineuserip", "xnfclientconnectionip", "cloudfrontvieweraddress",
		"xoriginalurl", "xoriginaluri", "xoriginalhost", "xoriginalfor", "xoriginalforwardedfor", "xoriginalproto", "xoriginalscheme",
		"xoriginalport", "xoriginalprefix", "xoriginalmethod", "xoriginalip", "xoriginalremoteaddr", "xrewriteurl",
		"xhost", "xhttphostoverride", "xscheme", "xurlscheme", "xproto", "frontendhttps", "xhttps", "xssl",
		"clientcert", "clientcertchain", "xclientcert", "xsslcert", "xsslclientcert", "sslclientcert",
		"xsslclientverify", "sslclientverify",
		"proxy":
		return true
	}
	return strings.HasPrefix(string(name), "xforwarded")
}

const flushInterval = 50 * time.Millisecond // nobody sees it

// passage is a request under way to a pool, which its context has below passageKey.
type passage struct {
	*pool
	// Of HTTP/1, whether all of the request's body has been read: an answer that comes
	// before is the connection's last.
	read *atomic.Bool
}

type passageKey struct{}

// isLast says whether the answer to a request must be the connection's last.
func isLast(r *http.Request) bool {
	p, ok := r.Context().Value(passageKey{}).(*passage)
	return ok && p.read != nil && !p.read.Load()
}

// RoundTrip sends a request by its passage.
func (passageKey) RoundTrip(r *http.Request) (*http.Response, error) {
	return r.Context().Value(passageKey{}).(*passage).try(nil, r, (*backend).send)
}

// readBody is a request's body that knows when all of it was read.
type readBody struct {
	io.ReadCloser
	all atomic.Bool
}

func (b *readBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.all.Store(true)
	}
	return n, err
}

// newProxy makes the one proxy for all routes: the pool to use is in the
// request's context.
func newProxy(log *slog.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			for _, fields := range []http.Header{r.Out.Header, r.Out.Trailer} {
				for key := range fields {
					if isOurs(key) {
						delete(fields, key)
					}
				}
			}
			r.SetXForwarded()
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = r.In.Host // the pool sets the pod's address
			r.Out.Host = r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery // as it came, also what Go would not parse
		},
		Transport: passageKey{},
		ModifyResponse: func(resp *http.Response) error {
			if isLast(resp.Request) && resp.StatusCode != http.StatusSwitchingProtocols {
				resp.Header.Set("Connection", "close")
			}
			return nil
		},
		// Answers without a length are streams and flushed with every write; that is
		// the proxy's own rule. For others this bounds how long a slow app's bytes wait.
		// Flushing all at once (-1) was tried: it costs a goroutine and two more
		// writes for each answer.
		FlushInterval: flushInterval,
		BufferPool:    buffers{},
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler:  func(w http.ResponseWriter, r *http.Request, err error) { serveError(w, r, err, log) },
	}
}

// bodyBuffers are those through which bodies pass.
var bodyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// buffers lends them to the library's proxy.
type buffers struct{}

func (buffers) Get() []byte  { return *bodyBuffers.Get().(*[]byte) }
func (buffers) Put(p []byte) { bodyBuffers.Put(&p) }

// serveRoute serves a request that came by HTTPS.
func (b *Balancer) serveRoute(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		lingerAtEnd(r)
	}
	host, ok := canonicalHost(r.Host)
	if ok && r.TLS != nil {
		// A connection is for the host whose certificate it was begun with.
		if sni, _ := canonicalHost(r.TLS.ServerName); sni != host {
			page(w, r, http.StatusMisdirectedRequest, "This connection was opened for another host name. Open a new one.")
			return
		}
	}
	p := b.table.lookup(host) // of "" there is none
	if p == nil {
		page(w, r, http.StatusNotFound, "Nothing answers at this host name here.")
		return
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	who := asker{p.workspace, limiter.SourceOf(from.Addr())}
	if !b.asked.Enter(who) {
		serveError(w, r, errCrowded, b.cfg.Log)
		return
	}
	defer b.asked.Leave(who)
	if !b.requests.Enter(p.workspace) {
		serveError(w, r, errCrowded, b.cfg.Log)
		return
	}
	defer b.requests.Leave(p.workspace)
	if isPlain(r) {
		b.servePlain(w, r, p)
		return
	}
	through := &passage{pool: p}
	r = r.WithContext(context.WithValue(r.Context(), passageKey{}, through))
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// The answer need not wait for a body that the app doesn't want.
		_ = http.NewResponseController(w).EnableFullDuplex() // not by what tests have for a connection
		body := &readBody{ReadCloser: r.Body}
		r.Body, through.read = body, &body.all
	}
	b.proxy.ServeHTTP(w, r)
}

// servePlain does for plain requests what the library's proxy does for all
// others.
func (b *Balancer) servePlain(w http.ResponseWriter, r *http.Request, p *pool) {
	resp, err := p.try(w, r, (*backend).ask)
	if err != nil {
		serveError(w, r, err, b.cfg.Log)
		return
	}
	defer resp.Body.Close()
	h := w.Header()
	copyHeader(h, resp.Header)
	keepTrailers(resp.Trailer)
	announced := len(resp.Trailer)
	for key := range resp.Trailer {
		h.Add("Trailer", key)
	}
	w.WriteHeader(resp.StatusCode)
	if err := copyBody(w, resp); err != nil {
		// The header has gone out: all that can be done is to break off, and not
		// to end as if that had been all.
		b.cfg.Log.Debug("answer broke off", "host", r.Host, "err", err)
		if r.Context().Value(http.ServerContextKey) != nil {
			panic(http.ErrAbortHandler)
		}
		return
	}
	if len(resp.Trailer) > 0 {
		// Trailers need an answer in chunks, which this makes it.
		http.NewResponseController(w).Flush()
	}
	keepTrailers(resp.Trailer)
	for key, values := range resp.Trailer {
		if len(resp.Trailer) != announced {
			key = http.TrailerPrefix + key
		}
		h[key] = values
	}
}

// copyBody passes the body of an answer to the client. Answers without a length
// are streams, and flushed with every read; so are events. Of the others, what
// waits is flushed when the pod sends nothing more for flushInterval.
func copyBody(w http.ResponseWriter, resp *http.Response) error {
	body, ok := resp.Body.(*linkBody)
	if !ok || body.ReadCloser == http.NoBody {
		return nil
	}
	buf := bodyBuffers.Get().(*[]byte)
	defer bodyBuffers.Put(buf)
	stream := resp.ContentLength < 0 || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	l := body.link
	if stream {
		l.setDeadline(time.Time{})
	}
	for waits := false; ; {
		if !stream && l.r.Buffered() == 0 {
			var until time.Time
			if waits {
				until = time.Now().Add(flushInterval)
			}
			l.setDeadline(until)
		}
		n, err := body.Read(*buf)
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
			waits = !stream
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && waits && isTimeout(err):
			waits = false
		case err != nil:
			return err
		case !stream:
			continue
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
	}
}

// redirect serves plain HTTP: hosts that are routed are sent to HTTPS.
func (b *Balancer) redirect(w http.ResponseWriter, r *http.Request) {
	host, ok := canonicalHost(r.Host)
	if !ok || !b.table.has(host) {
		page(w, r, http.StatusNotFound, "Nothing answers at this host name here.")
		return
	}
	if at, ok := b.HTTPSAddr().(*net.TCPAddr); ok && at.Port != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(at.Port))
	}
	// Nothing else of what was asked for: `GET p:x`, which has neither host nor
	// path, would lead to https:x.
	u := url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	// 308 keeps method and body, unlike 301.
	w.Header().Set("Location", u.String())
	w.Header().Set("Connection", "close") // the client goes elsewhere
	page(w, r, http.StatusPermanentRedirect, "This host is reached by HTTPS.")
}

// serveError tells a client why the app did not answer, and nothing about the
// inside.
func serveError(w http.ResponseWriter, r *http.Request, err error, log *slog.Logger) {
	status, text := http.StatusBadGateway, "The app did not answer properly: the connection to it broke."
	var notSent *dialError
	var tooLarge *http.MaxBytesError
	var unread *bodyError
	switch {
	case r.Context().Err() != nil || errors.Is(err, context.Canceled):
		// The client has gone: nobody reads this. The status is for logs.
		status, text = 499, "The client closed the connection."
	case errors.Is(err, errNoBackend):
		status, text = http.StatusServiceUnavailable, "The app has no instance that is ready. Try again in a moment."
	case errors.Is(err, errCrowded):
		status, text = http.StatusServiceUnavailable, "Too many requests wait for the apps of this workspace. Try again in a moment."
	case errors.As(err, &notSent):
		text = "No instance of the app can be reached. Try again in a moment."
	case errors.As(err, &tooLarge):
		status, text = http.StatusRequestEntityTooLarge, "The request is too large."
	case errors.As(err, &unread) && isTimeout(err):
		status, text = http.StatusRequestTimeout, "The rest of the request did not come."
	case errors.As(err, &unread):
		status = http.StatusBadRequest
		text = "The body of the request could not be read: send all of it, in proper chunks or with its length."
	case isTimeout(err):
		status, text = http.StatusGatewayTimeout, "The app took too long to answer."
	}
	if isLast(r) {
		w.Header().Set("Connection", "close")
	}
	log.Debug("no answer", "host", r.Host, "status", status, "err", err)
	if isGRPC(r) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "14") // UNAVAILABLE
		w.Header().Set("Grpc-Message", text)
		w.WriteHeader(http.StatusOK)
		return
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	page(w, r, status, text)
}

// page answers with a few words.
func page(w http.ResponseWriter, r *http.Request, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "%d %s\n\n%s\n", status, http.StatusText(status), text)
	}
}
