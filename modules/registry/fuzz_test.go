package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/wire"
)

// fuzzed is a registry that is asked without a network, a token for
// acme/web/x and the certificate of node1, which runs acme/web/shop.
func fuzzed(f *testing.F, change func(*Config)) (p *platform, r *Registry, token string, node *tls.ConnectionState) {
	f.Helper()
	p = newPlatform(f)
	logs.Redirect(slog.New(slog.DiscardHandler)) // distribution logs each request, twice
	began := time.Now()                          // and stays: the token must not expire while the fuzzer runs
	r, _ = start(f, p, func(c *Config) {
		c.Log = nil
		c.Tokens.Now = func() time.Time { return began }
		if change != nil {
			change(c)
		}
	})
	cert := p.certificate(f, pki.Request{CommonName: "node1", Organizations: []string{wire.NodesOrganization}, Client: true})
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		f.Fatal(err)
	}
	return p, r, p.scope("acme/web/x", "pull", "push", "delete"), &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
}

// ask sends r a request; one that the server cuts off has status 0.
func ask(r *Registry, req *http.Request) (w *httptest.ResponseRecorder) {
	w = httptest.NewRecorder()
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			w.Code = 0
		} else if v != nil {
			panic(v)
		}
	}()
	r.ServeHTTP(w, req)
	return w
}

