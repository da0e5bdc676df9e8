package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// serve starts a TLS server and logs a user in to it, in a folder of its own.
func serve(t testing.TB, handler http.HandlerFunc) (server *httptest.Server, ca []byte) {
	t.Helper()
	ca, cert := authority(t)
	server = httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := filepath.Join(t.TempDir(), "config")
	t.Setenv("MP_CONFIG", dir)
	conf := &Config{Server: server.URL, CA: string(ca), Context: Target{Account: "acme", Organization: "web", Workspace: "shop"}}
	if err := errors.Join(writeConfig(dir, conf), writeSession(dir, &Session{Server: server.URL, Token: "secret", User: "me@acme.example", ExpiresAt: time.Now().Add(time.Hour)})); err != nil {
		t.Fatal(err)
	}
	return server, ca
}

func TestTransportTriesAgainOnlyWhereNothingArrived(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	ca, cert := authority(t)
	r, err := newRemote("https://"+address, ca)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	began := time.Now()
	if err := r.do(t.Context(), http.MethodPost, "/v1/login", nil, nil); err == nil || time.Since(began) > 5*firstBackoff { // tries would end after 7
		t.Errorf("POST to nobody: %v after %v, want an error at once", err, time.Since(began))
	}
	// Somebody begins to listen while a GET tries again.
	done := make(chan error, 1)
	go func() { done <- r.do(t.Context(), http.MethodGet, "/v1/info", nil, nil) }()
	ln, err = tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	if err := <-done; err != nil {
		t.Errorf("GET: %v, want an answer from the server that came up", err)
	}
}

func TestTransportRefuses(t *testing.T) {
	var elsewhere atomic.Int32
	server, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/redirect":
			http.Redirect(w, r, "/v1/elsewhere", http.StatusTemporaryRedirect)
		case "/v1/elsewhere":
			elsewhere.Add(1)
		case "/v1/large":
			w.Write(bytes.Repeat([]byte(" "), maxAnswerBytes+1))
		case "/v1/page":
			fmt.Fprint(w, "<html>not the API</html>")
		}
	})
	r, err := newRemote(server.URL, ca)
	if err != nil {
		t.Fatal(err)
	}
	r.token = "secret"
	defer r.close()
	for path, want := range map[string]string{"redirect": "answered 307", "large": "more than 16 MB", "page": "not understood"} {
		err := r.do(t.Context(), http.MethodGet, apiPath(path), nil, &struct{}{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("the redirect was followed %d times, with the token", n)
	}
	other, _ := authority(t)
	stranger, err := newRemote(server.URL, other)
	if err != nil {
		t.Fatal(err)
	}
	stranger.token = "secret"
	defer stranger.close()
	if err := stranger.do(t.Context(), http.MethodGet, "/v1/page", nil, nil); err == nil {
		t.Error("a server of another authority was believed")
	}
}

func TestListReadsAllPages(t *testing.T) {
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("after") {
		case "":
			fmt.Fprint(w, `{"items":[{"name":"a"},{"name":"b"}],"next":"b"}`)
		case "b":
			fmt.Fprint(w, `{"items":[{"name":"c"}]}`)
		}
	})
	var out, errw strings.Builder
	if code := Main(t.Context(), []string{"accounts", "-o", "name"}, nil, &out, &errw); code != ExitOK || out.String() != "a\nb\nc\n" {
		t.Errorf("got code %d, %q, %q", code, out.String(), errw.String())
	}
}

func event(state resource.TaskState) string {
	return fmt.Sprintf("event: task\ndata: {\"name\":\"t1\",\"spec\":{\"operation\":\"apps.deploy\",\"target\":\"x\"},\"status\":{\"state\":%q,\"steps\":[{\"type\":\"Deployed\",\"status\":\"False\"}]}}\n\n", state)
}

func TestFollowComesBackWhenTheStreamBreaks(t *testing.T) {
	var streams atomic.Int32
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch streams.Add(1) {
		case 1: // breaks in the middle of an event
			fmt.Fprint(w, event(resource.TaskRunning)+"event: task\ndata: {")
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, event(resource.TaskDone))
		}
	})
	var out, errw strings.Builder
	if code := Main(t.Context(), []string{"tasks", "follow", "t1"}, nil, &out, &errw); code != ExitOK || !strings.Contains(out.String(), "is done") {
		t.Errorf("got code %d, %q, %q", code, out.String(), errw.String())
	}
	if n := strings.Count(errw.String(), "deployed\n"); n != 1 {
		t.Errorf("the step was told %d times, want once: %q", n, errw.String())
	}
}

// TestFollowGoesOnWithWhatHasReplacedIt, and asks again when it is told to wait.
func TestFollowGoesOnWithWhatHasReplacedIt(t *testing.T) {
	var first, second atomic.Int32
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/t1/") {
			first.Add(1)
			fmt.Fprint(w, strings.Replace(event(resource.TaskReplaced), `"status":{`, `"status":{"replacedBy":"t2",`, 1))
			return
		}
		if second.Add(1) == 1 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		fmt.Fprint(w, strings.ReplaceAll(event(resource.TaskFailed), "t1", "t2"))
	})
	var out, errw strings.Builder
	code := Main(t.Context(), []string{"tasks", "follow", "t1"}, nil, &out, &errw)
	if code != ExitFailed || !strings.Contains(errw.String(), "mp tasks show t2") || first.Load() != 1 || second.Load() != 2 {
		t.Errorf("got code %d, %q, %q after %d and %d requests", code, out.String(), errw.String(), first.Load(), second.Load())
	}
}

func TestFollowDetachesWhenInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, event(resource.TaskRunning))
		w.(http.Flusher).Flush()
		interrupt()
		<-r.Context().Done()
	})
	var out, errw strings.Builder
	code := Main(ctx, []string{"tasks", "follow", "t1"}, nil, &out, &errw)
	if code != ExitInterrupted || !strings.Contains(errw.String(), "detached from task t1") || !strings.Contains(errw.String(), "mp tasks follow t1") {
		t.Errorf("got code %d, %q", code, errw.String())
	}
}

func TestExitCodes(t *testing.T) {
	status := http.StatusOK
	serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		fmt.Fprint(w, `{"detail":"It is so.\u001b[2J","remedy":"Do that."}`)
	})
	for s, want := range map[int]int{400: 2, 401: 6, 403: 6, 404: 3, 409: 4, 412: 4, 422: 2, 429: 1, 500: 1, 503: 1} {
		status = s
		var out, errw strings.Builder
		code := Main(t.Context(), []string{"ws", "show"}, nil, &out, &errw)
		if code != want || errw.String() != "mp: It is so.[2J\n  Do that.\n" {
			t.Errorf("status %d: got code %d, %q, want code %d", s, code, errw.String(), want)
		}
	}
}

func TestReadEvents(t *testing.T) {
	in := ": hello\n\nevent: task\ndata: one\ndata: two\n\ndata:three\r\n\r\nevent: left out\n\ndata: unfinished\n"
	var got []string
	if err := readEvents(strings.NewReader(in), func(event string, data []byte) error {
		got = append(got, event+"="+string(data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := "task=one\ntwo|message=three"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
