package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/wait"
)

// served is a balancer with one route to the pods at addresses.
func served(t *testing.T, addresses ...string) (*site, *Balancer) {
	t.Helper()
	s := newSite(t)
	s.workspace(shop).set("default", "hello", pods(addresses...)...)
	b, _ := s.balancer()
	s.ready(b, hello, shop, "hello")
	return s, b
}

func TestFailover(t *testing.T) {
	s, b := served(t, "127.0.0.2", "127.0.0.3", "127.0.0.4")
	s.pod("127.0.0.2", says("ok")) // the two others refuse
	var cut atomic.Int32
	stop := s.pod("127.0.0.4", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cut.Add(1)
		panic(http.ErrAbortHandler) // the pod dies with the request in its hands
	}))
	c := s.browser(b, true)
	for range 30 {
		if status, body := get(t, c, "https://"+hello+"/"); status != 200 || body != "ok" {
			t.Fatalf("GET: got %d %s, want ok", status, body)
		}
	}
	if cut.Load() == 0 {
		t.Error("no request met the pod that dies")
	}
	stop()
	// A body can't be sent twice, but nothing of it is sent to who can't be reached.
	for i := range 30 {
		resp, err := c.Post("https://"+hello+"/", "text/plain", strings.NewReader(strings.Repeat("x", 100_000+i)))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("ok %d", 100_000+i); string(body) != want {
			t.Fatalf("POST: got %s %s, want %s", resp.Status, body, want)
		}
	}
}

// TestNoPodAnswers: what clients see when the app is broken, and that nothing
// of the inside is in it.
func TestNoPodAnswers(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	c := s.browser(b, true)
	status, body := get(t, c, "https://"+hello+"/")
	if status != 502 || !strings.Contains(body, "No instance of the app can be reached") || strings.Contains(body, "127.0.0.2") {
		t.Errorf("nobody listens: got %d %s", status, body)
	}
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
	resp, err := c.Post("https://"+hello+"/", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 502 || !strings.Contains(string(text), "the connection to it broke") {
		t.Errorf("the app breaks off: got %s %s", resp.Status, text)
	}

	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"no pod":     {errNoBackend, 503},
		"timeout":    {&net.DNSError{IsTimeout: true}, 504},
		"no route":   {&dialError{errors.New("no route to host 10.42.0.7")}, 502},
		"dial waits": {&dialError{context.DeadlineExceeded}, 502},
		"half sent":  {&bodyError{context.DeadlineExceeded}, 408},
		"too large":  {&bodyError{&http.MaxBytesError{}}, 413},
		"else":       {errors.New("unexpected EOF from 10.42.0.7"), 502},
	} {
		w := httptest.NewRecorder()
		serveError(w, httptest.NewRequest("GET", "/", nil), c.err, b.cfg.Log)
		if w.Code != c.want || strings.Contains(w.Body.String(), "10.42") {
			t.Errorf("%s: got %d %s, want %d", name, w.Code, w.Body, c.want)
		}
	}
}

func (s *site) dialTLS(t *testing.T, b *Balancer) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", b.HTTPSAddr().String(), &tls.Config{RootCAs: s.ca.Pool(), ServerName: hello})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func readResponse(conn net.Conn, req *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(conn), req)
}

// TestBrokenBody sends bodies in no proper chunks: that is not the app's fault, and
// the next request finds it well.
func TestBrokenBody(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	s.pod("127.0.0.2", says("ok"))
	c := s.browser(b, false)
	for what, chunk := range map[string]string{"no chunk": "0x1\r\nx\r\n0\r\n\r\n", "too large": "ffffffffffffffffff\r\n\r\n", "another begins": "3\r\nabcdef\r\n0\r\n\r\n"} {
		conn := s.dialTLS(t, b)
		if _, err := fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s", hello, chunk); err != nil {
			t.Fatal(err)
		}
		resp, err := readResponse(conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		conn.Close()
		if resp.StatusCode != 400 || !strings.Contains(string(text), "could not be read") {
			t.Errorf("%s: got %s %s, want 400", what, resp.Status, text)
		}
		if status, body := get(t, c, "https://"+hello+"/"); status != 200 || body != "ok" {
			t.Errorf("after %s: got %d %s, want ok", what, status, body)
		}
	}
}

