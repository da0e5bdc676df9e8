package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// start serves until the returned function, which fails unless all that was
// begun ended well.
func start(t *testing.T, dir string) (url string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener, &app{instance: "instance-1", dir: dir}) }()
	return "http://" + listener.Addr().String(), func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

func fetch(t *testing.T, request *http.Request) (int, string) {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fetch(t, request)
}

func TestHello(t *testing.T) {
	t.Setenv("PORT", "1234")
	t.Setenv("SECRET", "hidden")
	url, stop := start(t, "/none")
	defer stop()
	for _, test := range []struct {
		path string
		code int
		want string
	}{
		{"/", 200, "hello from instance-1\n"},
		{"/healthz", 200, "ok\n"},
		{"/env", 200, "PORT=1234\n"},
		{"/slow?d=1ms", 200, "hello from instance-1\n"},
		{"/slow?d=-1s", 400, "d: give"},
		{"/bytes?n=3", 200, "\x00\x00\x00"},
		{"/bytes?n=-1", 400, "n: give"},
		{"/bytes?n=x", 400, "n: give"},
		{"/none", 404, "404"},
	} {
		if code, body := get(t, url+test.path); code != test.code || !strings.HasPrefix(body, test.want) {
			t.Errorf("%s: %d %q, want %d %q", test.path, code, body, test.code, test.want)
		}
	}

	request, _ := http.NewRequest(http.MethodGet, url+"/", nil)
	request.Header.Set("Accept", "application/json")
	var answer map[string]string
	if _, body := fetch(t, request); json.Unmarshal([]byte(body), &answer) != nil || answer["instance"] != "instance-1" {
		t.Errorf("JSON: %v", answer)
	}
	request, _ = http.NewRequest(http.MethodPut, url+"/upload", bytes.NewReader(make([]byte, 5<<20)))
	if code, body := fetch(t, request); code != 200 || !strings.Contains(body, `"bytes":5242880`) {
		t.Errorf("upload: %d %s", code, body)
	}
}

// TestNotes: instances that have one volume see what each other was left.
func TestNotes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	one, stop := start(t, dir)
	defer stop()
	two, stop := start(t, dir)
	defer stop()
	leave := func(url, text string) int {
		request, _ := http.NewRequest(http.MethodPost, url+"/notes", strings.NewReader(text))
		code, _ := fetch(t, request)
		return code
	}
	if code, body := get(t, one+"/notes"); code != 404 || !strings.Contains(body, "no volume") || leave(two, "x") != 404 {
		t.Errorf("without a volume: %d %s", code, body)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if code := leave(one, "a\nb"); code != 200 {
		t.Errorf("leave a note: %d", code)
	}
	if code, body := get(t, two+"/notes"); code != 200 || body != "instance-1: a b\n" {
		t.Errorf("notes: %d %q", code, body)
	}
	if code := leave(one, strings.Repeat("x", maxNote+1)); code != 400 {
		t.Errorf("leave a long note: %d", code)
	}
	if err := os.Truncate(filepath.Join(dir, "notes"), maxNotes); err != nil {
		t.Fatal(err)
	}
	if code := leave(one, "more"); code != http.StatusInsufficientStorage {
		t.Errorf("leave a note too many: %d", code)
	}
}

func TestEcho(t *testing.T) {
	url, stop := start(t, "/none")
	defer stop()
	conn, _, err := websocket.Dial(t.Context(), url+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for _, want := range []string{"one", "two", strings.Repeat("x", 20_000)} {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != want {
			t.Errorf("echo of %d bytes: %d bytes, %v", len(want), len(got), err)
		}
	}
	conn.Close(websocket.StatusNormalClosure, "")
}

// TestDrain stops while a request is being answered: more than fits into the
// buffers between, so the server is still writing.
func TestDrain(t *testing.T) {
	url, stop := start(t, "/none")
	const size = 64 << 20
	response, err := http.Get(fmt.Sprintf("%s/bytes?n=%d", url, size))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	if n, err := io.Copy(io.Discard, response.Body); n != size || err != nil {
		t.Errorf("read %d of %d bytes while it stopped: %v", n, size, err)
	}
	<-stopped
	if _, err := http.Get(url); err == nil {
		t.Error("answers after it has stopped")
	}
}
