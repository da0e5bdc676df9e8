package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/testpki"
	"github.com/multipaas/multipaas/testing/wait"
)

const domain = "apps.example"

// site is what the balancer finds around it.
type site struct {
	t     *testing.T
	ca    *pki.CA
	etcd  *storetest.Etcd
	store *store.Store
	dir   string
	port  string // of all pods: they differ by address

	mu    sync.Mutex
	kube  map[string]*kubeAPI
	signs atomic.Int32
	age   atomic.Int64 // of the certificates it signs, in nanoseconds
	holds string       // hosts that end so are not signed
}

func newSite(t *testing.T) *site {
	t.Helper()
	etcd := storetest.Start(t)
	return &site{t: t, ca: testpki.New(t), etcd: etcd, store: store.New(etcd.Client), dir: t.TempDir(), port: freePort(t), kube: map[string]*kubeAPI{}}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func (s *site) Sign(ctx context.Context, csr []byte, hosts []string) ([]byte, error) {
	s.signs.Add(1)
	if s.holds != "" && strings.HasSuffix(hosts[0], s.holds) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ca := *s.ca
	ca.Now = func() time.Time { return time.Now().Add(-time.Duration(s.age.Load())) }
	return ca.Sign(csr, pki.Request{CommonName: hosts[0], Hosts: hosts, Server: true})
}

func (s *site) Client(_ context.Context, workspace string) (kubernetes.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kube[workspace]
	if k == nil {
		return nil, errors.New("no plane")
	}
	return k.client()
}

func (s *site) Dialer(string) (func(context.Context, string, string) (net.Conn, error), error) {
	return (&net.Dialer{}).DialContext, nil
}

func (s *site) workspace(name string) *kubeAPI {
	k := newKubeAPI(s.t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kube[name] = k
	return k
}

// balancer runs one on s.
func (s *site) balancer() (b *Balancer, stop func()) {
	s.t.Helper()
	b = s.newBalancer()
	return b, parttest.Run(s.t, b.Run)
}

func (s *site) newBalancer() *Balancer {
	return New(Config{HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0", Dir: s.dir, Domain: domain, Store: s.store, Etcd: s.etcd.Client,
		Signer: s, Workspaces: s, Pods: netip.MustParsePrefix("127.0.0.0/8"), Log: slog.New(slog.NewTextHandler(s.t.Output(), nil))})
}

// pod serves h at an address of its own until stop is called.
func (s *site) pod(address string, h http.Handler) (stop func()) {
	s.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, s.port))
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(ln)
	stop = sync.OnceFunc(func() { srv.Close() })
	s.t.Cleanup(stop)
	return stop
}

func says(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, _ := io.Copy(io.Discard, r.Body); n > 0 {
			fmt.Fprintf(w, "%s %d", name, n)
			return
		}
		io.WriteString(w, name)
	})
}

func (s *site) route(host, workspace, service string) {
	s.t.Helper()
	r := &resource.Route{Meta: resource.Meta{Name: host}, Workspace: workspace, Namespace: "default", Service: service}
	fmt.Sscan(s.port, &r.Port)
	if err := store.Of[resource.Route](s.store).Create(s.t.Context(), r); err != nil {
		s.t.Fatal(err)
	}
}

// condition waits until the balancer has said something about a route.
func (s *site) condition(host string, status resource.ConditionStatus) *resource.Condition {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for e := range store.Of[resource.Route](s.store).WatchKey(ctx, host) {
		if e.Type == store.Put {
			if c := e.Object.Status.Conditions.Get(resource.RouteReady); c != nil && c.Status == status {
				return c
			}
		}
	}
	s.t.Fatalf("%s: Ready does not become %s", host, status)
	return nil
}

