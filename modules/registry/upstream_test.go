package registry

import (
	"fmt"
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
	"github.com/multipaas/multipaas/testing/wait"
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
	clear(u.no)
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
		u, err := newUpstream(Upstream{Name: "docker.io", URL: written}, t.TempDir(), disk{}, 1, slog.New(slog.DiscardHandler))
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
	for i, c := range [][3]string{
		{"nginx", "docker.io", "library/nginx"},
		{"library/nginx", "docker.io", "library/nginx"},
		{"grafana/grafana", "docker.io", "grafana/grafana"},
		{"nginx", "other.example", "nginx"},
	} {
		tag := fmt.Sprint(i) // that it has none is remembered
		node.want(404, "no such image", "GET", "/v2/"+c[0]+"/manifests/"+tag+"?ns="+c[1])
		if got, want := <-asked, "/v2/"+c[2]+"/manifests/"+tag; got != want {
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

// fakeUpstream answers /v2/STATUS/... with that status, /v2/large/... with a manifest that is too
// large, and /v2/good/... with a manifest or a blob of which the digest is known.
type fakeUpstream struct {
	*httptest.Server
	mu      sync.Mutex
	asked   map[string]int
	content map[string]string // by digest
	hold    chan struct{}     // blobs of /v2/slow/... come when it is closed
}

func newFakeUpstream(t *testing.T) *fakeUpstream {
	f := &fakeUpstream{asked: map[string]int{}, content: map[string]string{}, hold: make(chan struct{})}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		f.mu.Lock()
		f.asked[parts[0]]++
		content, ok := f.content[parts[len(parts)-1]]
		f.mu.Unlock()
		var status int
		if n, _ := fmt.Sscan(parts[0], &status); n == 1 {
			w.WriteHeader(status)
			return
		}
		switch {
		case parts[0] == "large":
			_, _ = io.WriteString(w, strings.Repeat("x", maxManifest+1))
		case parts[len(parts)-2] == "manifests":
			w.Header().Set("Content-Type", manifestTypes[1])
			_, _ = io.WriteString(w, `{"schemaVersion":2,"of":"`+r.URL.Path+`"}`)
		case ok:
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			if parts[0] == "slow" {
				w.(http.Flusher).Flush()
				<-f.hold
			}
			_, _ = io.WriteString(w, content)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeUpstream) blob(content string) string {
	d := digest.FromString(content).String()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.content[d] = content
	return d
}

func (f *fakeUpstream) times(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[name]
}

// TestOneTenantCannotSwitchAnUpstreamOff: whatever names a machine asks for, others get
// their images.
func TestOneTenantCannotSwitchAnUpstreamOff(t *testing.T) {
	p := newPlatform(t)
	f := newFakeUpstream(t)
	r, host := start(t, p, func(c *Config) { c.Upstreams = []Upstream{{Name: "up.example", URL: f.URL}} })
	acme, umbrella := asNode(t, p, host, "node1", "acme/web/shop"), asNode(t, p, host, "node2", "umbrella/lab/virus")
	const ns = "?ns=up.example"
	for _, name := range []string{"400", "402", "404", "405", "406", "409", "410", "414", "418", "421", "423", "425", "429", "431", "451", "401", "403", "500", "501", "502", "503", "504", "508", "511", "599", "302", "204", "206", "large"} {
		for i := range 4 {
			status, _, body := umbrella.do("GET", fmt.Sprintf("/v2/%s/x%d/manifests/1%s", name, i, ns), nil)
			if status < 400 || status == 500 {
				t.Errorf("%s: %d %s", name, status, body)
			}
			if name < "5" && name != "302" && name != "204" && name != "206" && status >= 500 {
				t.Errorf("%s, which is the client's fault: %d %s", name, status, body)
			}
		}
		acme.want(200, `"of":"/v2/good/x`, "GET", "/v2/good/x"+name+"/manifests/1"+ns)
	}
	// What it refused is not asked for again at once.
	umbrella.want(404, "no such image", "GET", "/v2/404/x1/manifests/1"+ns) // the first was long ago
	before := f.times("404")
	for range 5 {
		umbrella.want(404, "no such image", "GET", "/v2/404/x1/manifests/1"+ns)
	}
	if got := f.times("404"); got != before {
		t.Errorf("asked for %d times again", got-before)
	}
	// When it fails for several tenants it is away, and is not asked.
	r.upstreams["up.example"].forgive()
	for i := range 2 {
		umbrella.want(502, "does not answer", "GET", fmt.Sprintf("/v2/500/y%d/manifests/1%s", i, ns))
	}
	acme.want(502, "does not answer", "GET", "/v2/500/z/manifests/1"+ns)
	before = f.times("good")
	acme.want(502, "does not answer", "GET", "/v2/good/never/manifests/1"+ns)
	if f.times("good") != before {
		t.Error("asked though it is away")
	}
}

// TestUpstreamShares: neither an account's downloads nor what it has cached is in the way
// of another.
func TestUpstreamShares(t *testing.T) {
	p := newPlatform(t)
	f := newFakeUpstream(t)
	r, host := start(t, p, func(c *Config) { c.Upstreams = []Upstream{{Name: "up.example", URL: f.URL}} })
	acme, umbrella := asNode(t, p, host, "node1", "acme/web/shop"), asNode(t, p, host, "node2", "umbrella/lab/virus")
	const ns = "?ns=up.example"
	c := r.upstreams["up.example"].cache
	c.mu.Lock()
	c.limit, c.share = 8*cacheFloor, 4*cacheFloor
	c.mu.Unlock()
	get := func(a *asker, repository, content string) {
		t.Helper()
		a.want(200, content, "GET", "/v2/"+repository+"/x/blobs/"+f.blob(content)+ns)
	}
	there := func(content string) bool { return exists(c.blob(digest.FromString(content))) }
	get(acme, "good", "of acme")
	for i := range 20 {
		get(umbrella, "good", fmt.Sprint("of umbrella, ", i))
	}
	for content, want := range map[string]bool{"of acme": true, "of umbrella, 3": false, "of umbrella, 16": true, "of umbrella, 19": true} {
		if there(content) != want {
			t.Errorf("%q is there: %v, want %v", content, !want, want)
		}
	}
	large := strings.Repeat("x", 5*cacheFloor)
	umbrella.want(403, "MiB cached", "GET", "/v2/good/x/blobs/"+f.blob(large)+ns)
	// It is known for whom a file is here also after a restart.
	again := newCache(c.dir, disk{dir: c.dir}, 1, c.log)
	if err := again.open(); err != nil {
		t.Fatal(err)
	}
	if got := again.owner("umbrella").bytes; got != 4*cacheFloor || again.owner("acme").bytes != cacheFloor || again.total != 5*cacheFloor {
		t.Errorf("after a restart: %d of umbrella, %d of acme, %d in all", got, again.owner("acme").bytes, again.total)
	}
	// An account without an image goes on to have what it has cached.
	if err := r.RemoveAll(t.Context(), "umbrella", "lab"); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(c.dir, "owners", "umbrella")) || c.owners["umbrella"] == nil {
		t.Error("umbrella is there still, and what it has cached counts for nobody")
	}
	// Who has the name of an account that is no more begins anew.
	r.cfg.AccountUID = func(name string) string { return "2nd " + name }
	get(umbrella, "good", "of another umbrella")
	c.mu.Lock()
	if next, last := c.owner("2nd umbrella"), c.owner("umbrella"); next.bytes != cacheFloor || last.bytes != 4*cacheFloor || c.total != 6*cacheFloor {
		t.Errorf("the next one of its name has %d, the last one %d of %d", next.bytes, last.bytes, c.total)
	}
	c.mu.Unlock()
	// A disk that is nearly full is made room on, from who has most.
	c.mu.Lock()
	c.disk.floor = 1 << 62
	c.mu.Unlock()
	if n := c.trim(); n != 6 {
		t.Errorf("trimmed %d files, want all 6", n)
	}
	umbrella.want(403, "nearly full", "GET", "/v2/good/x/blobs/"+f.blob("one more")+ns)
	c.mu.Lock()
	c.disk.floor, c.share, c.limit = 1, 64*cacheFloor, 128*cacheFloor
	c.mu.Unlock()

	// Downloads that stand still.
	var wg sync.WaitGroup
	for i := range upstreamShare {
		content := fmt.Sprint("slow ", i)
		d := f.blob(content)
		wg.Go(func() {
			if status, _, body := umbrella.do("GET", "/v2/slow/x/blobs/"+d+ns, nil); status != 200 || body != content {
				t.Errorf("a slow blob: %d %s", status, body)
			}
		})
	}
	wait.True(t, wait.Patience, "the account has its share", func() bool { return f.times("slow") == upstreamShare })
	get(acme, "good", "while another downloads")
	close(f.hold)
	wg.Wait()
}
