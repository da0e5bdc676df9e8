package balancer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/wait"
)

// pair is a connection with its other end.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); other.Close() })
	return conn.(*net.TCPConn), other.(*net.TCPConn)
}

// fill writes until no more is taken.
func fill(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	for {
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Write(make([]byte, 1<<20)); errors.Is(err, os.ErrDeadlineExceeded) {
			conn.SetWriteDeadline(time.Time{})
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// unsent is how much of what was written the peer has not acknowledged.
func unsent(conn *net.TCPConn) (n int) {
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return n
}

func isOpen(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// TestVigil has one peer that reads nothing for an hour, one whose host is gone, and
// one that is idle.
func TestVigil(t *testing.T) {
	var v vigil
	slow, _ := pair(t)
	dead, lost := pair(t)
	idle, _ := pair(t)
	for _, conn := range []*net.TCPConn{slow, dead, idle} {
		defer v.watch(conn, 500*time.Millisecond)()
	}
	fill(t, slow)
	// A filter that takes nothing: its kernel answers nothing either.
	raw, err := lost.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	looks := 0
	wait.True(t, wait.Patience, "who is gone is cut", func() bool {
		v.look(time.Now())
		looks++
		return !isOpen(dead)
	})
	v.look(time.Now().Add(time.Hour))
	v.look(time.Now().Add(2 * time.Hour))
	if !isOpen(slow) || !isOpen(idle) {
		t.Errorf("after %d looks: who reads slowly is open %v, who is idle %v", looks, isOpen(slow), isOpen(idle))
	}
}

func TestGone(t *testing.T) {
	begin := time.Now()
	for what, c := range map[string]struct {
		infos []unix.TCPInfo // one each second
		want  bool
	}{
		"nothing is owed":                   {[]unix.TCPInfo{{Last_ack_recv: 3_600_000}, {Last_ack_recv: 3_601_000}, {Last_ack_recv: 3_602_000}, {Last_ack_recv: 3_603_000}}, false},
		"it never answers":                  {[]unix.TCPInfo{{Unacked: 1, Last_ack_recv: 9000}, {Unacked: 1, Retransmits: 2, Last_ack_recv: 10_000}, {Unacked: 1, Retransmits: 3, Last_ack_recv: 11_000}}, true},
		"it was sent something just now":    {[]unix.TCPInfo{{Last_ack_recv: 3_600_000}, {Last_ack_recv: 3_601_000}, {Unacked: 1, Retransmits: 3, Last_ack_recv: 3_602_000}}, false},
		"it answers now and then":           {[]unix.TCPInfo{{Unacked: 1, Last_ack_recv: 900}, {Unacked: 1, Retransmits: 3, Last_ack_recv: 500}, {Unacked: 1, Retransmits: 3, Last_ack_recv: 1500}}, false},
		"one question about room is lost":   {[]unix.TCPInfo{{Probes: 1, Last_ack_recv: 60_000}, {Probes: 1, Last_ack_recv: 61_000}, {Probes: 1, Last_ack_recv: 62_000}}, false},
		"all questions about room are lost": {[]unix.TCPInfo{{Probes: 1, Last_ack_recv: 60_000}, {Probes: 2, Last_ack_recv: 61_000}, {Probes: 3, Last_ack_recv: 62_000}}, true},
	} {
		w := &watched{silence: 2 * time.Second}
		got := false
		for i := range c.infos {
			got = w.gone(&c.infos[i], begin.Add(time.Duration(i)*time.Second))
		}
		if got != c.want {
			t.Errorf("%s: gone is %v", what, got)
		}
	}
}

// TestPausingApp sends a body that the app does not read for a while, which TCP tells
// the balancer; no timer of the kernel's ends such a connection.
func TestPausingApp(t *testing.T) {
	const size = 24 << 20
	s, b := served(t, "127.0.0.2")
	paused, goOn := make(chan struct{}), make(chan struct{})
	s.pod("127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.CopyN(io.Discard, r.Body, 64<<10)
		close(paused)
		<-goOn
		m, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n+m, err)
	}))
	done := make(chan string, 1)
	c := s.browser(b, true)
	go func() {
		resp, err := c.Post("https://"+hello+"/", "application/octet-stream", io.LimitReader(zeros{}, size))
		if err != nil {
			done <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		done <- string(body)
	}()
	<-paused
	pods := func() (all []*watched) {
		b.vigil.mu.Lock()
		defer b.vigil.mu.Unlock()
		for w := range b.vigil.all {
			if w.silence == podSilence {
				all = append(all, w)
			}
		}
		return all
	}
	wait.True(t, wait.Patience, "the pod's window is closed", func() bool {
		for _, w := range pods() {
			if unsent(w.conn) > 100<<10 {
				return true
			}
		}
		return false
	})
	for _, w := range pods() {
		w.raw.Control(func(fd uintptr) {
			if n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); n != 0 || err != nil {
				t.Errorf("the kernel cuts the connection after %d ms, %v", n, err)
			}
		})
	}
	b.vigil.look(time.Now().Add(time.Hour))
	b.vigil.look(time.Now().Add(2 * time.Hour))
	close(goOn)
	if got, want := <-done, fmt.Sprint(size, nil); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestEarlyAnswers has an app refuse uploads before it has read them, in all the ways
// of apps, and clients that send on without looking.
func TestEarlyAnswers(t *testing.T) {
	const size = 2 << 20
	s, b := served(t, "127.0.0.2")
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\ntoo much")
		case "/close":
			io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo much")
		case "/chunks":
			io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ntoo much\r\n0\r\n\r\n")
		case "/some":
			_, _ = io.CopyN(io.Discard, r.Body, size/4)
			io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\ntoo much")
		case "/stay":
			io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo much")
			_, _ = io.Copy(io.Discard, conn) // and reads it all
		}
		// What is still on its way to a closed connection is answered by a reset, which
		// would overtake the answer here, where each core has a queue.
		for end := time.Now().Add(wait.Patience); unsent(conn.(*net.TCPConn)) > 0 && time.Now().Before(end); {
			runtime.Gosched()
		}
		conn.Close() // with what came unread
	})
	for _, way := range []string{"HTTP/1.1", "HTTP/2", "without looking"} {
		c := s.browser(b, way == "HTTP/2")
		for path, tries := range map[string]int{"/length": 40, "/close": 10, "/chunks": 10, "/some": 10, "/stay": 10} {
			for i := range tries {
				resp, text, err := upload(t, s, b, c, way, path, size, i%2 == 0)
				if err != nil || resp.StatusCode < 401 || resp.StatusCode > 413 || text != "too much" {
					t.Fatalf("%s, %s, try %d: got %v %q %v", way, path, i, resp, text, err)
				}
			}
		}
	}
	wait.True(t, wait.Patience, "the requests end", func() bool { return (*b.table.lookup(hello).backends.Load())[0].active.Load() == 0 })
}

