package balancer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/testpki"
)

// echoPlane is a TLS server that answers each line with its name before it.
func echoPlane(t *testing.T, ca *pki.CA, name string) string {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(pki.Request{CommonName: name, Hosts: []string{name}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				data, err := io.ReadAll(conn) // until the client has closed its half
				if err == nil {
					fmt.Fprintf(conn, "%s got %d bytes", name, len(data))
				}
			}()
		}
	}()
	return ln.Addr().String()
}

type planesByName map[string]string

func (p planesByName) DialPlane(ctx context.Context, name string) (net.Conn, error) {
	addr, ok := p[name]
	if !ok {
		return nil, resource.ErrUnknownPlane
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func TestPlaneRouter(t *testing.T) {
	ca := testpki.New(t)
	planes := planesByName{}
	for _, name := range []string{"00002a.k8s.example", "00002b.k8s.example"} {
		planes[name] = echoPlane(t, ca, name)
	}
	planes["down.k8s.example"] = "127.0.0.1:1"
	p := NewPlaneRouter(PlaneRouterConfig{Addr: "127.0.0.1:0", Planes: planes})
	stop := parttest.Run(t, p.Run)
	dial := func(name string) (*tls.Conn, error) {
		return tls.Dial("tcp", p.Addr().String(), &tls.Config{ServerName: name, RootCAs: ca.Pool()})
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	var wg sync.WaitGroup
	for i := range 20 {
		name := []string{"00002a.k8s.example", "00002B.k8s.example"}[i%2]
		wg.Go(func() {
			conn, err := dial(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer conn.Close()
			if _, err := conn.Write(big); err != nil {
				t.Error(err)
			}
			conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if want := fmt.Sprintf("%s got %d bytes", strings.ToLower(name), len(big)); string(got) != want {
				t.Errorf("got %q %v, want %q", got, err, want)
			}
		})
	}
	wg.Wait()
	for name, want := range map[string]string{
		"unknown.k8s.example": "unrecognized name",
		"":                    "unrecognized name",
		"down.k8s.example":    "internal error",
	} {
		conn, err := tls.Dial("tcp", p.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want the alert %q", name, err, want)
		}
	}
	// What is no TLS is closed, whatever it says.
	raw, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fmt.Fprintf(raw, "GET / HTTP/1.1\r\nHost: 00002a.k8s.example\r\n\r\n")
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, raw); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Error("plain HTTP is not closed")
	}
	// Connections that stay open don't keep the router from stopping.
	open, err := dial("00002a.k8s.example")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > planeDrain+3*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if p.sources.Len() != 0 {
		t.Errorf("left: %d connections", p.sources.Len())
	}
}

// One address has at most its share of the connections, and another one its own.
func TestPlaneRouterLimitsASource(t *testing.T) {
	p := NewPlaneRouter(PlaneRouterConfig{Addr: "127.0.0.1:0", Planes: planesByName{}})
	parttest.Run(t, p.Run)
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	// Who was let in and says nothing is waited for; who was not is closed at once.
	let := func(conn net.Conn) bool {
		conn.SetReadDeadline(time.Now().Add(helloTimeout / 4))
		_, err := conn.Read(make([]byte, 1))
		return isTimeout(err)
	}
	for p.sources.Len() < perSource {
		for range perSource - p.sources.Len() {
			dial("127.0.0.1")
		}
		for end := time.Now().Add(helloTimeout / 4); p.sources.Len() < perSource && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	if let(dial("127.0.0.1")) {
		t.Error("let in above the limit")
	}
	if !let(dial("127.0.0.2")) {
		t.Error("another source was refused")
	}
}

type fakeConn struct {
	net.Conn
	addr net.Addr
	in   io.Reader
}

func (c *fakeConn) RemoteAddr() net.Addr              { return c.addr }
func (c *fakeConn) Close() error                      { return nil }
func (c *fakeConn) Read(p []byte) (int, error)        { return c.in.Read(p) }
func (c *fakeConn) SetReadDeadline(t time.Time) error { return nil }

// makeHello is what a client sends first.
func makeHello(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	go tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	defer client.Close()
	buf := make([]byte, 1<<16)
	n, err := server.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestReadHello(t *testing.T) {
	data := makeHello(t, "a.example")
	h, err := readHello(&fakeConn{in: io.MultiReader(bytes.NewReader(data), strings.NewReader("more"))})
	if err != nil || h.serverName != "a.example" || !bytes.HasPrefix(h.recorded, data) {
		t.Errorf("got %q, %d bytes, %v", h.serverName, len(h.recorded), err)
	}
	// In two records and byte by byte.
	split := append(append([]byte{22, 3, 1, 0, 10}, data[5:15]...), byte(22), 3, 1, byte((len(data)-15)>>8), byte(len(data)-15))
	split = append(split, data[15:]...)
	h, err = readHello(&fakeConn{in: oneByOne{bytes.NewReader(split)}})
	if err != nil || h.serverName != "a.example" || !bytes.Equal(h.recorded, split) {
		t.Errorf("in pieces: got %q, %d bytes, %v", h.serverName, len(h.recorded), err)
	}
	for name, in := range map[string]io.Reader{
		"nothing":    strings.NewReader(""),
		"half":       bytes.NewReader(data[:len(data)/2]),
		"endless":    zeros{},
		"long hello": io.MultiReader(bytes.NewReader([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}), zeros{}),
	} {
		if h, err := readHello(&fakeConn{in: in}); err == nil {
			t.Errorf("%s: got %q, want an error", name, h.serverName)
		}
	}
}

type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func FuzzReadHello(f *testing.F) {
	f.Add(makeHello(f, "a.example"))
	f.Add(makeHello(f, ""))
	f.Add([]byte{22, 3, 1, 0, 1, 1})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHello(&fakeConn{in: bytes.NewReader(data)})
		if len(h.recorded) > maxHello {
			t.Errorf("read %d bytes, want %d at most", len(h.recorded), maxHello)
		}
		if err == nil && !bytes.HasPrefix(data, h.recorded) {
			t.Error("what was recorded is not what came")
		}
	})
}
