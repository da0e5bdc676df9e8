// Package site is the datacenter in which the sections api, registry and ws
// measure: the real binary on hosts of a lab, brought up once for all of them by
// `lab up`, with its account acme, its organization web and its workspace shop.
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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/lab"
)

// Domain is below which apps are.
const Domain = "paas.internal"

// Site is a datacenter that stands.
type Site struct {
	Lab    *lab.Lab
	Dir    string // of the lab
	Server *lab.Host
	Pool   *x509.CertPool
	Token  string       // of the owner of acme
	Client *http.Client // keeps connections

	root string
}

const siteKey = "site"

// Up brings the datacenter up, or returns the one that stands.
func Up(ctx context.Context, env *measure.Env) (*Site, error) {
	if s, ok := env.Kept(siteKey).(*Site); ok {
		return s, nil
	}
	s := &Site{root: env.Root, Dir: filepath.Join(env.Root, ".lab", "bench-"+strconv.Itoa(os.Getpid()))}
	env.Keep(siteKey, nil, s.down)
	env.Logf("a datacenter comes up")
	if out, err := s.lab(ctx, "up"); err != nil {
		return nil, fmt.Errorf("lab up: %w\n%s", err, out)
	}
	var err error
	if s.Lab, err = lab.Open(s.Dir, env.Logf); err != nil {
		return nil, err
	}
	s.Server = s.Lab.Host("server")
	ca, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	s.Pool = x509.NewCertPool()
	if !s.Pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the platform's authority has no certificate")
	}
	s.Client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: s.Dial, MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{RootCAs: s.Pool}}}
	password, err := os.ReadFile(filepath.Join(s.Dir, "owner-password"))
	if err != nil {
		return nil, err
	}
	var login struct{ Token string }
	if err := s.Do(ctx, http.MethodPost, "/v1/login", map[string]string{"email": "owner@acme.example", "password": strings.TrimSpace(string(password))}, &login); err != nil {
		return nil, err
	}
	s.Token = login.Token
	env.Keep(siteKey, s, nil)
	return s, nil
}

func (s *Site) lab(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "dist", "lab"), append([]string{"-C", s.Dir}, args...)...)
	cmd.Dir = s.root
	return cmd.CombinedOutput()
}

// down takes the datacenter away, whatever of it stands.
func (s *Site) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if out, err := s.lab(ctx, "down"); err != nil {
		return fmt.Errorf("lab down: %w\n%s", err, out)
	}
	return nil
}

// Dial connects to the server, whatever host name is asked for.
func (s *Site) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(s.Server.Address().String(), port))
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
