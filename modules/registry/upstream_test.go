package registry

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/testing/parttest"
)

// proxied starts a registry whose upstream is another one, with TLS by an
// authority of its own and a password.
func proxied(t *testing.T) (p, up *platform, r *Registry, host string, upstream string, stopUpstream func()) {
	t.Helper()
	up, p = newPlatform(t), newPlatform(t)
	other, err := New(Config{Addr: "127.0.0.1:0", Dir: t.TempDir(), TLS: up.tls(t), NodeRuns: up.Runs, HasOrganization: up.Exists, MinFreeBytes: 1,
		Tokens: Tokens{Issue: http.HandlerFunc(up.token), Service: "test-service", Issuer: "test-issuer", Keys: up.keys}})
	if err != nil {
		t.Fatal(err)
	}
	stopUpstream = parttest.Run(t, other.Run)
	t.Cleanup(stopUpstream)
	upstream = other.addr.String()
	r, host = start(t, p, func(c *Config) {
		c.Upstreams = []Upstream{
			{Name: "docker.example", URL: "https://" + upstream, CA: up.ca.CertPEM(), Username: "ann", Password: "secret"},
			{Name: "stranger.example", URL: "https://" + upstream, CA: up.ca.CertPEM(), Username: "ann", Password: "wrong"},
			{Name: "untrusted.example", URL: "https://" + upstream, CA: p.ca.CertPEM()},
		}
	})
	return p, up, r, host, upstream, stopUpstream
}

func TestPullThrough(t *testing.T) {
	p, up, r, host, upstream, stopUpstream := proxied(t)
	img := push1(t, up, upstream, "ann", "acme/web/nginx:1", 2)
	push1(t, up, upstream, "ann", "acme/web/other:1", 1)
	dgst, layers := digestOf(t, img), layersOf(t, img)
	node := asNode(t, p, host, "node1", "acme/web/shop")
	const ns = "?ns=docker.example"

	status, header, _ := node.do("HEAD", "/v2/acme/web/nginx/manifests/1"+ns, nil)
	if status != 200 || header.Get("Docker-Content-Digest") != dgst {
		t.Errorf("HEAD: got %d %s, want 200 %s", status, header.Get("Docker-Content-Digest"), dgst)
	}
	node.want(200, layers[0], "GET", "/v2/acme/web/nginx/manifests/"+dgst+ns)
	var wg sync.WaitGroup
	for range 8 { // several machines at once
		for _, l := range layers {
			wg.Go(func() {
				status, header, body := node.do("GET", "/v2/acme/web/nginx/blobs/"+l+ns, nil)
				if got := digest.FromString(body).String(); status != 200 || got != l || header.Get("Docker-Content-Digest") != l {
					t.Errorf("blob: got %d with %s, want %s", status, got, l)
				}
			})
		}
	}
	wg.Wait()
	if _, _, body := node.do("GET", "/v2/acme/web/nginx/blobs/"+layers[0]+ns, nil, "Range", "bytes=0-9"); len(body) != 10 {
		t.Errorf("range: got %d bytes, want 10", len(body))
	}
	node.want(404, "no such image", "GET", "/v2/acme/web/nginx/manifests/none"+ns)
	node.want(405, "only be pulled", "POST", "/v2/acme/web/nginx/blobs/uploads/"+ns)
	node.want(404, "not listed", "GET", "/v2/acme/web/nginx/tags/list"+ns)
	node.want(404, "user name and password", "GET", "/v2/acme/web/nginx/manifests/1?ns=stranger.example")
	node.want(502, "does not answer", "GET", "/v2/acme/web/nginx/manifests/1?ns=untrusted.example")
	asUser(t, p, host, p.scope("acme/web/nginx", "pull")).want(403, "only machines", "GET", "/v2/acme/web/nginx/manifests/1"+ns)

	stopUpstream()
	node.want(200, layers[1], "GET", "/v2/acme/web/nginx/manifests/1"+ns)
	node.want(200, "", "GET", "/v2/acme/web/nginx/blobs/"+layers[1]+ns)
	begin := time.Now()
	node.want(502, "docker.example does not answer", "GET", "/v2/acme/web/other/manifests/1"+ns)
	node.want(502, "docker.example does not answer", "GET", "/v2/acme/web/other/blobs/"+digest.FromString("nobody has this").String()+ns)
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("an upstream that is down: answered after %v", took)
	}
	if files := r.upstreams["docker.example"].cache.trim(); files != 0 {
		t.Errorf("trim with a disk that is not full removed %d files", files)
	}
}

func TestUpstreamThatSwallows(t *testing.T) {
	p := newPlatform(t)
	hole, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	_, host := start(t, p, func(c *Config) {
		c.Upstreams = []Upstream{{Name: "hole.example", URL: "https://" + hole.Addr().String()}}
	})
	node := asNode(t, p, host, "node1", "acme/web/shop")
	begin := time.Now()
	node.want(502, "hole.example does not answer", "GET", "/v2/library/nginx/manifests/1?ns=hole.example")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("answered after %v, want about %v", took, upstreamDial)
	}
	begin = time.Now()
	node.want(502, "hole.example does not answer", "GET", "/v2/library/nginx/manifests/2?ns=hole.example")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the second time: answered after %v, want at once", took)
	}
}