// ready makes a route to pods and waits until it is served.
func (s *site) ready(b *Balancer, host, workspace, service string) {
	s.t.Helper()
	s.route(host, workspace, service)
	s.condition(host, resource.True)
	wait.True(s.t, wait.Patience, host+" has pods", func() bool {
		p := b.table.lookup(host)
		return p != nil && len(*p.backends.Load()) > 0
	})
}

// browser is a client that finds every host at the balancer.
func (s *site) browser(b *Balancer, http2 bool) *http.Client {
	t := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool()}, ForceAttemptHTTP2: http2, Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := b.HTTPSAddr().String()
			if strings.HasSuffix(addr, ":80") {
				to = b.HTTPAddr().String()
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

const (
	hello = "hello.shop.web.acme." + domain
	shop  = "acme/web/shop"
)

func TestRoute(t *testing.T) {
	s := newSite(t)
	k := s.workspace(shop)
	k.set("default", "hello", pods("127.0.0.2", "127.0.0.3")...)
	k.set("other", "hello", pods("127.0.0.9")...) // the same name in another namespace
	var seen atomic.Pointer[http.Request]
	for _, a := range []string{"127.0.0.2", "127.0.0.3"} {
		s.pod(a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen.Store(r); io.WriteString(w, a) }))
	}
	b, _ := s.balancer()
	s.ready(b, hello, shop, "hello")

	for _, http2 := range []bool{false, true} {
		c := s.browser(b, http2)
		count := map[string]int{}
		for range 20 {
			req, err := http.NewRequest("GET", "https://"+hello+"/path%2Fx?q=1;2&%zz", nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range forged {
				req.Header[h] = []string{"evil"}
			}
			req.Header.Set("Connection", "X-Hop")
			req.Header.Set("X-Hop", "1")
			if http2 {
				req.Header.Del("Connection")
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 || (resp.ProtoMajor == 2) != http2 {
				t.Fatalf("got %s %s %s", resp.Proto, resp.Status, body)
			}
			count[string(body)]++
		}
		if count["127.0.0.2"] < 5 || count["127.0.0.3"] < 5 {
			t.Errorf("20 requests reached %v, want both pods", count)
		}
		r := seen.Load()
		for h, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": hello,
			"X-Forwarded-Port": "", "Forwarded": "", "X-Real-Ip": ""} {
			if got := r.Header.Get(h); got != want {
				t.Errorf("%s: got %q, want %q", h, got, want)
			}
		}
		for key, values := range r.Header {
			if slices.Contains(values, "evil") {
				t.Errorf("the pod is told %s", key)
			}
		}
		if r.Host != hello || r.RequestURI != "/path%2Fx?q=1;2&%zz" || (!http2 && r.Header.Get("X-Hop") != "") {
			t.Errorf("the pod got %s %s %v", r.Host, r.RequestURI, r.Header)
		}
	}

	c := s.browser(b, false)
	resp, err := c.Post("http://"+hello+"/a?b=c", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, port, _ := net.SplitHostPort(b.HTTPSAddr().String())
	if want := "https://" + hello + ":" + port + "/a?b=c"; resp.StatusCode != 308 || resp.Header.Get("Location") != want {
		t.Errorf("plain HTTP: got %s to %s, want 308 to %s", resp.Status, resp.Header.Get("Location"), want)
	}
	for _, host := range []string{"none." + domain, "127.0.0.1", "evil.example"} {
		if status, body := get(t, c, "http://"+host+":80/"); status != 404 || !strings.Contains(body, "Nothing answers") {
			t.Errorf("plain HTTP for %s: got %d %s, want 404", host, status, body)
		}
		if _, err := c.Get("https://" + host + "/"); err == nil || host != "127.0.0.1" && !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("HTTPS for %s: got %v, want the alert unrecognized name", host, err)
		}
	}
	// A connection for one host is not one for another.
	req, _ := http.NewRequest("GET", "https://"+hello+"/", nil)
	req.Host = "other." + domain
	resp, err = c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 421 {
		t.Errorf("Host that is not the SNI: got %s, want 421", resp.Status)
	}

	// The route goes, and everything of it.
	files := newStorage(s.etcd.Client, CertificatesPrefix)
	if keys, err := files.List(t.Context(), "certificates/platform", true); err != nil || len(keys) != 4 {
		t.Errorf("certificate files: got %v %v, want 4", keys, err)
	}
	if err := store.Of[resource.Route](s.store).Delete(t.Context(), &resource.Route{Meta: resource.Meta{Name: hello}}); err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "the certificate goes", func() bool {
		return !files.Exists(t.Context(), "certificates") && !b.certificates.isLocal(t.Context(), hello)
	})
	if _, err := s.browser(b, true).Get("https://" + hello + "/"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("HTTPS after the route went: got %v, want the alert unrecognized name", err)
	}
	if len(b.table.endpoints)+len(b.table.pools)+len(b.table.services) != 0 {
		t.Errorf("left in the table: %v %v %v", b.table.endpoints, b.table.pools, b.table.services)
	}
}

