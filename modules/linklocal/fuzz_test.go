package linklocal

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/multipaas/multipaas/modules/wire"
)

// FuzzEndpointRequest asks the link-local registry as a machine may: it gives
// out what lies in the images' folder under its digest, and nothing else.
func FuzzEndpointRequest(f *testing.F) {
	dir, digest := testImages(f)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("the secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tool", "blobs", "secret"), []byte("the secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{
		"/v2/", "/v2/tool/manifests/1?ns=multipaas.internal", "/v2/tool/blobs/@?ns=multipaas.internal", "/v2/multipaas.internal/tool/manifests/@",
		"/v2/tool/blobs/sha256:../../secret?ns=multipaas.internal", "/v2/../secret", "/v2/multipaas.internal/../secret", "/v2//?ns=", "/v2/library/x/manifests/1?ns=docker.io",
		"/v2/tool/blobs/..%2fsecret?ns=multipaas.internal", "/v2/%2e%2e/blobs/@?ns=multipaas.internal",
	} {
		f.Add("GET", p, "bytes=0-4")
		f.Add("HEAD", p, "")
	}
	f.Add("POST", "/token?grant_type=password&username=a@b.example&password=x", "")
	f.Add("GET", "/v2/../token", "")
	f.Add("GET", "//v2/%2e%2e/token", "")
	f.Add("PUT", "/v2/tool/manifests/1?ns=multipaas.internal", "bytes=-1,0-,99999999999999999999-")
	f.Fuzz(func(t *testing.T, method, path, ranges string) {
		path = strings.ReplaceAll(path, "@", digest) // each run has another
		if !strings.HasPrefix(path, "/") {
			return
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://169.254.20.10:5000"+path, nil)
		if err != nil {
			return
		}
		if ranges != "" {
			r.Header.Set("Range", ranges)
		}
		passed := false
		rest := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { passed = true; w.WriteHeader(http.StatusTeapot) })
		w := httptest.NewRecorder()
		route(payloadImages{dir}, rest).ServeHTTP(w, r)
		if w.Code >= 500 || strings.Contains(w.Body.String(), "the secret") {
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
		if r.Method != "GET" && r.Method != "HEAD" && !passed && w.Code < 400 {
			t.Errorf("%s %q: %d", method, path, w.Code)
		}
		if passed && (r.Method != "GET" && r.Method != "HEAD" || !strings.HasPrefix(r.URL.Path, "/v2/") && r.URL.Path != "/v2") {
			t.Errorf("%s %q went on to the platform's registry", method, path)
		}
		if ns := r.URL.Query().Get("ns"); passed && ns == wire.PayloadRegistry {
			t.Errorf("%s %q went on to the platform's registry", method, path)
		}
	})
}

// FuzzResolver answers a query, any bytes that are one, with whatever a site's
// resolver says: the answer belongs to the query and fits where it goes, and
// what is no query gets no data.
func FuzzResolver(f *testing.F) {
	query := func(name string, kind uint16, edns bool) []byte {
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		if edns {
			q.SetEdns0(4096, true)
		}
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	reply := new(dns.Msg)
	reply.SetQuestion("a.example.", dns.TypeA)
	reply.Response = true
	for range 40 {
		rr, err := dns.NewRR("a.example. 60 IN TXT " + strings.Repeat("x", 100))
		if err != nil {
			f.Fatal(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	answer, err := reply.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(query("a.example.", dns.TypeA, false), answer, false)
	f.Add(query("a.example.", dns.TypeTXT, true), answer, true)
	f.Add(query("a.example.", dns.TypeAXFR, false), answer, false)
	f.Add(query("b.example.", dns.TypeA, true), answer[:20], false)
	f.Add([]byte{0, 1, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0}, []byte{}, false)
	f.Add([]byte{1, 2, 3}, []byte{1, 2, 3}, true)

	// One upstream for all; what it says is set before each query.
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pc.Close() })
	say := make(chan []byte, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case text := <-say:
				if len(text) >= 2 && n >= 2 {
					copy(text, buf[:2]) // the id, or nobody would read on
				}
				_, _ = pc.WriteTo(text, from)
			default:
			}
		}
	}()
	e := New(Config{})
	e.timeout = 50 * time.Millisecond // most of what is said here is no answer
	e.SetState(&wire.State{UpstreamDNS: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}})
	h := e.resolver()
	f.Fuzz(func(t *testing.T, packet, said []byte, stream bool) {
		q := new(dns.Msg)
		if q.Unpack(packet) != nil {
			return // the server refuses it before it comes to us
		}
		select {
		case <-say:
		default:
		}
		if len(said) > 60<<10 {
			return
		}
		say <- bytes.Clone(said)
		w := &written{stream: stream}
		h.ServeDNS(w, q.Copy())
		if w.msg == nil {
			t.Fatal("no answer")
		}
		if w.msg.Id != q.Id {
			t.Errorf("id %d for %d", w.msg.Id, q.Id)
		}
		out, err := w.msg.Pack()
		if err != nil {
			return // what the site's resolver says can be unpacked and not packed: it is dropped
		}
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		if !stream && len(out) > size && !w.msg.Truncated {
			t.Errorf("%d bytes for one who takes %d", len(out), size)
		}
		if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeAXFR && len(w.msg.Answer) > 0 {
			t.Error("a zone was transferred")
		}
	})
}

// written keeps an answer.
type written struct {
	dns.ResponseWriter
	stream bool
	msg    *dns.Msg
}

func (w *written) WriteMsg(m *dns.Msg) error { w.msg = m; return nil }

func (w *written) RemoteAddr() net.Addr {
	if w.stream {
		return &net.TCPAddr{}
	}
	return &net.UDPAddr{}
}
