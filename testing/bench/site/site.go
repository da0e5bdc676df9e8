// Package site is the datacenter in which the sections api, registry and ws
// measure: the real binary on hosts of a lab, brought up once for all of them by
// testing/datacenter, with its account acme, its organization web and its workspace shop.
//
// Parties: those sections, and testing/bench, which ends it.
package site

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
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
)

// Site is a datacenter that stands.
type Site struct {
	Lab    *lab.Lab
	Dir    string // of the lab
	Server *lab.Host
	Pool   *x509.CertPool
	Token  string       // of the owner of acme
	Client *http.Client // keeps connections
}

const siteKey = "site"

// Up brings the datacenter up, or returns the one that stands.
func Up(ctx context.Context, env *measure.Env) (*Site, error) {
	if s, ok := env.Kept(siteKey).(*Site); ok {
		return s, nil
	}
	l, err := lab.New(ctx, lab.Options{Name: "bench", Binary: env.Binary, Logf: env.Logf})
	if err != nil {
		return nil, err
	}
	env.Keep(siteKey, nil, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		return l.Close(ctx)
	})
	env.Logf("a datacenter comes up")
	if _, err := datacenter.OnLab(ctx, l, env.Binary, datacenter.Usual, nil); err != nil {
		return nil, err
	}
	s := &Site{Lab: l, Dir: l.Dir(), Server: l.Host("server"), Pool: x509.NewCertPool()}
	ca, err := os.ReadFile(filepath.Join(s.Dir, datacenter.CAFile))
	if err != nil {
		return nil, err
	}
	if !s.Pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the platform's authority has no certificate")
	}
	s.Client = &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext:         s.Dial,
			MaxIdleConnsPerHost: 64,
			TLSClientConfig:     &tls.Config{RootCAs: s.Pool},
		},
	}
	password, err := s.Password()
	if err != nil {
		return nil, err
	}
	var login struct{ Token string }
	if err := s.Do(ctx, http.MethodPost, "/v1/login", map[string]string{"email": datacenter.OwnerEmail, "password": password}, &login); err != nil {
		return nil, err
	}
	s.Token = login.Token
	env.Keep(siteKey, s, nil)
	return s, nil
}

// Password is that of the owner of acme.
func (s *Site) Password() (string, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir, datacenter.OwnerPassword))
	return strings.TrimSpace(string(data)), err
}

// Dial connects to the server, whatever host name is asked for.
func (s *Site) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return datacenter.Dialer(s.Server.Address())(ctx, network, address)
}

// API is the address of the API.
func (s *Site) API() string { return "https://" + s.Server.Address().String() + ":7443" }

// StatusError is an answer of the API that is not 2xx.
type StatusError struct {
	Status int
	Text   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Text) }

// Do asks the API as the owner of acme. A nil out discards the answer.
func (s *Site) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.API()+path, body)
	if err != nil {
		return err
	}
	if s.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %w", method, path, &StatusError{resp.StatusCode, string(data)})
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// ServerPID is the server's process, as we see it.
func (s *Site) ServerPID() (int, error) {
	tree, err := measure.Tree(s.Server.PID())
	if err != nil {
		return 0, err
	}
	for _, pid := range tree {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(line, []byte("multipaas\x00server\x00")) {
			return pid, nil
		}
	}
	return 0, errors.New("the server does not run")
}