func TestForeignHostIsRefused(t *testing.T) {
	s := newSite(t)
	k := s.workspace("umbrella/lab/virus")
	k.set("default", "hello", pods("127.0.0.2")...)
	s.pod("127.0.0.2", says("evil"))
	b, _ := s.balancer()
	s.route(hello, "umbrella/lab/virus", "hello") // acme's host
	c := s.condition(hello, resource.False)
	if !c.Final || !strings.Contains(c.Message, ".virus.lab.umbrella."+domain) {
		t.Errorf("condition: got %+v, want a final one that says which hosts may be used", c)
	}
	if _, err := s.browser(b, true).Get("https://" + hello + "/"); err == nil {
		t.Error("a foreign host is served")
	}
	if n := s.signs.Load(); n != 0 {
		t.Errorf("certificates signed: got %d, want none", n)
	}
}

// TestOnlyPodsAreDialed: a tenant writes his own EndpointSlices.
func TestOnlyPodsAreDialed(t *testing.T) {
	got := addresses(sliceOf("10.42.0.1", "169.254.20.10", "127.0.0.1", "172.30.0.1", "10.43.0.10", "8.8.8.8", "::1", "10.42.255.255", "nonsense", "10.42.0.1"),
		netip.MustParsePrefix("10.42.0.0/16"))
	if fmt.Sprint(got) != "[10.42.0.1 10.42.255.255]" {
		t.Errorf("got %v", got)
	}
}

func TestPodThatLeaves(t *testing.T) {
	s := newSite(t)
	k := s.workspace(shop)
	k.set("default", "hello", pods("127.0.0.2", "127.0.0.3")...)
	begun, finish := make(chan struct{}), make(chan struct{})
	slow := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				io.WriteString(w, "first ")
				w.(http.Flusher).Flush()
				close(begun)
				<-finish
			}
			io.WriteString(w, name)
		})
	}
	s.pod("127.0.0.2", slow("leaving"))
	s.pod("127.0.0.3", says("staying"))
	b, _ := s.balancer()
	s.ready(b, hello, shop, "hello")
	c := s.browser(b, true)

	// One request is under way in the pod that leaves.
	var slowBody string
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for { // until it meets the right pod
			resp, err := c.Get("https://" + hello + "/slow")
			if err != nil {
				t.Error(err)
				return
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if slowBody = string(body); err != nil || slowBody != "staying" {
				return
			}
		}
	})
	<-begun
	left := time.Now()
	k.set("default", "hello", endpoint("127.0.0.2", false, true), endpoint("127.0.0.3", true, false))
	wait.True(t, wait.Patience, "the pod gets no more requests", func() bool { return len(*b.table.lookup(hello).backends.Load()) == 1 })
	t.Logf("the pod was out after %v", time.Since(left))
	for range 20 {
		if status, body := get(t, c, "https://"+hello+"/"); status != 200 || body != "staying" {
			t.Errorf("got %d %s, want the pod that stays", status, body)
		}
	}
	close(finish)
	<-done
	if slowBody != "first leaving" {
		t.Errorf("the request under way: got %q, want all of it", slowBody)
	}
	// Also when the whole slice goes, and comes again.
	k.remove("default", "hello")
	wait.True(t, wait.Patience, "no pod is left", func() bool { return len(*b.table.lookup(hello).backends.Load()) == 0 })
	if status, body := get(t, c, "https://"+hello+"/"); status != 503 || !strings.Contains(body, "no instance that is ready") {
		t.Errorf("got %d %s, want 503", status, body)
	}
	k.set("default", "hello", pods("127.0.0.3")...)
	wait.True(t, wait.Patience, "the pod is back", func() bool { return len(*b.table.lookup(hello).backends.Load()) == 1 })
	if status, body := get(t, c, "https://"+hello+"/"); status != 200 {
		t.Errorf("got %d %s, want 200", status, body)
	}
}

