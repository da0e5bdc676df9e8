package balancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/sys/unix"
)

// Nearly all requests have no body and want none of HTTP's odder parts. They go over
// a link. http.Transport, which all others use, has two goroutines for each
// connection, so that each request is three switches between them, copies the header
// twice and sets up a trace.

const (
	maxAnswerHeader = 256 << 10
	linkIdle        = time.Minute
	linkBuffer      = 4 << 10
)

// isPlain says whether a request goes over a link: it has no body, may be sent
// again, and its header asks nothing of the connection.
func isPlain(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 || isGRPC(r) ||
		len(r.Header["Upgrade"]) > 0 || len(r.Header["Expect"]) > 0 || len(r.Header["Te"]) > 0 {
		return false
	}
	for _, v := range r.Header["Connection"] {
		// Others name header fields that go no further: the library removes them.
		if !strings.EqualFold(v, "keep-alive") && !strings.EqualFold(v, "close") {
			return false
		}
	}
	return true
}

// copyHeader leaves out what is between two neighbours only.
func copyHeader(dst, src http.Header) {
	for key, values := range src {
		if !isHop(key) {
			dst[key] = values
		}
	}
	for _, list := range src["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			dst.Del(textproto.TrimString(name))
		}
	}
}

// isHop says whether a header field is between two neighbours only (RFC 9110,
// 7.6.1, and what was used before it).
func isHop(key string) bool {
	switch key {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// link is a connection to a pod with one request at a time on it, written and read
// by the goroutine that serves the request.
type link struct {
	backend *backend
	conn    net.Conn
	close   func() // conn.Close, once for all requests
	r       *bufio.Reader
	headers int64 // how much may be read yet; less than 0: no limit
	used    bool  // it has served a request
	since   time.Time
	probe   func(fd uintptr) // looks whether something came, into quiet; made once, since it escapes
	quiet   bool
	// When the next read ends without data: zero is never.
	deadline time.Time
}

var errAnswerTooLarge = errors.New("the header of the answer is too large")

func newLink(b *backend, conn net.Conn) *link {
	l := &link{backend: b, conn: conn, close: func() { conn.Close() }}
	l.r = bufio.NewReaderSize(l, linkBuffer)
	l.probe = func(fd uintptr) {
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		l.quiet = err == unix.EAGAIN
	}
	return l
}

// isQuiet says whether nothing has come on an idle link: neither its end nor
// bytes that would be taken for the next answer. Some servers say 408 before they
// close a connection that was idle.
func (l *link) isQuiet() bool {
	s, ok := l.conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	return err == nil && raw.Control(l.probe) == nil && l.quiet
}

// Read reads from the connection, as its buffer asks.
func (l *link) Read(p []byte) (int, error) {
	switch {
	case l.headers < 0:
		return l.conn.Read(p)
	case l.headers == 0:
		return 0, errAnswerTooLarge
	}
	n, err := l.conn.Read(p[:min(int64(len(p)), l.headers)])
	l.headers -= int64(n)
	return n, err
}

// setDeadline costs a lock and a timer's move each time.
func (l *link) setDeadline(t time.Time) {
	if l.deadline.IsZero() && t.IsZero() {
		return
	}
	l.deadline = t
	l.conn.SetReadDeadline(t)
}

// links are the idle ones of a backend.
type links struct {
	mu    sync.Mutex
	idle  []*link // the one used last is the last
	sweep *time.Timer
	gone  bool // the backend has: none is kept
}

// take returns an idle link or nil.
func (s *links) take() *link {
	for {
		s.mu.Lock()
		n := len(s.idle)
		if n == 0 {
			s.mu.Unlock()
			return nil
		}
		l := s.idle[n-1]
		s.idle = slices.Delete(s.idle, n-1, n)
		s.mu.Unlock()
		if l.isQuiet() {
			return l
		}
		l.close()
	}
}

// keep keeps a link for the next request.
func (s *links) keep(l *link) {
	l.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || len(s.idle) >= idlePerPod {
		l.close()
		return
	}
	s.idle = append(s.idle, l)
	if s.sweep == nil {
		s.sweep = time.AfterFunc(linkIdle, s.closeOld)
	}
}

// closeOld closes the links that nobody has used for a while.
func (s *links) closeOld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.idle) && time.Since(s.idle[n].since) >= linkIdle {
		s.idle[n].close()
		n++
	}
	s.idle = append(s.idle[:0:0], s.idle[n:]...)
	if s.sweep = nil; len(s.idle) > 0 {
		s.sweep = time.AfterFunc(linkIdle-time.Since(s.idle[0].since), s.closeOld)
	}
}

// closeIdle closes all; with gone, those that come back later too.
func (s *links) closeIdle(gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = s.gone || gone
	for _, l := range s.idle {
		l.close()
	}
	s.idle = nil
	if s.sweep != nil {
		s.sweep.Stop()
		s.sweep = nil
	}
}

