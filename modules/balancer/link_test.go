package balancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// rawPod serves connections byte for byte: say is called with each request.
func (s *site) rawPod(address string, say func(conn net.Conn, r *http.Request)) {
	s.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, s.port))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewReader(conn); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					say(conn, r)
				}
			}()
		}
	}()
}

// TestLinks: whatever becomes of an idle connection to a pod, the next request
// gets its own answer.
func TestLinks(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	var conns, answers atomic.Int32
	var last atomic.Pointer[net.Conn]
	said := make(chan struct{}, 1)
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		if old := last.Swap(&conn); old == nil || *old != conn {
			conns.Add(1)
		}
		answers.Add(1)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.URL.Path), r.URL.Path)
		switch r.URL.Path {
		case "/then-close":
			conn.Close()
			said <- struct{}{}
		case "/then-408":
			io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
			said <- struct{}{}
		}
	})
	for _, http2 := range []bool{false, true} {
		c := s.browser(b, http2)
		conns.Store(0)
		last.Store(nil)
		for i, path := range []string{"/a", "/b", "/then-close", "/c", "/then-408", "/d", "/e"} {
			if status, body := get(t, c, "https://"+hello+path); status != 200 || body != path {
				t.Errorf("request %d: got %d %s, want %s", i, status, body, path)
			}
			if strings.HasPrefix(path, "/then") {
				<-said
			}
		}
		if got := conns.Load(); got < 3 || got > 4 { // the last run's link may be there
			t.Errorf("HTTP/2 %v: %d connections, want 3", http2, got)
		}
		c.CloseIdleConnections()
	}
	if got := answers.Load(); got != 14 {
		t.Errorf("the pod got %d requests, want 14", got)
	}
	backend := (*b.table.lookup(hello).backends.Load())[0]
	if n := backend.active.Load(); n != 0 {
		t.Errorf("%d requests are under way, want none", n)
	}
	// The pod leaves: its idle links end.
	b.table.setEndpoints(service{shop, "default", "hello"}, nil, "")
	backend.links.mu.Lock()
	defer backend.links.mu.Unlock()
	if len(backend.links.idle) != 0 || !backend.links.gone || backend.links.sweep != nil {
		t.Errorf("after the pod left: %+v", &backend.links)
	}
}

// TestLinkAnswers: what apps may answer, and what they may not.
func TestLinkAnswers(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	answers := map[string]string{
		"/early":    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/trailers": "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
		"/hops":     "HTTP/1.1 200 OK\r\nConnection: X-Inner, keep-alive\r\nX-Inner: secret\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok",
		"/end":      "HTTP/1.0 200 OK\r\n\r\nok",
		"/none":     "HTTP/1.1 204 No Content\r\n\r\n",
		"/same":     "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n",
		"/short":    "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
		"/upgrade":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		"/garbage":  "SSH-2.0-OpenSSH\r\n",
		"/two":      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
		"/large":    "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10) + "\r\n\r\n",
		"/announce": strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 300) + "HTTP/1.1 204 No Content\r\n\r\n",
	}
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, answers[r.URL.Path])
		switch r.URL.Path {
		case "/end", "/short", "/garbage":
			conn.Close()
		}
	})
	for _, http2 := range []bool{false, true} {
		c := s.browser(b, http2)
		ask := func(method, path string) (*http.Response, string, []int, error) {
			var early []int
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				early = append(early, code)
				return nil
			}})
			req, err := http.NewRequestWithContext(ctx, method, "https://"+hello+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				return nil, "", early, err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return resp, string(body), early, err
		}
		for path, want := range map[string]int{"/early": 200, "/trailers": 200, "/hops": 200, "/end": 200, "/none": 204, "/same": 304,
			"/upgrade": 502, "/garbage": 502, "/two": 502, "/large": 502} {
			resp, body, early, err := ask("GET", path)
			if err != nil || resp.StatusCode != want || want == 200 && body != "ok" {
				t.Errorf("%s: got %v %q, %v, want %d", path, resp, body, err, want)
				continue
			}
			switch path {
			case "/early":
				if len(early) != 1 || early[0] != 103 || resp.Header.Get("Link") != "" {
					t.Errorf("early answers: got %v, header %v", early, resp.Header)
				}
			case "/trailers":
				if resp.Trailer.Get("X-Sum") != "7" {
					t.Errorf("trailers: got %v", resp.Trailer)
				}
			case "/hops":
				for _, key := range []string{"X-Inner", "Keep-Alive", "Proxy-Authenticate"} {
					if resp.Header.Get(key) != "" {
						t.Errorf("%s went through", key)
					}
				}
			}
		}
		if resp, body, _, err := ask("GET", "/short"); err == nil {
			t.Errorf("an answer that broke off: got %v %q and no error", resp, body)
		}
		if resp, _, _, err := ask("GET", "/announce"); err == nil && resp.StatusCode != 502 {
			t.Errorf("endless announcements: got %v", resp)
		}
		if resp, body, _, err := ask("HEAD", "/same"); err != nil || resp.StatusCode != 304 || body != "" {
			t.Errorf("HEAD: got %v %q %v", resp, body, err)
		}
		c.CloseIdleConnections()
	}
	if n := (*b.table.lookup(hello).backends.Load())[0].active.Load(); n != 0 {
		t.Errorf("%d requests are under way, want none", n)
	}
}

// TestClientLeaves: the app hears of it, before and after its answer began.
func TestClientLeaves(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	came, gone := make(chan struct{}), make(chan struct{})
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
		}
		came <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	for _, http2 := range []bool{false, true} {
		for _, path := range []string{"/waits", "/begun"} {
			ctx, leave := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+hello+path, nil)
			ended := make(chan error, 1)
			go func() {
				resp, err := s.browser(b, http2).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			<-came
			leave()
			select {
			case <-gone:
			case <-time.After(10 * time.Second):
				t.Fatalf("HTTP/2 %v, %s: the app still serves whom nobody waits for", http2, path)
			}
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("HTTP/2 %v, %s: got %v", http2, path, err)
			}
		}
	}
	wait.True(t, wait.Patience, "the requests end", func() bool { return (*b.table.lookup(hello).backends.Load())[0].active.Load() == 0 })
}
