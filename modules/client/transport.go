package client

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
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
)

// Limits of one exchange with the server.
const (
	dialTimeout    = 10 * time.Second
	answerTimeout  = 2 * time.Minute // the slowest calls wait for a Kubernetes API behind the server
	maxAnswerBytes = 16 << 20        // a page of 500 workspaces is under 1 MB
	retries        = 3               // 0.2 + 0.4 + 0.8 s: a server that restarts
	firstBackoff   = 200 * time.Millisecond
)

// remote is the server's API. It trusts one certificate authority and follows
// no redirect, so that a token can't end up elsewhere.
type remote struct {
	server string
	token  string
	http   *http.Client
}

// newRemote trusts the authorities in caPEM and nobody else.
func newRemote(server string, caPEM []byte) (*remote, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, failf("run 'mp init' again with the platform's CA file", "the pinned authority of %s holds no certificate", server)
	}
	return remoteWithTLS(server, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}), nil
}

func remoteWithTLS(server string, conf *tls.Config) *remote {
	return &remote{server: server, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:       conf,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: answerTimeout,
			ForceAttemptHTTP2:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (r *remote) close() { r.http.CloseIdleConnections() }

// do sends in as JSON and reads the answer into out; either may be nil. header
// comes in pairs of name and value. An answer that is no success is a *Problem.
func (r *remote) do(ctx context.Context, method, path string, in, out any, header ...string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	resp, err := r.send(ctx, method, path, body, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := r.read(resp)
	if err != nil || out == nil || len(data) == 0 {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return failf("check that 'mp session' shows the API's address and that 'mp version' and the server's agree", "what %s answered is not understood: %v", r.server, err)
	}
	return nil
}

// read reads an answer whole. One that is no success is a *Problem.
func (r *remote) read(resp *http.Response) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer of %s: %w", r.server, err)
	case len(data) > maxAnswerBytes:
		return nil, failf("narrow the request down", "%s answered with more than %d MB", r.server, maxAnswerBytes>>20)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, problemOf(resp, data)
	}
	return data, nil
}

// send sends one request, again after some time if the server says that it had too
// many. Where nobody listened and the operation is
// idempotent it tries again: nothing has arrived.
func (r *remote) send(ctx context.Context, method, path string, body []byte, header []string) (*http.Response, error) {
	for attempt, backoff := 0, firstBackoff; ; attempt, backoff = attempt+1, backoff*2 {
		req, err := http.NewRequestWithContext(ctx, method, r.server+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("User-Agent", "mp/"+buildVersion())
		req.Header.Set("Accept", "application/json, application/problem+json")
		if method == http.MethodPatch {
			req.Header.Set("Content-Type", "application/merge-patch+json")
		} else if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if r.token != "" {
			req.Header.Set("Authorization", "Bearer "+r.token)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := r.http.Do(req)
		if err == nil {
			if attempt < retries && limiter.Wait(ctx, resp) {
				_ = resp.Body.Close()
				continue
			}
			return resp, nil
		}
		if method == http.MethodPost || attempt == retries || !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, reach(r.server, err)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return nil, reach(r.server, err)
		}
	}
}

// reach says whom was tried; url.Error would name method and path, which the
// user has not typed.
func reach(server string, err error) error {
	if inner, ok := errors.AsType[*url.Error](err); ok {
		err = inner.Err
	}
	return fmt.Errorf("reach %s: %w", server, err)
}

// problemOf reads the error in an answer, whoever wrote it.
func problemOf(resp *http.Response, data []byte) error {
	p := &Problem{}
	if !strings.Contains(resp.Header.Get("Content-Type"), "json") || json.Unmarshal(data, p) != nil {
		p = &Problem{}
	}
	p.Status = resp.StatusCode
	if p.Title == "" && p.Detail == "" && p.Remedy == "" {
		p.Remedy = "is this the API of MultiPaaS? 'mp session' shows the address"
	}
	return p
}

// path builds "/v1/accounts/acme" from its words, each escaped.
func apiPath(words ...string) string {
	path := "/v1"
	for _, w := range words {
		path += "/" + url.PathEscape(w)
	}
	return path
}