// upload sends a body in chunks or with its length, and reads the answer: meanwhile, or
// not before all is sent.
func upload(t *testing.T, s *site, b *Balancer, c *http.Client, way, path string, size int, chunks bool) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequest("POST", "https://"+hello+path, strings.NewReader(strings.Repeat("x", size)))
	if err != nil {
		t.Fatal(err)
	}
	if chunks {
		req.ContentLength, req.Body = -1, io.NopCloser(req.Body)
	}
	var resp *http.Response
	if way != "without looking" {
		resp, err = c.Do(req)
	} else {
		conn := s.dialTLS(t, b)
		defer conn.Close()
		if err := req.Write(conn); err != nil {
			return nil, "", fmt.Errorf("send: %w", err)
		}
		resp, err = readResponse(conn, req)
	}
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func TestIsGRPC(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc+json": true, "application/grpc;charset=utf-8": true, "application/grpc ; x=y": true, "Application/GRPC": true, "application/grpc+proto; x=y": true,
		"application/grpc-web": false, "application/grpc-web+proto": false, "application/grpc-web-text": false, "application/grpc-web-text+proto": false, "application/grpcx": false, "application/grp": false, "application/json; x=application/grpc": false, "": false,
	} {
		for _, version := range []int{1, 2} {
			r := &http.Request{ProtoMajor: version, Header: http.Header{"Content-Type": {kind}}}
			if got := isGRPC(r); got != (want && version == 2) {
				t.Errorf("HTTP/%d, %q: gRPC is %v", version, kind, got)
			}
		}
	}
}

// TestGRPCWeb goes by HTTP/2 to an app that speaks HTTP/1.1 only.
func TestGRPCWeb(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	for _, http2 := range []bool{false, true} {
		resp, err := s.browser(b, http2).Post("https://"+hello+"/pkg.Service/Method", "application/grpc-web+proto", strings.NewReader("words"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != "words" {
			t.Errorf("HTTP/2 %v: got %s %q", http2, resp.Status, body)
		}
	}
}
