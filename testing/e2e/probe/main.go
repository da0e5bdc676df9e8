// Command probe runs inside pods of the end-to-end tests. It plays the servers
// that a cluster must reach in its pods (an admission webhook, an aggregated
// API), and tries from a pod what a tenant must not reach.
//
//	probe webhook          HTTPS on :8443, labels every pod it is shown
//	probe apiserver        HTTPS on :8443, serves probe.multipaas.test/v1
//	probe try ADDRESS...   one line per address: "ADDRESS open|closed REASON";
//	                       tcp:HOST:PORT, udp:HOST:PORT, http:URL
//	probe wait             serves /healthz on :8080 until it is stopped
//
// The TLS key pair is read from /tls/tls.crt and /tls/tls.key.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		args = []string{"wait"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch args[0] {
	case "webhook":
		err = serve(ctx, ":8443", http.HandlerFunc(admit), true)
	case "apiserver":
		err = serve(ctx, ":8443", http.HandlerFunc(aggregated), true)
	case "wait":
		err = serve(ctx, ":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }), false)
	case "try":
		try(args[1:])
	default:
		err = fmt.Errorf("unknown mode %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, addr string, h http.Handler, secure bool) error {
	s := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() {
		if secure {
			done <- s.ListenAndServeTLS("/tls/tls.crt", "/tls/tls.key")
		} else {
			done <- s.ListenAndServe()
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return s.Close()
	}
}

// admit answers an AdmissionReview (admission.k8s.io/v1) with a patch that adds
// one label.
func admit(w http.ResponseWriter, r *http.Request) {
	var review struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Request    struct {
			UID string `json:"uid"`
		} `json:"request"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 4<<20)).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	patch := `[{"op":"add","path":"/metadata/labels/probe.multipaas.test~1seen","value":"yes"}]`
	reply(w, map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind, "response": map[string]any{
		"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": []byte(patch)}})
}

// aggregated serves the little of an API group that kubectl and the aggregation
// layer ask for.
func aggregated(w http.ResponseWriter, r *http.Request) {
	const group, version = "probe.multipaas.test", "probe.multipaas.test/v1"
	switch strings.TrimSuffix(r.URL.Path, "/") {
	case "/apis/" + version:
		reply(w, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": []any{
			map[string]any{"name": "echoes", "singularName": "echo", "namespaced": false, "kind": "Echo", "verbs": []string{"list", "get"}}}})
	case "/apis/" + group:
		gv := map[string]any{"groupVersion": version, "version": "v1"}
		reply(w, map[string]any{"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": []any{gv}, "preferredVersion": gv})
	case "/apis/" + version + "/echoes":
		reply(w, map[string]any{"kind": "EchoList", "apiVersion": version, "metadata": map[string]any{}, "items": []any{
			map[string]any{"kind": "Echo", "apiVersion": version, "metadata": map[string]any{"name": "hello"}, "user": r.Header.Get("X-Remote-User")}}})
	default:
		http.NotFound(w, r)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// try makes all attempts at once, so that hundreds of dropped packets cost one
// time-out, and prints the results in the order asked for.
func try(targets []string) {
	out := make([]string, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { out[i] = t + " " + attempt(t) })
	}
	wg.Wait()
	fmt.Println(strings.Join(out, "\n"))
}

const patience = 3 * time.Second

func attempt(target string) string {
	network, address, _ := strings.Cut(target, ":")
	switch network {
	case "http":
		c := &http.Client{Timeout: patience}
		res, err := c.Get(address)
		if err != nil {
			return "closed " + err.Error()
		}
		_ = res.Body.Close()
		return "open " + res.Status
	case "udp":
		// An answer to a DNS question is the only sign of life that UDP gives.
		conn, err := net.DialTimeout("udp", address, patience)
		if err != nil {
			return "closed " + err.Error()
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01")
		if _, err := conn.Write(question); err != nil {
			return "closed " + err.Error()
		}
		if _, err := conn.Read(make([]byte, 512)); err != nil {
			return "closed " + err.Error()
		}
		return "open answered"
	default:
		conn, err := net.DialTimeout(network, address, patience)
		if err != nil {
			return "closed " + err.Error()
		}
		_ = conn.Close()
		return "open connected"
	}
}