// TestCrowdedWorkspace has the requests of one workspace wait for its app, as
// many as it may have; the next is refused, and another workspace is served.
func TestCrowdedWorkspace(t *testing.T) {
	const most, other = 3, "quick.box.ops.b." + domain
	s := newSite(t)
	s.workspace(shop).set("default", "hello", pods("127.0.0.2")...)
	s.workspace("b/ops/box").set("default", "quick", pods("127.0.0.3")...)
	var waiting atomic.Int32
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waiting.Add(1)
		<-r.Context().Done()
	}))
	s.pod("127.0.0.3", says("quick"))
	b := s.newBalancer()
	b.requests = limiter.New[string](most, 2*most)
	parttest.Run(t, b.Run)
	s.ready(b, hello, shop, "hello")
	s.ready(b, other, "b/ops/box", "quick")
	c := s.browser(b, true)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var wg sync.WaitGroup
	for range most {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+hello+"/", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := c.Do(req); err == nil {
				resp.Body.Close()
				t.Errorf("the app answers: %s", resp.Status)
			}
		})
	}
	wait.True(t, wait.Patience, "the app has all that may wait", func() bool { return waiting.Load() == most })
	if status, body := get(t, c, "https://"+hello+"/"); status != 503 || !strings.Contains(body, "Too many requests wait") {
		t.Errorf("one more: got %d %s, want 503 and why", status, body)
	}
	if status, body := get(t, c, "https://"+other+"/"); status != 200 || body != "quick" {
		t.Errorf("another workspace: got %d %s", status, body)
	}
	leave()
	wg.Wait()
	wait.True(t, wait.Patience, "nobody is counted any more", func() bool { return b.requests.Len() == 0 })
}

// TestCrowdingAddress has one address wait for all that it may of an app; others are
// still served by it.
func TestCrowdingAddress(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	s.pod("127.0.0.2", says("ok"))
	b.asked = limiter.New[asker](2, 100)
	mine := asker{shop, netip.MustParsePrefix("127.0.0.1/32")}
	for range 2 {
		if !b.asked.Enter(mine) {
			t.Fatal("there is no room")
		}
		defer b.asked.Leave(mine)
	}
	c := s.browser(b, true)
	if status, body := get(t, c, "https://"+hello+"/"); status != 503 || !strings.Contains(body, "Too many requests wait") {
		t.Errorf("one more: got %d %s, want 503 and why", status, body)
	}
	c.Transport.(*http.Transport).CloseIdleConnections()
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
		return d.DialContext(ctx, network, b.HTTPSAddr().String())
	}
	if status, body := get(t, c, "https://"+hello+"/"); status != 200 || body != "ok" {
		t.Errorf("another address: got %d %s", status, body)
	}
}

// TestLargeBodies passes 200 MB each way, and looks at the memory meanwhile.
// Under the race detector, which makes TLS ten times slower, it is less.
func TestLargeBodies(t *testing.T) {
	size := int64(200 << 20)
	if raceDetector {
		size = 20 << 20
	}
	s, b := served(t, "127.0.0.2")
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
			return
		}
		io.CopyN(w, zeros{}, size)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base, most := m.HeapAlloc, uint64(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	for _, http2 := range []bool{false, true} {
		c := s.browser(b, http2)
		resp, err := c.Post("https://"+hello+"/", "application/octet-stream", io.LimitReader(zeros{}, size))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprint(size, nil); string(body) != want {
			t.Errorf("up: got %s, want %s", body, want)
		}
		resp, err = c.Get("https://" + hello + "/")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != size || err != nil {
			t.Errorf("down: got %d bytes %v, want %d", n, err, size)
		}
	}
	cancel()
	wg.Wait()
	// Client, balancer, pod and etcd are this one process; a body in any buffer
	// of any of them would show. What else shows is garbage of etcd's.
	t.Logf("heap: %d MB before, %d MB at most", base>>20, most>>20)
	if !raceDetector && int64(most-base) > size/2 {
		t.Errorf("heap: grew by %d MB, want less than %d", (most-base)>>20, size>>21)
	}
}