// FuzzManifest pushes any bytes as a manifest, an index or an image's config:
// what is taken comes back under its digest as it was, and everything that reads
// images goes on working.
func FuzzManifest(f *testing.F) {
	_, r, token, _ := fuzzed(f, func(c *Config) { c.Grace = time.Nanosecond })
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	upload := func(t testing.TB, content []byte) string {
		t.Helper()
		d := digest.FromBytes(content).String()
		req := httptest.NewRequest("POST", "/v2/acme/web/x/blobs/uploads/?digest="+d, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		w := ask(r, req)
		where := w.Header().Get("Location")
		if w.Code != http.StatusAccepted || where == "" {
			t.Fatalf("begin upload: %d %s", w.Code, w.Body)
		}
		req = httptest.NewRequest("PUT", where+"&digest="+d, bytes.NewReader(content))
		req.Header.Set("Authorization", "Bearer "+token)
		if w = ask(r, req); w.Code != http.StatusCreated {
			t.Fatalf("upload: %d %s", w.Code, w.Body)
		}
		return d
	}
	const image = "application/vnd.oci.image.manifest.v1+json"
	const index = "application/vnd.oci.image.index.v1+json"
	whole := `{"schemaVersion":2,"mediaType":"` + image + `","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@","size":#},"layers":[]}`
	f.Add([]byte(whole), image, "1", config)
	f.Add([]byte(strings.Replace(whole, "#", "-1", 1)), image, "latest", config)
	f.Add([]byte(whole), "application/vnd.docker.distribution.manifest.v2+json", "1", []byte(`{"rootfs":null,"config":7}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+index+`","manifests":[{"mediaType":"`+image+`","digest":"@","size":#,"platform":{"os":"linux","architecture":"amd64"}}]}`), index, "1", config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), index, "sha256:"+strings.Repeat("0", 64), []byte("{}"))
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"digest":"../../x"}],"config":{"digest":"md5:x"}}`), image, "a..b", []byte("[]"))
	f.Add([]byte(`{"schemaVersion":1,"subject":5,"manifests":[]}`), index, "1", config)
	f.Add([]byte(`{"schemaVersion":"2","layers":{}}`), image, "1", config)
	f.Add([]byte(strings.Repeat("[", 10000)), "application/json", "1", config)
	f.Fuzz(func(t *testing.T, body []byte, mediaType, ref string, config []byte) {
		if strings.ContainsAny(ref, "/?#%\\") || ref == "" || len(config) > 1<<20 {
			return
		}
		d := upload(t, config)
		body = bytes.ReplaceAll(bytes.ReplaceAll(body, []byte("@"), []byte(d)), []byte("#"), fmt.Append(nil, len(config)))
		request := func(method, ref string, content io.Reader) *httptest.ResponseRecorder {
			req, err := http.NewRequestWithContext(t.Context(), method, "/", content)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Path = "/v2/acme/web/x/manifests/" + ref
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header["Accept"] = manifestTypes
			req.Header.Set("Content-Type", mediaType)
			return ask(r, req)
		}
		w := request("PUT", ref, bytes.NewReader(body))
		if w.Code >= 500 || w.Code == 0 {
			t.Errorf("push %q %q: %d %s", mediaType, body, w.Code, w.Body)
		}
		if w.Code < 300 {
			if got := request("GET", digest.FromBytes(body).String(), nil); got.Code == http.StatusOK && !bytes.Equal(got.Body.Bytes(), body) {
				t.Errorf("pushed %q, got %q", body, got.Body)
			} else if got.Code >= 500 {
				t.Errorf("get %q: %d %s", body, got.Code, got.Body)
			}
		}
		if _, err := r.List(t.Context(), "acme", "web"); err != nil {
			t.Errorf("list: %v", err)
		}
		if _, err := r.Collect(t.Context()); err != nil && !errors.Is(err, ErrBusy) {
			t.Errorf("after a push of %q no garbage can be collected: %v", body, err)
		}
		if err := r.RemoveAll(t.Context(), "acme", "web"); err != nil {
			t.Errorf("after a push of %q the organization's images can't be removed: %v", body, err)
		}
		if left, err := r.List(t.Context(), "acme", "web"); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// FuzzRegistryRequest asks for anything as nobody, as a user and as a node: none gets at
// what is not his, however the path is written.
func FuzzRegistryRequest(f *testing.F) {
	p, r, token, node := fuzzed(f, nil)
	_ = p
	for _, path := range []string{
		"/v2/", "/v2/_catalog?n=5", "/v2/acme/web/x/tags/list", "/v2/umbrella/lab/y/tags/list", "/v2/acme/web/x/../../../umbrella/lab/y/manifests/1",
		"/v2/acme/web/x/blobs/uploads/?from=umbrella/lab/y&mount=sha256:" + strings.Repeat("0", 64), "/v2/acme%2fweb/x/manifests/1", "//v2/acme/web/x/manifests/1",
		"/v2/acme/web/x/manifests/1?ns=docker.io", "/v2/umbrella/lab/y/manifests/1?ns=REGISTRY.example:5000", "/v2/acme/web/x/blobs/uploads/" + strings.Repeat("a", 36) + "?_state=x",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			f.Add(method, path, byte(len(path)), "acme/web/shop", "")
		}
	}
	f.Add("POST", "/v2/acme/web/x/blobs/uploads/", byte(1), "", "from=umbrella/lab/y")
	f.Fuzz(func(t *testing.T, method, path string, who byte, workspace, body string) {
		if !strings.HasPrefix(path, "/") {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "https://registry.example:5000"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set(wire.WorkspaceHeader, workspace)
		switch who % 3 {
		case 1:
			req.Header.Set("Authorization", "Bearer "+token)
		case 2:
			req.TLS = node
		}
		target, known := r.parse(req)
		w := ask(r, req)
		if w.Code >= 500 {
			t.Errorf("%s %q as %d: %d %s", method, path, who%3, w.Code, w.Body)
		}
		if w.Code >= 400 || w.Code == 0 {
			return
		}
		switch {
		case !known:
			t.Errorf("%s %q: %d for what is no request", method, path, w.Code)
		case who%3 == 0:
			t.Errorf("%s %q: %d for nobody", method, path, w.Code)
		case who%3 == 1 && target.repository != "" && target.repository != "acme/web/x":
			t.Errorf("%s %q: %d, and the token is for acme/web/x", method, path, w.Code)
		case who%3 == 2 && (workspace != "acme/web/shop" || target.action != pull || !strings.HasPrefix(target.repository+"/", "acme/web/") && target.repository != ""):
			t.Errorf("%s %q: %d for a node that runs acme/web/shop, as %q", method, path, w.Code, workspace)
		}
	})
}

// FuzzUpstream has an upstream answer anything, byte for byte: no machine gets
// content under a digest that is another's, and the cache keeps none.
func FuzzUpstream(f *testing.F) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	var say atomic.Pointer[[]byte]
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 8<<10)
				// Whatever is asked, by a client that we know to ask in one piece.
				if n, err := c.Read(buf); err != nil || n == 0 {
					return
				}
				if text := say.Load(); text != nil {
					_, _ = c.Write(*text)
				}
			}()
		}
	}()
	_, r, _, node := fuzzed(f, func(c *Config) {
		c.Upstreams = []Upstream{{Name: "up.example", URL: "http://" + ln.Addr().String(), Username: "u", Password: "p"}}
	})
	up := r.upstreams["up.example"]
	// Whichever host an answer sends us to, it is this one: names are not asked
	// for, and nothing leaves the machine.
	up.session.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
	content := "the content"
	d := digest.FromString(content)
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 11\r\nDocker-Content-Digest: "+d.String()+"\r\nContent-Type: application/json\r\n\r\n"+content), "manifests/1")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nthe Content"), "blobs/"+d.String())
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"+content), "blobs/"+d.String())
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n"+content+"\r\n0\r\n\r\n"), "manifests/"+d.String())
	f.Add([]byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=\"http://"+ln.Addr().String()+"/\",service=x\r\n\r\n"), "manifests/1")
	f.Add([]byte("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"), "manifests/1")
	f.Add([]byte("HTTP/1.1 307 Temporary Redirect\r\nLocation: /v2/\r\nContent-Length: 0\r\n\r\n"), "blobs/"+d.String())
	f.Add([]byte("HTTP/1.1 200 OK\r\nDocker-Content-Digest: sha512:"+strings.Repeat("a", 128)+"\r\n\r\n"), "manifests/x")
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/0.9 999"), "manifests/x")
	f.Fuzz(func(t *testing.T, answer []byte, what string) {
		say.Store(&answer)
		up.forgive()
		if err := up.cache.empty(); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://registry.example:5000/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path, req.URL.RawQuery = "/v2/library/x/"+what, "ns=up.example"
		req.TLS = node
		req.Header.Set(wire.WorkspaceHeader, "acme/web/shop")
		began := time.Now()
		w := ask(r, req)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%q: answered after %v", answer, took)
		}
		if w.Code >= 500 && w.Code != http.StatusBadGateway {
			t.Errorf("%q: %d %s", answer, w.Code, w.Body)
		}
		if w.Code != http.StatusOK {
			return
		}
		_, ref, _ := strings.Cut(what, "/")
		if want, err := digest.Parse(ref); err == nil && want.Algorithm().FromBytes(w.Body.Bytes()) != want {
			t.Errorf("%q: got %q for %s", answer, w.Body, want)
		}
		said := digest.Digest(w.Header().Get("Docker-Content-Digest"))
		if said.Validate() != nil || said != said.Algorithm().FromBytes(w.Body.Bytes()) {
			t.Errorf("%q: %q is said to be %s", answer, w.Body, said)
		}
	})
}

// FuzzRegistryToken changes a good token: another one is never believed.
func FuzzRegistryToken(f *testing.F) {
	p := newPlatform(f)
	began := time.Now()
	tokens := Tokens{Service: "test-service", Issuer: "test-issuer", Keys: p.keys, Now: func() time.Time { return began }}
	good := p.scope("acme/web/x", "pull")
	f.Add(uint16(0), uint16(0), "")
	f.Add(uint16(30), uint16(1), "A")
	f.Add(uint16(0), uint16(9999), "eyJhbGciOiJub25lIn0.eyJhY2Nlc3MiOltdfQ.")
	f.Add(uint16(0), uint16(9999), `{"payload":"","signatures":[{}]}`)
	f.Add(uint16(40), uint16(0), ".")
	f.Fuzz(func(t *testing.T, at, drop uint16, text string) {
		begin := int(at) % (len(good) + 1)
		raw := good[:begin] + text + good[min(begin+int(drop), len(good)):]
		c, err := tokens.verify(t.Context(), raw)
		if err == nil && (!c.allow("repository", "acme/web/x", "pull") || len(c.Access) != 1 || c.Subject != "ann") {
			t.Errorf("%q is believed: %+v", raw, c)
		}
		if err != nil && raw == good {
			t.Errorf("the token is refused: %v", err)
		}
	})
}
