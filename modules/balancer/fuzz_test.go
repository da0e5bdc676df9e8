package balancer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"testing"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/resource"
)

// routed is the host of the one app that balancerTo serves.
const routed = "hello.shop.web.acme.apps.example"

// balancerTo has one route, to a pod that serves each connection as it is told.
func balancerTo(serve func(pod net.Conn)) *Balancer {
	log := slog.New(slog.DiscardHandler)
	b := &Balancer{proxy: newProxy(log), requests: limiter.New[string](1, 1), asked: limiter.New[asker](1, 1), cfg: Config{HTTPSAddr: "127.0.0.1:443", Log: log}}
	b.table = newTable(domain, func(string) DialFunc {
		return func(context.Context, string, string) (net.Conn, error) {
			ours, pod := net.Pipe()
			go func() {
				defer pod.Close()
				serve(pod)
			}()
			return ours, nil
		}
	}, func(string) {})
	b.table.put(&resource.Route{Meta: resource.Meta{Name: routed}, Workspace: "acme/web/shop", Namespace: "default", Service: "hello", Port: 80})
	b.table.setEndpoints(service{"acme/web/shop", "default", "hello"}, []netip.Addr{netip.MustParseAddr("10.42.0.2")}, "")
	return b
}

// FuzzRouting sends a request, byte for byte, to the proxy and to the redirect:
// it reaches the app whose host it names or none, and says nothing to the app
// that only we say.
func FuzzRouting(f *testing.F) {
	// The pod takes one request, byte for byte too, and nothing behind it.
	reached := make(chan *http.Request, maxTries)
	b := balancerTo(func(pod net.Conn) {
		in := bufio.NewReader(pod)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, err = io.Copy(io.Discard, r.Body)
		if in.Buffered() > 0 {
			err = errors.Join(err, errors.New("there is more behind the request"))
		}
		if err != nil {
			r.Method = err.Error()
		}
		reached <- r
		io.WriteString(pod, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	})
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: " + routed + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: HELLO.shop.web.acme.apps.example.:443\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x\r\n\r\n",
		"GET http://" + routed + "/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "GET http://u:p@other.example/ HTTP/1.0\r\nHost: " + routed + "\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: " + routed + "\r\nConnection: X-Forwarded-For, Upgrade\r\nUpgrade: websocket\r\n\r\n", "POST /a//b/../c?x;y=%zz HTTP/1.1\r\nHost: " + routed + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"CONNECT " + routed + ":443 HTTP/1.1\r\nHost: " + routed + "\r\n\r\n", "GET //evil.example/ HTTP/1.1\r\nHost: " + routed + "\r\n\r\n",
	} {
		f.Add([]byte(s), routed)
	}
	f.Fuzz(func(t *testing.T, raw []byte, serverName string) {
		read := func() *http.Request {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
			if err != nil {
				return nil
			}
			r.RemoteAddr = "192.0.2.9:5000"
			return r
		}
		r := read()
		if r == nil {
			return
		}
		r.TLS = &tls.ConnectionState{ServerName: serverName}
		named, _ := canonicalHost(r.Host)
		sni, _ := canonicalHost(serverName)
		w := httptest.NewRecorder()
		b.serveRoute(w, r)
		var got *http.Request
		for len(reached) > 0 { // more than one if it was sent again
			got = <-reached
		}
		if want := named == routed && sni == routed; (got != nil) != want && w.Code != http.StatusBadGateway && w.Code != http.StatusBadRequest {
			t.Errorf("host %q, server name %q: reached %v, status %d", r.Host, serverName, got != nil, w.Code)
		}
		if got != nil {
			if got.Method != r.Method {
				t.Errorf("method %q became %q", r.Method, got.Method)
			}
			say := map[string]string{"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": r.Host}
			for h, values := range got.Header {
				if want, ok := say[h]; ok && !slices.Equal(values, []string{want}) || !ok && isOurs(h) {
					t.Errorf("%q says %q to the app", h, values)
				}
			}
			for h := range got.Trailer {
				if isOurs(h) {
					t.Errorf("%q is announced to the app", h)
				}
			}
			if got.URL.RawQuery != r.URL.RawQuery {
				t.Errorf("query %q became %q", r.URL.RawQuery, got.URL.RawQuery)
			}
		}
		if r = read(); r == nil {
			return
		}
		w = httptest.NewRecorder()
		b.redirect(w, r)
		where := w.Header().Get("Location")
		if (where != "") != (named == routed) {
			t.Errorf("host %q is sent to %q", r.Host, where)
		}
		if u, err := url.Parse(where); where != "" && (err != nil || u.Scheme != "https" || u.Host != routed || u.User != nil) {
			t.Errorf("host %q is sent to %q, %v", r.Host, where, err)
		}
	})
}

// FuzzSavedTable reads any bytes as the table that is kept over a restart:
// refused, or each host in it is one that could be routed, and it is kept the
// same way again.
func FuzzSavedTable(f *testing.F) {
	f.Add([]byte(`{"routes":[{"host":"a.apps.example","workspace":"acme/web/shop","namespace":"default","service":"x","port":80}],"endpoints":[{"workspace":"acme/web/shop","namespace":"default","service":"x","addresses":["10.42.0.7","::1"]}]}`))
	f.Add([]byte(`{"routes":[null,{"host":"A"},{"host":"a","port":1},{"host":"a","workspace":"acme/web/shop","port":1},{"host":"a","workspace":"acme/web/shop","port":2}],"endpoints":[{"addresses":[""]}]}`))
	f.Add([]byte(`{"routes":[{"host":"a","workspace":"acme/web/shop","port":1}],"endpoints":[{"workspace":"acme/web/shop","addresses":["0.0.0.0","127.0.0.1","fe80::1%25eth0"]}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		const workspace = "acme/web/shop"
		load := func(dir string) (*table, error) {
			x := newTable(domain, func(string) DialFunc { return nil }, func(string) {})
			return x, x.load(dir)
		}
		a, b := t.TempDir(), t.TempDir()
		if err := os.WriteFile(savedFile(a, workspace), data, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := load(a)
		if err != nil {
			return
		}
		for host, e := range x.routes {
			if got, ok := canonicalHost(host); !ok || got != host || e.Port == 0 || x.lookup(host) == nil || e.Workspace != workspace {
				t.Errorf("%q is routed: %+v", host, e)
			}
		}
		if err := x.save(b, workspace); err != nil {
			t.Fatal(err)
		}
		y, err := load(b)
		if err != nil {
			t.Fatalf("what was kept is refused: %v", err)
		}
		same := maps.EqualFunc(x.routes, y.routes, func(a, b *entry) bool { return a.service == b.service && a.Port == b.Port }) &&
			maps.EqualFunc(x.endpoints, y.endpoints, func(a, b []netip.Addr) bool { return slices.Equal(a, b) })
		if !same {
			t.Errorf("kept %v %v, read %v %v", x.routes, x.endpoints, y.routes, y.endpoints)
		}
		for host := range x.routes {
			x.remove(host)
		}
		if len(x.routes)+len(x.pools)+len(x.endpoints)+len(x.services) > 0 {
			t.Errorf("with no route left: %v %v %v", x.pools, x.endpoints, x.services)
		}
	})
}