// ask sends a plain request to the pod and returns the beginning of its answer.
// The body of that must be closed, by the goroutine that has called. Answers that
// only announce another (1xx) go to w.
func (b *backend) ask(w http.ResponseWriter, req *http.Request) (resp *http.Response, err error) {
	b.active.Add(1)
	defer func() {
		if err != nil {
			b.active.Add(-1)
		}
	}()
	for fresh := false; ; fresh = true {
		var l *link
		if !fresh {
			l = b.links.take()
		}
		if l == nil {
			conn, err := b.connect(req.Context(), "tcp", "")
			if err != nil {
				return nil, err
			}
			l = newLink(b, conn)
		}
		resp, silent, err := l.ask(w, req)
		if err == nil {
			return resp, nil
		}
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, ctxErr
		}
		if !l.used || !silent || isTimeout(err) {
			return nil, err
		}
		// The pod has closed the link while it was idle, and so probably the
		// others: it was restarted, say. The request can be sent again.
		b.links.closeIdle(false)
	}
}

// ask writes the request and reads the beginning of the answer. silent says that
// not a byte of one came. After an error the link is closed.
func (l *link) ask(w http.ResponseWriter, req *http.Request) (resp *http.Response, silent bool, err error) {
	stop := context.AfterFunc(req.Context(), l.close)
	defer func() {
		if err != nil {
			stop()
			l.close()
		}
	}()
	if err := l.write(req); err != nil {
		return nil, true, err
	}
	l.headers = maxAnswerHeader
	l.setDeadline(time.Now().Add(answerTimeout))
	if _, err := l.r.Peek(1); err != nil {
		return nil, l.r.Buffered() == 0, err
	}
	for {
		resp, err = http.ReadResponse(l.r, req)
		switch {
		case err != nil:
			return nil, false, fmt.Errorf("read the answer: %w", err)
		case resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode < 100:
			return nil, false, fmt.Errorf("the app answers with status %d", resp.StatusCode)
		case resp.StatusCode < 200:
			keepToSite(resp.Header, l.backend.site)
			announce(w, resp)
			continue
		}
		keepToSite(resp.Header, l.backend.site)
		l.headers = -1
		resp.Body = &linkBody{ReadCloser: resp.Body, link: l, stop: stop, last: resp.Close}
		return resp, false, nil
	}
}

// announce passes on an answer that announces another, and leaves w's header as
// it was: empty.
func announce(w http.ResponseWriter, resp *http.Response) {
	if resp.StatusCode == http.StatusContinue {
		return // nobody has asked whether to go on
	}
	h := w.Header()
	copyHeader(h, resp.Header)
	w.WriteHeader(resp.StatusCode)
	clear(h)
}

// outgoing are buffers for requests.
var outgoing = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// write sends the request with the header that the pod gets.
func (l *link) write(req *http.Request) error {
	buf := outgoing.Get().(*[]byte)
	defer outgoing.Put(buf)
	var err error
	if *buf, err = appendRequest((*buf)[:0], req); err != nil {
		return err
	}
	_, err = l.conn.Write(*buf)
	return err
}

// appendRequest writes a plain request as HTTP/1.1. What could end a line early
// was refused when it was read; it is refused again here, where it would count.
func appendRequest(buf []byte, req *http.Request) ([]byte, error) {
	target := req.URL.RequestURI()
	for i := range len(target) {
		if target[i] <= ' ' || target[i] == 0x7f {
			return buf, errors.New("the request's target has characters that can't be in one")
		}
	}
	if !httpguts.ValidHostHeader(req.Host) {
		return buf, errors.New("the request's host has characters that can't be in one")
	}
	buf = append(buf, req.Method...)
	buf = append(buf, ' ')
	buf = append(buf, target...)
	buf = append(buf, " HTTP/1.1\r\n"...)
	buf = appendField(buf, "Host", req.Host)
	for key, values := range req.Header {
		if isHop(key) || isOurs(key) || key == "Host" || key == "Content-Length" {
			continue
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldName(key) || !httpguts.ValidHeaderFieldValue(v) {
				return buf, fmt.Errorf("the request's header %q has characters that can't be in one", key)
			}
			buf = appendField(buf, key, textproto.TrimString(v))
		}
	}
	if ip, _, err := net.SplitHostPort(req.RemoteAddr); err == nil {
		buf = appendField(buf, "X-Forwarded-For", ip)
	}
	buf = appendField(buf, "X-Forwarded-Host", req.Host)
	proto := "https"
	if req.TLS == nil {
		proto = "http"
	}
	buf = appendField(buf, "X-Forwarded-Proto", proto)
	return append(buf, "\r\n"...), nil
}

func appendField(buf []byte, key, value string) []byte {
	buf = append(buf, key...)
	buf = append(buf, ": "...)
	buf = append(buf, value...)
	return append(buf, "\r\n"...)
}

// linkBody is the body of an answer that came over a link.
type linkBody struct {
	io.ReadCloser
	link  *link
	stop  func() bool // watching the request's context
	last  bool        // the pod closes the connection after it
	ended bool        // all of it was read
}

func (b *linkBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// Close keeps the link if it can take another request.
func (b *linkBody) Close() error {
	if b.link == nil {
		return nil
	}
	l := b.link
	b.link = nil
	l.backend.active.Add(-1)
	whole := b.ended || b.ReadCloser == http.NoBody
	// Bytes behind the answer were not asked for.
	if !b.stop() || !whole || b.last || l.r.Buffered() > 0 {
		l.close()
		return nil
	}
	l.used = true
	l.backend.links.keep(l)
	return nil
}
