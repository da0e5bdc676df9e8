package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// outside floods what the platform shows to everybody, from one address that is
// neither B's nor a host's.
func (w *waste) outside(t *testing.T) {
	from := w.anotherAddress(t)
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	w.Must(t, dctest.Rival, "apps", "deploy", "never", "--image", "tool:1", "--port", "8080", "--timeout", "5m")
	for _, port := range []struct {
		number int
		what   string
	}{
		{443, "the balancer"}, {80, "the balancer's plain port"}, {7443, "the platform's API"}, {5000, "the registry"}, {6443, "the planes' router"},
	} {
		address := net.JoinHostPort(w.Server.Address().String(), strconv.Itoa(port.number))
		const tries = 4000
		var open, ended atomic.Int64
		files, most := w.openFiles(), 0
		w.by.during(t, "flood of connections to "+port.what, "one address outside", func() {
			stop := w.watch(&most, func() int { return w.openFiles() - files })
			defer stop()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for range tries {
				wg.Go(func() {
					conn, err := dialer.DialContext(ctx, "tcp", address)
					if err != nil {
						ended.Add(1)
						return
					}
					defer conn.Close()
					open.Add(1)
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					defer stop()
					if _, err := conn.Read(make([]byte, 1)); err != nil && ctx.Err() == nil {
						ended.Add(1)
					}
				})
			}
			wg.Wait()
		})
		w.record(t, attempt{What: fmt.Sprintf("hold %d connections to %s", tries, port.what), From: "one address outside",
			Want: "most are ended at once; at most 2000 more files of the server", Got: fmt.Sprintf("%d were taken, %d of %d ended early; %d more files", open.Load(), ended.Load(), tries, most),
			Blocked: open.Load() > 0 && ended.Load() >= tries/2 && most <= 2000})
	}
	w.waiting(t, dialer)
	w.Must(t, dctest.Rival, "apps", "delete", "never", "--yes", "--timeout", "5m")
}

// waiting has 1600 requests wait for A's own app, which never answers: over
// HTTP/2 a connection carries hundreds. Who gets another answer than 503, from an
// app that cannot take so many at once or on a connection that broke, asks again.
func (w *waste) waiting(t *testing.T, dialer net.Dialer) {
	const enough = 50
	answers := struct {
		sync.Mutex
		of map[string]int // answer, or error -> how often
	}{of: map[string]int{}}
	var refused atomic.Int64
	enoughRefused := make(chan struct{})
	files, most := w.openFiles(), 0
	w.by.during(t, "flood of requests that A's app leaves waiting", "one address outside, and A's app", func() {
		stop := w.watch(&most, func() int { return w.openFiles() - files })
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // what was refused is; the others would wait for ever
			select {
			case <-enoughRefused:
			case <-ctx.Done():
			}
			time.Sleep(5 * time.Second) // under this load B is to be served
			cancel()
		})
		for range 16 {
			client := w.Client()
			transport := client.Transport.(*http.Transport)
			transport.DisableKeepAlives = false
			transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, net.JoinHostPort(w.Server.Address().String(), "443"))
			}
			defer transport.CloseIdleConnections()
			for range 100 {
				wg.Go(func() {
					for ctx.Err() == nil {
						answer := getPage(ctx, client, "https://never.box.ops.beta."+datacenter.Domain+"/never")
						if ctx.Err() != nil {
							return
						}
						answers.Lock()
						answers.of[answer]++
						answers.Unlock()
						if strings.HasPrefix(answer, "503 Service Unavailable Too many requests wait") {
							if refused.Add(1) == enough {
								close(enoughRefused)
							}
							return
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
		}
		wg.Wait()
	})
	// 1250 may wait, of the 20,000 files that a host of the lab has; while they are
	// being made, connections take a second file each.
	w.record(t, attempt{What: "have 1600 requests wait for A's own app", From: "one address outside, and A's app", Want: "503 for what is too much; at most 2600 more files of the server",
		Got: fmt.Sprintf("%d answered by 503; %d more files; %v", refused.Load(), most, answers.of), Blocked: refused.Load() >= enough && most <= 2600})
}

// getPage returns what was answered, or which error there was, in words.
func getPage(ctx context.Context, client *http.Client, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Sprintf("%T", errors.Unwrap(err)) // its words name a port, each another
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return strings.Join(strings.Fields(string(body)), " ")
}

// anotherAddress gives this machine one more address in the lab's network.
func (w *waste) anotherAddress(t *testing.T) netip.Addr {
	t.Helper()
	address := w.Lab.Address()
	for range 200 {
		address = address.Next()
	}
	if !w.Lab.Subnet().Contains(address) {
		t.Fatalf("%s is not in %s", address, w.Lab.Subnet())
	}
	links, err := exec.Command("ip", "-o", "addr", "show", "to", w.Lab.Address().String()).Output()
	f := strings.Fields(string(links))
	if err != nil || len(f) < 2 {
		t.Fatalf("the lab's bridge: %q, %v", links, err)
	}
	whole := address.String() + "/32"
	if out, err := exec.Command("ip", "addr", "replace", whole, "dev", f[1]).CombinedOutput(); err != nil {
		t.Fatalf("add %s: %v: %s", whole, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", whole, "dev", f[1]).Run() })
	return address
}