// TestRestartAlone: with what it has on disk, the balancer serves while etcd and
// the planes are away, and mends itself when they are back.
func TestRestartAlone(t *testing.T) {
	s := newSite(t)
	k := s.workspace(shop)
	k.set("default", "hello", pods("127.0.0.2")...)
	s.pod("127.0.0.2", says("one"))
	s.pod("127.0.0.3", says("two"))
	b, stop := s.balancer()
	s.ready(b, hello, shop, "hello")
	gone := "gone.shop.web.acme." + domain
	s.ready(b, gone, shop, "hello")
	stop()
	if err := store.Of[resource.Route](s.store).Delete(t.Context(), &resource.Route{Meta: resource.Meta{Name: gone}}); err != nil {
		t.Fatal(err)
	}
	k.close()
	s.etcd.Stop()

	// A balancer of its own connection: the old one's would wait in its backoff.
	b, _ = s.balancer()
	c := s.browser(b, true)
	begin := time.Now()
	if status, body := get(t, c, "https://"+hello+"/"); status != 200 || body != "one" {
		t.Errorf("alone: got %d %s, want one", status, body)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("alone: answered after %v", took)
	}
	s.etcd.Start()
	k = s.workspace(shop)
	k.set("default", "hello", pods("127.0.0.3")...)
	wait.True(t, wait.Patience, "the route that is gone goes", func() bool { return !b.table.has(gone) })
	wait.True(t, wait.Patience, "the new pod serves", func() bool {
		_, body := get(t, c, "https://"+hello+"/")
		return body == "two"
	})
	wait.True(t, wait.Patience, "the certificate that nobody needs goes", func() bool { return !b.certificates.isLocal(t.Context(), gone) })
}

