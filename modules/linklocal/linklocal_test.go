package linklocal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/wire"
)

// testImages is a folder of layouts with one image, tool:1.
func testImages(t testing.TB) (dir, digest string) {
	t.Helper()
	dir = t.TempDir()
	image, err := random.Image(4096, 2)
	if err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(filepath.Join(dir, "tool"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "multipaas.internal/tool:1"})); err != nil {
		t.Fatal(err)
	}
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return dir, d.String()
}

func TestPayloadImages(t *testing.T) {
	dir, digest := testImages(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	rest := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, r.URL.Query().Get("ns"))
	})
	s := httptest.NewServer(route(payloadImages{dir}, rest))
	defer s.Close()

	t.Run("a client pulls", func(t *testing.T) {
		for _, ref := range []string{"tool:1", "tool@" + digest} {
			r, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/multipaas.internal/" + ref)
			if err != nil {
				t.Fatal(err)
			}
			image, err := remote.Image(r)
			if err != nil {
				t.Fatal(err)
			}
			layers, err := image.Layers()
			if err != nil || len(layers) != 2 {
				t.Fatal(len(layers), err)
			}
			for _, l := range layers {
				rc, err := l.Uncompressed()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, rc); err != nil { // checks the digest
					t.Error(err)
				}
				rc.Close()
			}
		}
	})

	hex := strings.TrimPrefix(digest, "sha256:")
	for _, c := range []struct {
		method, path string
		status       int
		body         string // that the answer holds
	}{
		{"GET", "/v2/", 200, "{}"},
		{"GET", "/v2/tool/manifests/1?ns=multipaas.internal", 200, "layers"},
		{"HEAD", "/v2/tool/manifests/1?ns=multipaas.internal", 200, ""},
		{"GET", "/v2/tool/blobs/" + digest + "?ns=multipaas.internal", 200, "layers"},
		{"GET", "/v2/tool/manifests/2?ns=multipaas.internal", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/none/manifests/1?ns=multipaas.internal", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/tool/blobs/sha256:" + strings.Repeat("0", 64) + "?ns=multipaas.internal", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/tool/blobs/sha256:..%2f..%2f..%2fsecret?ns=multipaas.internal", 404, ""},
		{"GET", "/v2/..%2f/blobs/sha256:" + hex + "?ns=multipaas.internal", 404, ""},
		{"GET", "/v2/tool/blobs/secret?ns=multipaas.internal", 400, "DIGEST_INVALID"},
		{"PUT", "/v2/tool/manifests/1?ns=multipaas.internal", 405, "UNSUPPORTED"},
		{"GET", "/v2/library/x/manifests/1?ns=registry.example", 418, "registry.example"},
	} {
		req, err := http.NewRequest(c.method, s.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status || !strings.Contains(string(body), c.body) || strings.Contains(string(body), "secret\n") {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, res.StatusCode, body, c.status, c.body)
		}
	}

	t.Run("a part", func(t *testing.T) {
		req, _ := http.NewRequest("GET", s.URL+"/v2/tool/blobs/"+digest+"?ns=multipaas.internal", nil)
		req.Header.Set("Range", "bytes=0-4")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusPartialContent || len(body) != 5 {
			t.Errorf("%d, %d bytes", res.StatusCode, len(body))
		}
	})
}

