package balancer

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzAnswer lets a pod answer any bytes: whatever they are, the client gets an
// answer of HTTP's, without what is between the balancer and the pod only, or the
// connection is given up in the middle of it.
func FuzzAnswer(f *testing.F) {
	var answer []byte
	b := balancerTo(func(pod net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(pod)); err == nil {
			_, _ = pod.Write(answer)
		}
	})
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nok",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: X-Mine, close\r\nX-Mine: y\r\nKeep-Alive: x\r\nContent-Length: 9\r\n\r\nok", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "\x16\x03\x01",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool) {
		answer = data
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		r := httptest.NewRequest(method, "https://"+routed+"/", nil)
		r.TLS.ServerName = routed
		w := finals{httptest.NewRecorder()}
		func() {
			defer func() {
				if err := recover(); err != nil && err != http.ErrAbortHandler {
					panic(err)
				}
			}()
			b.serveRoute(w, r)
		}()
		resp := w.Result()
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode < 200 || resp.StatusCode > 999 || err != nil {
			t.Errorf("%q is answered %d, %v", data, resp.StatusCode, err)
		}
		if resp.StatusCode < 500 && len(body) > len(data) { // others may be of our own words
			t.Errorf("%d bytes of a body came out of %q", len(body), data)
		}
		for name, values := range resp.Header {
			if isHop(name) && name != "Trailer" {
				t.Errorf("%q: the client is told %s: %q", data, name, values)
			}
			for _, v := range values {
				if strings.ContainsAny(name+v, "\r\n\x00") {
					t.Errorf("%q: a header is %q: %q", data, name, v)
				}
			}
		}
	})
}

// finals keeps the answer. The library's recorder takes the first status for it, be
// it of one that only announces another.
type finals struct{ *httptest.ResponseRecorder }

func (f finals) WriteHeader(status int) {
	if status >= 200 {
		f.ResponseRecorder.WriteHeader(status)
	}
}
