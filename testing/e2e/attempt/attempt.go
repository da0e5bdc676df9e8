// Package attempt is what programs in pods of the suites have in common: they
// serve until they are stopped, and try to reach what a tenant may or may not.
//
// Parties: testing/e2e/probe and testing/e2e/attack/tool.
package attempt

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience is for one attempt: dropped packets are told by it.
const patience = 3 * time.Second

// Serve serves until ctx is done, over TLS if there is a certificate's file.
func Serve(ctx context.Context, address string, handler http.Handler, certificate, key string) error {
	s := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() {
		if certificate != "" {
			done <- s.ListenAndServeTLS(certificate, key)
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

// Each makes the attempts at once, some hundreds at a time, so that dropped
// packets cost one time-out, and prints each result when it has it.
func Each(targets []string, try func(target string) string) {
	var wg sync.WaitGroup
	var out sync.Mutex
	places := make(chan struct{}, 500)
	for _, t := range targets {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			outcome := try(t)
			out.Lock()
			defer out.Unlock()
			fmt.Println(t, outcome)
		})
	}
	wg.Wait()
}

// Reach tries tcp:HOST:PORT, tcp@PORT:HOST:PORT from that port of its own,
// udp:HOST:PORT or http:URL, and says "open ..." or "closed ...".
func Reach(ctx context.Context, target string) string {
	network, address, found := strings.Cut(target, ":")
	if !found {
		return "closed unknown target"
	}
	if network == "http" {
		return get(ctx, address)
	}
	d := net.Dialer{Timeout: patience}
	if only, own, ok := strings.Cut(network, "@"); ok {
		number, _ := strconv.Atoi(own)
		network, d.LocalAddr = only, &net.TCPAddr{Port: number}
		d.Control = func(_, _ string, c syscall.RawConn) (err error) { // others may use the port too
			_ = c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
			return err
		}
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return "closed " + err.Error()
	}
	defer conn.Close()
	if network == "tcp" {
		return "open connected"
	}
	// An answer to a DNS question is a sign of life, and so is ICMP's "nobody
	// listens here".
	_ = conn.SetDeadline(time.Now().Add(patience))
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01")
	if _, err := conn.Write(question); err != nil {
		return "closed " + err.Error()
	}
	if _, err := conn.Read(make([]byte, 512)); err != nil {
		return "closed " + err.Error()
	}
	return "open answered"
}

func get(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "closed " + err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "closed " + err.Error()
	}
	_ = resp.Body.Close()
	return "open " + resp.Status
}
