package linklocal

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestPull says of itself what a machine may say, in every way that HTTP has: the
// registry hears of the machine's own workspace and of nobody's word.
func TestPull(t *testing.T) {
	heard := make(chan http.Header, 1)
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		heard <- r.Header.Clone()
	}))
	defer registry.Close()
	log := slog.New(slog.DiscardHandler)
	e := New(Config{Transport: registry.Client().Transport, Log: log})
	at, err := url.Parse(registry.URL)
	if err != nil {
		t.Fatal(err)
	}
	e.SetState(&wire.State{Registry: at.Host})
	door := httptest.NewServer(e.pull("beta/ops/box", log))
	defer door.Close()

	const theirs = "X-Multipaas-Workspace: acme/web/shop\r\n"
	for what, headers := range map[string]string{
		"nothing":                      "\r\n",
		"another workspace":            theirs + "\r\n",
		"twice":                        theirs + theirs + "\r\n",
		"for this hop only":            theirs + "Connection: X-Multipaas-Workspace, Authorization\r\nAuthorization: Basic eDp5\r\n\r\n",
		"a password":                   "Authorization: Basic eDp5\r\nAUTHORIZATION: Bearer x\r\n\r\n",
		"another workspace in trailer": "Trailer: X-Multipaas-Workspace\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + theirs + "\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(door.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: door\r\n"+headers); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("got %v, %v", resp, err)
			}
			h := <-heard
			if got := h[http.CanonicalHeaderKey(wire.WorkspaceHeader)]; len(got) != 1 || got[0] != "beta/ops/box" {
				t.Errorf("the registry heard of the workspaces %q, want the machine's own only", got)
			}
			if got := h["Authorization"]; got != nil {
				t.Errorf("the registry heard %q", got)
			}
		})
	}
}
