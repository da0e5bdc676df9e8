// Command probe runs inside pods of the end-to-end tests. It plays the servers
// that a cluster must reach in its pods (an admission webhook, an aggregated
// API), and tries from a pod what a tenant must not reach.
//
//	probe webhook          HTTPS on :8443, labels every pod it is shown
//	probe apiserver        HTTPS on :8443, serves probe.multipaas.test/v1
//	probe try ADDRESS...   one line per address: "ADDRESS open|closed REASON";
//	                       tcp:HOST:PORT, udp:HOST:PORT, http:URL
//	probe ask REQUEST...   one line per request, {"method", "url", "user", "password", "body"}:
//	                       "STATUS BODY", or "none REASON"; whom it trusts, PEM, comes in
//	probe wait             serves /healthz on :8080 and :8081, and says back what comes
//	                       to UDP port 8053, until it is stopped; of /upload it reads a
//	                       part, waits 12 s and reads the rest; to /refuse it answers
//	                       401 with the upload unread, and closes
//	probe finds SYSCTL...  prints what a process finds: limits and kernel settings
//	probe memory           takes memory until it is stopped
//	probe write FILE       goes on with a file of records that show what they are: "found N",
//	                       then "wrote N" for each that is on the disk
//	probe read FILE        says how many it has: "has N of BYTES"
//	probe fill FILE        writes until the disk is full: "full BYTES"
//	probe space DIR        "space BYTES free BYTES owner UID GID"
//
// The TLS key pair is read from /tls/tls.crt and /tls/tls.key.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/multipaas/multipaas/testing/e2e/attempt"
)

const certificate, key = "/tls/tls.crt", "/tls/tls.key"

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
		err = attempt.Serve(ctx, ":8443", http.HandlerFunc(admit), certificate, key)
	case "apiserver":
		err = attempt.Serve(ctx, ":8443", http.HandlerFunc(aggregated), certificate, key)
	case "wait":
		ok := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }
		go func() { _ = attempt.Serve(ctx, ":8081", http.HandlerFunc(ok), "", "") }()
		go echo(ctx)
		mux := http.NewServeMux()
		mux.HandleFunc("/", ok)
		mux.HandleFunc("/upload", upload)
		mux.HandleFunc("/refuse", refuse)
		err = attempt.Serve(ctx, ":8080", mux, "", "")
	case "finds":
		err = finds(args[1:])
	case "memory":
		for taken := [][]byte{}; ctx.Err() == nil; {
			taken = append(taken, bytes.Repeat([]byte{1}, 1<<20))
		}
	case "blocks":
		err = blocks(args[1:])
	case "write", "read", "fill", "space":
		err = disk(ctx, args)
	case "ask":
		err = ask(ctx, os.Stdin, args[1:])
	case "try":
		attempt.Each(args[1:], func(target string) string { return attempt.Reach(ctx, target) })
	default:
		err = fmt.Errorf("unknown mode %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return 1
	}
	return 0
}

// pause is longer than what ends connections that seem dead.
const pause = 12 * time.Second

// upload reads slowly, as who scans, imports or waits for a lock does.
func upload(w http.ResponseWriter, r *http.Request) {
	first, err := io.CopyN(io.Discard, r.Body, 64<<10)
	time.Sleep(pause)
	rest, restErr := io.Copy(io.Discard, r.Body)
	if err := errors.Join(err, restErr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprint(w, first+rest)
}

// refuse answers at once and closes, whatever is still being sent.
func refuse(w http.ResponseWriter, _ *http.Request) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	_, _ = buf.WriteString("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 7\r\n\r\nnot you")
	_ = buf.Flush()
}

// finds prints the hard limit of open files and kernel settings, a line each.
func finds(sysctls []string) error {
	out, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max open files") && len(f) > 4 {
			fmt.Println("nofile", f[4])
		}
	}
	for _, name := range sysctls {
		value, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			return err
		}
		fmt.Println(name, strings.Join(strings.Fields(string(value)), " "))
	}
	return nil
}

// ask makes requests, as programs do that trust the platform's authority.
func ask(ctx context.Context, authorities io.Reader, requests []string) error {
	pem, err := io.ReadAll(io.LimitReader(authorities, 1<<20))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, text := range requests {
		var r struct{ Method, URL, User, Password, Body string }
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, strings.NewReader(r.Body))
		if err != nil {
			return err
		}
		if r.User != "" {
			req.SetBasicAuth(r.User, r.Password)
		}
		if r.Body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println("none", err)
			continue
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		resp.Body.Close()
		fmt.Println(resp.StatusCode, strings.Join(strings.Fields(string(body)), " "))
	}
	return nil
}

// echo says back what comes by UDP.
func echo(ctx context.Context) {
	conn, err := net.ListenPacket("udp4", ":8053")
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(buf[:n], from)
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