func TestWebSocket(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: []string{"*"}})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		for {
			kind, data, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if conn.Write(r.Context(), kind, append([]byte("echo "), data...)) != nil {
				return
			}
		}
	}))
	conn, _, err := websocket.Dial(t.Context(), "https://"+hello+"/ws", &websocket.DialOptions{HTTPClient: s.browser(b, false)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for _, text := range []string{"a", strings.Repeat("b", 20_000)} {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != "echo "+text {
			t.Errorf("got %d bytes %v, want echo of %d", len(got), err, len(text))
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	wait.True(t, wait.Patience, "the request ends", func() bool { return (*b.table.lookup(hello).backends.Load())[0].active.Load() == 0 })
}

// TestGRPC: HTTP/2 on the whole way, both directions at once, trailers.
func TestGRPC(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("X-Proto", r.Proto+" "+r.Header.Get("Te"))
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		in := bufio.NewScanner(r.Body)
		for in.Scan() {
			fmt.Fprintln(w, "echo", in.Text())
			w.(http.Flusher).Flush()
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}))
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+hello+"/pkg.Service/Method", in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc+proto")
	req.Header.Set("Te", "trailers")
	resp, err := s.browser(b, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("X-Proto"); got != "HTTP/2.0 trailers" {
		t.Errorf("the app got %s, want HTTP/2.0 trailers", got)
	}
	answers := bufio.NewReader(resp.Body)
	for _, word := range []string{"one", "two", "three"} {
		fmt.Fprintln(out, word)
		if got, err := answers.ReadString('\n'); got != "echo "+word+"\n" {
			t.Errorf("got %q %v, want echo %s", got, err, word)
		}
	}
	out.Close()
	io.Copy(io.Discard, answers)
	if got := resp.Trailer.Get("Grpc-Status"); got != "0" {
		t.Errorf("trailer: got %q in %v, want 0", got, resp.Trailer)
	}
	// And what the balancer itself has to say, gRPC clients understand.
	s.workspace(shop)
	b.table.setEndpoints(service{shop, "default", "hello"}, nil, "")
	req, _ = http.NewRequest("POST", "https://"+hello+"/pkg.Service/Method", strings.NewReader("x"))
	req.Header.Set("Content-Type", "application/grpc")
	resp, err = s.browser(b, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "14" {
		t.Errorf("no pod: got %s %v, want grpc-status 14", resp.Status, resp.Header)
	}
}

// TestStream: what the app sends arrives when it is sent, also if the answer
// has a length.
func TestStream(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	next := make(chan struct{})
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "24")
		}
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
	}))
	for _, path := range []string{"/", "/length"} {
		resp, err := s.browser(b, true).Get("https://" + hello + path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			if got, err := lines.ReadString('\n'); got != fmt.Sprintf("data: %d\n", i) {
				t.Errorf("%s: got %q %v", path, got, err)
			}
			next <- struct{}{}
		}
		if resp.Body.Close(); (path == "/length") != (resp.ContentLength == 24) {
			t.Errorf("%s: length is %d", path, resp.ContentLength)
		}
	}
}

func TestPick(t *testing.T) {
	p := newPool("a/b/c", "b.a."+domain, 80, (&net.Dialer{}).DialContext)
	p.set([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")})
	list := *p.backends.Load()
	seen := map[*backend]int{}
	for range 9 {
		seen[p.pick(nil)]++
	}
	for _, b := range list {
		if seen[b] != 3 {
			t.Errorf("idle backends: got %d of 9, want 3", seen[b])
		}
	}
	list[0].active.Add(2)
	list[1].active.Add(1)
	if got := p.pick(nil); got != list[2] {
		t.Errorf("got %s, want the one with the fewest requests", got.address)
	}
	list[2].failed()
	if got := p.pick(nil); got != list[1] {
		t.Errorf("got %s, want the one with the fewest requests of those that can be reached", got.address)
	}
	if got := p.pick(list[:2]); got != list[2] {
		t.Errorf("got %v, want the one that rests, as the last resort", got)
	}
	if got := p.pick(list); got != nil {
		t.Errorf("got %s, want none", got.address)
	}
	for range 50 {
		list[0].failed()
	}
	if rest := time.Until(time.Unix(0, list[0].rests.Load())); rest < restMost/2 || rest > restMost {
		t.Errorf("rests for %v, want at most %v", rest, restMost)
	}
	p.set([]netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.4")})
	if now := *p.backends.Load(); now[0] != list[1] || !list[0].retired.Load() || list[1].retired.Load() {
		t.Error("set did not keep the one that stays and retire those that go")
	}
}

func TestDamagedTable(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "{", `{"routes":[null,{"host":"A.example","port":1},{"host":"a.example"}]}`, `{"endpoints":[{"addresses":["x"]}]}`} {
		tab := newTable(domain, func(string) DialFunc { return nil }, func(string) {})
		if err := os.WriteFile(savedFile(dir, shop), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		tab.load(dir) // an error or not: it must not fall over
		if len(tab.routes) != 0 {
			t.Errorf("%s: got %d routes, want none", content, len(tab.routes))
		}
	}
}