// TestBrokenDownload: what the upstream garbles or breaks off reaches neither
// the client as a whole nor the cache.
func TestBrokenDownload(t *testing.T) {
	p := newPlatform(t)
	content := strings.Repeat("x", 1<<20)
	d := digest.FromString(content).String()
	var mu sync.Mutex
	send := content[:len(content)-1] + "y"
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) })
	mux.HandleFunc("/v2/a/b/blobs/"+d, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Content-Length", "1048576")
		io.WriteString(w, send)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	defer srv.Close()
	r, host := start(t, p, func(c *Config) {
		c.Upstreams = []Upstream{{Name: "up.example", URL: "http://" + ln.Addr().String()}}
	})
	node := asNode(t, p, host, "node1", "acme/web/shop")
	get := func() (string, error) {
		req, err := http.NewRequest("GET", "https://"+host+"/v2/a/b/blobs/"+d+"?ns=up.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = node.header
		resp, err := node.client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if _, err := get(); err == nil {
		t.Error("a garbled blob: got all of it, want a broken connection")
	}
	mu.Lock()
	send = content[:1000]
	mu.Unlock()
	if _, err := get(); err == nil {
		t.Error("half a blob: got all of it, want a broken connection")
	}
	mu.Lock()
	send = content
	mu.Unlock()
	r.upstreams["up.example"].forgive()
	if got, err := get(); err != nil || got != content {
		t.Errorf("a good blob: got %d bytes, %v", len(got), err)
	}
}

func TestBadUpstreams(t *testing.T) {
	_, err := New(Config{Dir: t.TempDir(), Names: []string{"own.example"}, Upstreams: []Upstream{
		{Name: ""}, {Name: "a.example", URL: "ftp://x"}, {Name: "b.example", CA: []byte("x")}, {Name: "own.example"},
	}})
	for _, want := range []string{"upstreams[0]", "upstreams[1]", "upstreams[2]: ca", "upstreams[3]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: got %v, want %s in it", err, want)
		}
	}
}

// forgive has the upstream asked at once.
func (u *upstream) forgive() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failed = time.Time{}
}

// empty forgets all that came from the upstream.
func (c *cache) empty() error {
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	return c.open()
}

// TestDockerHub: what people call docker.io answers elsewhere, and has its own
// images below library/.
func TestDockerHub(t *testing.T) {
	for written, want := range map[string]string{
		"":                               "https registry-1.docker.io ",
		"https://docker.io":              "https registry-1.docker.io ",
		"https://index.docker.io/v1/":    "https registry-1.docker.io ",
		"https://registry-1.docker.io":   "https registry-1.docker.io ",
		"http://mirror.example:5000/hub": "http mirror.example:5000 hub",
	} {
		u, err := newUpstream(Upstream{Name: "docker.io", URL: written}, t.TempDir(), disk{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got := u.scheme + " " + u.host + " " + u.prefix; got != want {
			t.Errorf("url %q: asks %q, want %q", written, got, want)
		}
	}
	asked := make(chan string, 9)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		http.NotFound(w, r)
	}))
	defer hub.Close()
	p := newPlatform(t)
	_, host := start(t, p, func(c *Config) {
		c.Upstreams = []Upstream{{Name: "docker.io", URL: hub.URL}, {Name: "other.example", URL: hub.URL}}
	})
	node := asNode(t, p, host, "node1", "acme/web/shop")
	for _, c := range [][3]string{
		{"nginx", "docker.io", "library/nginx"},
		{"library/nginx", "docker.io", "library/nginx"},
		{"grafana/grafana", "docker.io", "grafana/grafana"},
		{"nginx", "other.example", "nginx"},
	} {
		node.want(404, "no such image", "GET", "/v2/"+c[0]+"/manifests/1?ns="+c[1])
		if got, want := <-asked, "/v2/"+c[2]+"/manifests/1"; got != want {
			t.Errorf("%s of %s: asked for %s, want %s", c[0], c[1], got, want)
		}
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"ca": "PEM", "password": "secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := UpstreamSettings{Name: "docker.io", CAFile: dir + "/ca", Username: "ann", PasswordFile: dir + "/password"}
	s.Check(func(field, value, wrong, _ string) { t.Errorf("%s: %q: %s", field, value, wrong) })
	u, err := s.Open()
	if err != nil || string(u.CA) != "PEM" || u.Password != "secret" || u.Username != "ann" {
		t.Errorf("got %+v, %v", u, err)
	}
	s.PasswordFile = dir + "/none"
	if _, err := s.Open(); err == nil || !strings.Contains(err.Error(), "registry upstream docker.io") {
		t.Errorf("a file that is not there: got %v", err)
	}
	for _, name := range []string{"", "Docker.io", "docker.io/library", "bad name", "https://docker.io", "host:port"} {
		said := false
		UpstreamSettings{Name: name}.Check(func(field, _, _, _ string) { said = said || field == "name" })
		if !said {
			t.Errorf("name %q: taken", name)
		}
	}
}