func TestCertificatesAreRenewed(t *testing.T) {
	s := newSite(t)
	k := s.workspace(shop)
	k.set("default", "hello", pods("127.0.0.2")...)
	s.pod("127.0.0.2", says("one"))
	s.age.Store(int64(80 * 24 * time.Hour)) // of 90 days
	b, _ := s.balancer()
	s.ready(b, hello, shop, "hello")
	leaf := func() *x509.Certificate {
		conn, err := tls.Dial("tcp", b.HTTPSAddr().String(), &tls.Config{ServerName: hello, RootCAs: s.ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	s.age.Store(0)
	old := leaf()
	wait.True(t, wait.Patience, "a new certificate", func() bool { return leaf().NotAfter.After(old.NotAfter.Add(60 * 24 * time.Hour)) })
	if got := leaf().DNSNames; len(got) != 1 || got[0] != hello {
		t.Errorf("names: got %v, want %s", got, hello)
	}
}

func TestManyRoutes(t *testing.T) {
	var rewatched atomic.Int64
	tab := newTable(domain, func(string) DialFunc { return nil }, func(string) { rewatched.Add(1) })
	begin := time.Now()
	n := 50_000
	if raceDetector {
		n = 5_000
	}
	for i := range n {
		ws := fmt.Sprintf("acme/web/w%d", i/500)
		tab.put(&resource.Route{Meta: resource.Meta{Name: fmt.Sprintf("app%d.w%d.web.acme.%s", i, i/500, domain)}, Workspace: ws,
			Namespace: "default", Service: fmt.Sprintf("app%d", i), Port: 8080})
		tab.setEndpoints(service{ws, "default", fmt.Sprintf("app%d", i)}, []netip.Addr{netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("10.42.0.2")}, "")
	}
	dir := t.TempDir()
	workspaces := tab.unsaved()
	if len(workspaces) != n/500 {
		t.Errorf("%d workspaces are to be saved, want %d", len(workspaces), n/500)
	}
	for _, w := range workspaces {
		if err := tab.save(dir, w); err != nil {
			t.Fatal(err)
		}
	}
	again := newTable(domain, func(string) DialFunc { return nil }, func(string) {})
	if err := again.load(dir); err != nil {
		t.Fatal(err)
	}
	if len(again.routes) != n || len(*again.lookup(fmt.Sprintf("app7.w0.web.acme.%s", domain)).backends.Load()) != 2 {
		t.Errorf("loaded %d routes, want %d", len(again.routes), n)
	}
	t.Logf("%d routes built, saved and loaded in %v", n, time.Since(begin))
	allocs := testing.AllocsPerRun(1000, func() { tab.lookup("app4000.w8.web.acme.apps.example") })
	if allocs != 0 {
		t.Errorf("a lookup allocates %v times", allocs)
	}
	for _, h := range tab.hosts() {
		tab.remove(h)
	}
	if len(tab.routes)+len(tab.pools)+len(tab.endpoints)+len(tab.services)+len(tab.crowded) != 0 {
		t.Error("something is left in the table")
	}
}

// TestCertificatesAreSharedOut: a workspace whose hosts take long to certify has one
// worker, and the others go on.
func TestCertificatesAreSharedOut(t *testing.T) {
	s := newSite(t)
	s.holds = ".shop.web.acme." + domain
	_, stop := s.balancer()
	defer stop()
	for i := range certificateWorkers + 2 {
		s.route(fmt.Sprintf("a%d%s", i, s.holds), "acme/web/shop", "a")
	}
	wait.True(t, wait.Patience, "the first is being signed", func() bool { return s.signs.Load() > 0 })
	s.route("b.lab.core.umbrella."+domain, "umbrella/core/lab", "b")
	s.condition("b.lab.core.umbrella."+domain, resource.True)
	if n := s.signs.Load(); n != 2 {
		t.Errorf("%d certificates were asked for, want one of each workspace", n)
	}
}

// TestReadyIsOfWhereItLeads: what was seen of a route is not said of it once it leads
// elsewhere.
func TestReadyIsOfWhereItLeads(t *testing.T) {
	s := newSite(t)
	b := s.newBalancer()
	const host = "a.shop.web.acme." + domain
	s.route(host, "acme/web/shop", "a")
	routes := store.Of[resource.Route](s.store)
	seen, err := routes.Get(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := routes.Modify(t.Context(), host, func(r *resource.Route) error { r.Service = "b"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := b.setReady(t.Context(), seen, resource.Condition{Status: resource.True}); err != nil {
		t.Fatal(err)
	}
	now, err := routes.Get(t.Context(), host)
	if err != nil || len(now.Status.Conditions) != 0 {
		t.Errorf("got %+v, %v; want no condition", now, err)
	}
	if err := b.setReady(t.Context(), now, resource.Condition{Status: resource.True}); err != nil {
		t.Fatal(err)
	}
	if now, err = routes.Get(t.Context(), host); err != nil || !now.Status.Conditions.Is(resource.RouteReady) {
		t.Errorf("got %+v, %v; want it ready", now, err)
	}
}
