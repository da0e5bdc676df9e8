package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/problem"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func sample() Status {
	return Status{
		Role: "server", Name: "s1", Address: "192.0.2.10", Version: "v1", PID: 42, Started: now.Add(-90 * time.Minute),
		Parts: []lifecycle.PartStatus{
			{Name: "etcd", State: lifecycle.Ready, Since: now.Add(-time.Hour)},
			{Name: "api", State: lifecycle.Waiting, Since: now.Add(-5 * time.Second), WaitingFor: []string{"etcd", "pki"}},
			{Name: "registry", State: lifecycle.Failed, Since: now, Error: "no room\nstack"},
		},
		Problems: []problem.Raised{{Problem: problem.Problem{Code: "disk-full", Title: "The disk is full", Severity: problem.High, Remedy: "make room"}, Object: "/data", Since: now.Add(-3 * 24 * time.Hour)}},
		Items:    []Item{{Kind: "workspace", Name: "acme/web/shop", State: "Ready"}},
	}
}

func TestServeAndFetch(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "status.sock")
	if _, err := Fetch(t.Context(), socket); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v, want %v", err, ErrNotRunning)
	}
	for range 2 { // the second time over what is left of the first
		current := sample()
		s := New(Config{Socket: socket, Collect: func() Status { return current }})
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(ready) }) }()
		select {
		case <-ready:
		case err := <-done:
			t.Fatal(err)
		}
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info.Mode(), err)
		}
		got, err := Fetch(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != "s1" || len(got.Parts) != 3 || got.Parts[1].WaitingFor[0] != "etcd" || got.Problems[0].Remedy != "make room" {
			t.Errorf("got %+v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// As a killed process leaves it.
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
	}
}

func TestProbes(t *testing.T) {
	current := sample()
	h := New(Config{Collect: func() Status { return current }}).Handler()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, _ := get("/livez"); code != 200 {
		t.Errorf("livez: got %d", code)
	}
	code, body := get("/readyz")
	if code != 503 || !strings.Contains(body, "api is waiting for etcd, pki\n") || !strings.Contains(body, "registry is failed: no room") {
		t.Errorf("readyz: got %d %q", code, body)
	}
	current.Parts = current.Parts[:1]
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("readyz with all ready: got %d", code)
	}
	if code, _ := get("/metrics"); code != 404 {
		t.Errorf("metrics that are not there: got %d", code)
	}
}

func TestRender(t *testing.T) {
	const want = `server s1: 2 of 3 parts not ready
address 192.0.2.10, version v1, process 42, up 1h30m

PART      STATE    SINCE  NOTE
etcd      ready    1h0m
api       waiting  5s     waits for etcd, pki
registry  failed   0s     no room

KIND       NAME           STATE  DETAIL
workspace  acme/web/shop  Ready

problem disk-full (high, for 3d): The disk is full
  /data
  make room
`
	s := sample()
	var b bytes.Buffer
	if err := Render(&b, &s, "", now); err != nil || b.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, b.String(), want)
	}
	for format, parse := range map[string]func([]byte, any) error{
		"json": json.Unmarshal,
		"yaml": func(data []byte, v any) error { return yaml.UnmarshalStrict(data, v) },
	} {
		b.Reset()
		if err := Render(&b, &s, format, now); err != nil {
			t.Fatal(err)
		}
		var back Status
		if err := parse(b.Bytes(), &back); err != nil || back.Parts[1].WaitingFor[1] != "pki" {
			t.Errorf("%s: %v\n%s", format, err, &b)
		}
	}
	if err := Render(&b, &s, "xml", now); err == nil {
		t.Error("took an unknown format")
	}
}
