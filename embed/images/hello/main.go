// Command hello is the small web app that shows that a workspace works: it
// says which instance answered, and has an endpoint for each thing that a
// load balancer can get wrong (WebSocket, large bodies, slow answers, drain).
//
//	/           hello and the instance's name, as text or JSON by Accept
//	/healthz    200 while it serves, 503 once it was told to stop
//	/ws         echoes WebSocket messages
//	/bytes?n=N  N bytes
//	/upload     how many bytes the request's body had, and their SHA-256
//	/slow?d=D   answers after D ("2s")
//	/env        the variables it knows: PORT and nothing else
//	/notes      what was left there by POST, a line each, by all instances that have one volume at /data
//
// It listens on PORT (8080). On SIGTERM it fails /healthz, finishes what it
// has begun and ends.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxBytes bounds /bytes: 4 GiB shows that nothing between counts in 32 bits.
	maxBytes = 4 << 30
	// maxMessage bounds a WebSocket message.
	maxMessage = 1 << 20
	// maxDelay bounds /slow.
	maxDelay = 5 * time.Minute
	// drainTimeout is within the 30 s that Kubernetes gives a pod to end.
	drainTimeout = 25 * time.Second
	// dataDir is where a volume may be. maxNote bounds what is left at once, maxNotes all of it.
	dataDir  = "/data"
	maxNote  = 1 << 10
	maxNotes = 1 << 20
)

func main() { os.Exit(run()) }

func run() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	instance, err := os.Hostname()
	if err != nil {
		log.Error("host name", "err", err)
		return 1
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("", port()))
	if err == nil {
		log.Info("serving", "address", listener.Addr().String(), "instance", instance)
		err = serve(ctx, listener, &app{instance: instance, dir: dataDir})
	}
	if err != nil {
		log.Error("serve", "err", err)
		return 1
	}
	return 0
}

func port() string { return cmp.Or(os.Getenv("PORT"), "8080") }

// serve answers on listener until ctx is done and what was begun has ended.
func serve(ctx context.Context, listener net.Listener, a *app) error {
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	a.stopping.Store(true)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	return server.Shutdown(drain)
}

type app struct {
	instance string
	dir      string
	stopping atomic.Bool
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.hello)
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /ws", a.echo)
	mux.HandleFunc("GET /bytes", a.bytes)
	mux.HandleFunc("GET /slow", a.slow)
	mux.HandleFunc("GET /env", a.env)
	mux.HandleFunc("/upload", a.upload)
	mux.HandleFunc("GET /notes", a.notes)
	mux.HandleFunc("POST /notes", a.note)
	return mux
}

func (a *app) hello(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Instance", a.instance)
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		writeJSON(w, map[string]string{"message": "hello", "instance": a.instance, "host": r.Host, "protocol": r.Proto})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "hello from %s\n", a.instance)
}

func (a *app) healthz(w http.ResponseWriter, _ *http.Request) {
	if a.stopping.Load() {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	// Any origin: there is nothing here that another site's page could steal.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

func (a *app) bytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		http.Error(w, fmt.Sprintf("n: give a number from 0 to %d", int64(maxBytes)), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	io.CopyN(w, zeros{}, n)
}

// zeros reads as zero bytes without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	delay, err := time.ParseDuration(r.URL.Query().Get("d"))
	if err != nil || delay < 0 || delay > maxDelay {
		http.Error(w, fmt.Sprintf("d: give a duration from 0s to %s", maxDelay), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(delay):
		a.hello(w, r)
	case <-r.Context().Done():
	}
}

func (a *app) upload(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return
	}
	writeJSON(w, map[string]any{"bytes": n, "sha256": hex.EncodeToString(sum.Sum(nil)), "instance": a.instance})
}

func (a *app) env(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "PORT=%s\n", port())
}

func (a *app) notes(w http.ResponseWriter, r *http.Request) {
	f, err := a.openNotes(os.O_RDONLY)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.CopyN(w, f, maxNotes)
}

// note answers once the note is on the disk.
func (a *app) note(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNote))
	if err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return
	}
	f, err := a.openNotes(os.O_WRONLY | os.O_APPEND)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	line := fmt.Sprintf("%s: %s\n", a.instance, strings.Join(strings.Fields(string(text)), " "))
	info, err := f.Stat()
	if err == nil && info.Size()+int64(len(line)) > maxNotes {
		err = errors.New("there is no room for more notes")
	}
	if err == nil {
		_, err = f.WriteString(line)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
		return
	}
	_, _ = io.WriteString(w, line)
}

// openNotes opens the file of notes, which is made if there is a volume for it.
func (a *app) openNotes(flags int) (*os.File, error) {
	if _, err := os.Stat(a.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this app has no volume at %s", a.dir)
	}
	return os.OpenFile(filepath.Join(a.dir, "notes"), flags|os.O_CREATE, 0o660)
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	// An error means that the client has gone, and nobody is left to tell.
	_ = json.NewEncoder(w).Encode(value)
}
