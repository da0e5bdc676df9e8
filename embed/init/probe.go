package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"
)

const (
	// A probe is asked often at first, since containerd is up after 100 ms,
	// and seldom later, since a kubelet that waits for something waits long.
	firstProbeDelay = 20 * time.Millisecond
	lastProbeDelay  = 500 * time.Millisecond
	probeTimeout    = 5 * time.Second
)

// probe is a question whose answer says that a service serves.
type probe struct{ kind, target string }

// wait asks until the answer is yes or ctx is done.
func (p probe) wait(ctx context.Context) error {
	delay := firstProbeDelay
	for {
		if err := p.ask(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, lastProbeDelay)
	}
}

func (p probe) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch p.kind {
	case "":
		return nil
	case "unix", "tcp":
		return dial(ctx, p.kind, p.target)
	case "http":
		return get(ctx, p.target)
	}
	info, err := os.Stat(p.target)
	if err != nil {
		return err
	}
	if p.kind == "path" && info.Mode().Type() == fs.ModeSocket {
		return dial(ctx, "unix", p.target)
	}
	return nil
}

func dial(ctx context.Context, network, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		Proxy:             nil,
		// Health URLs are on this machine's own loopback, with certificates
		// that the services sign themselves.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	io.CopyN(io.Discard, response.Body, 4096)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}