// upstreamDNS answers on loopback: a.example is 192.0.2.1, big.example is large.
func upstreamDNS(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skip(err) // somebody has the same port
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		n := 1
		switch q.Question[0].Name {
		case "a.example.":
		case "big.example.":
			n = 200
		default:
			m.Rcode = dns.RcodeNameError
			n = 0
		}
		for range n {
			rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func TestEndpoints(t *testing.T) {
	dir, _ := testImages(t)
	ns := testNamespace(t, "e")
	m := wire.Machine{UID: "u", Name: "shop-1"}
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get(wire.WorkspaceHeader)+" "+r.URL.Query().Get("ns"))
	}))
	t.Cleanup(registry.Close)
	e := New(Config{Images: dir, Transport: registry.Client().Transport, Log: slog.New(slog.DiscardHandler)})
	upstreams := func(servers ...netip.AddrPort) {
		e.SetState(&wire.State{Registry: strings.TrimPrefix(registry.URL, "https://"), UpstreamDNS: servers})
	}
	upstreams()
	t.Cleanup(func() { e.Close(m.UID) })
	for range 2 {
		if err := e.Open(t.Context(), m, "acme/web/shop", ns.Path()); err != nil {
			t.Fatal(err)
		}
	}

	c := &http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}}
	get := func(path string) string {
		t.Helper()
		res, err := c.Get("http://169.254.20.10:5000" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return string(b)
	}
	if got := get("/v2/x/manifests/1?ns=registry.example"); got != "acme/web/shop registry.example" {
		t.Errorf("who asks: %q", got)
	}
	if got := get("/v2/tool/manifests/1?ns=multipaas.internal"); !strings.Contains(got, "layers") {
		t.Errorf("payload's image: %q", got)
	}

	ask := func(network, name string, edns bool) *dns.Msg {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := ns.DialContext(ctx, network, "169.254.20.10:53")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		if edns {
			q.SetEdns0(4096, false)
		}
		a, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 4096}).ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn, UDPSize: 4096})
		if err != nil {
			t.Fatalf("%s %s: %v", network, name, err)
		}
		return a
	}
	began := time.Now()
	if a := ask("udp", "a.example.", true); a.Rcode != dns.RcodeRefused || !strings.Contains(a.String(), "no resolver is configured") {
		t.Errorf("no upstream: %v", a)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("no upstream: it took %v", took)
	}
	good, dead := upstreamDNS(t), netip.MustParseAddrPort("127.0.0.1:1")
	upstreams(dead, good)
	for _, network := range []string{"udp", "tcp"} {
		if a := ask(network, "a.example.", false); len(a.Answer) != 1 {
			t.Errorf("%s: %v", network, a)
		}
		if a := ask(network, "none.example.", false); a.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", network, a)
		}
	}
	if a := ask("udp", "big.example.", false); !a.Truncated || len(a.Answer) == 200 {
		t.Errorf("large answer: truncated %v, %d records", a.Truncated, len(a.Answer))
	}
	if a := ask("tcp", "big.example.", false); len(a.Answer) != 200 {
		t.Errorf("large answer over TCP: %d records", len(a.Answer))
	}
	// The front door's names are answered here, whatever the site's resolvers say.
	door := wire.Door{Names: []string{"*.paas.example", "a.example"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.20")}}
	for _, servers := range [][]netip.AddrPort{nil, {dead}, {good}} {
		e.SetState(&wire.State{UpstreamDNS: servers, Door: door})
		for _, c := range []struct{ network, name, want string }{
			{"udp", "hello.shop.web.acme.paas.example.", "192.0.2.10 192.0.2.20"}, {"tcp", "API.paas.Example.", "192.0.2.10 192.0.2.20"}, {"udp", "a.example.", "192.0.2.10 192.0.2.20"},
		} {
			var got []string
			a := ask(c.network, c.name, c.network == "tcp")
			for _, rr := range a.Answer {
				if r, ok := rr.(*dns.A); ok && rr.Header().Name == c.name && rr.Header().Ttl == doorTTL {
					got = append(got, r.A.String())
				}
			}
			if strings.Join(got, " ") != c.want || a.Rcode != dns.RcodeSuccess {
				t.Errorf("%s with upstreams %v: %v", c.name, servers, a)
			}
		}
	}
	if a := ask("udp", "paas.example.", false); a.Rcode != dns.RcodeNameError { // the site's own
		t.Errorf("the domain itself: %v", a)
	}
	for _, kind := range []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeMX} {
		q := new(dns.Msg)
		q.SetQuestion("api.paas.example.", kind)
		if a := theDoor(q, door.Addresses); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 0 || a.Id != q.Id {
			t.Errorf("%s of the front door: %v", dns.TypeToString[kind], a)
		}
	}
	upstreams(dead)
	if a := ask("udp", "a.example.", false); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("dead upstream: %v", a)
	}

	// A namespace made anew gets listeners anew.
	other := testNamespace(t, "f")
	if err := e.Open(t.Context(), m, "acme/web/shop", other.Path()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get("http://169.254.20.10:5000/v2/"); err == nil {
		t.Error("it still listens in the old namespace")
	}
	e.Close(m.UID)
	e.Close(m.UID)
}

// testNamespace has the link-local address, as the namespace of a machine has.
func testNamespace(t *testing.T, suffix string) *netns.NS {
	t.Helper()
	name := fmt.Sprintf("mptest-linklocal-%d-%s", os.Getpid(), suffix)
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr(wire.LinkLocal.String() + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.AddrAdd(lo, address), h.LinkSetUp(lo)); err != nil {
		t.Fatal(err)
	}
	return ns
}
