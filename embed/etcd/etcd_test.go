package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/testpki"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	// Not t.TempDir: with the test's name in it the path is too long for a socket.
	dir, err := os.MkdirTemp("", "mp-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Config{
		Dir:    filepath.Join(dir, "etcd"),
		Name:   "one",
		Socket: filepath.Join(dir, "run", "etcd.sock"),
		CA:     testpki.New(t),
		NoSync: true,
	}
}

// run runs a member until stop is called, at the latest until the test ends.
func run(t *testing.T, cfg Config) (s *Server, stop func()) {
	t.Helper()
	s = New(cfg)
	return s, runServer(t, s)
}

func runServer(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-ended:
		stopped = true
		t.Fatalf("Run: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready after 20 s")
	}
	return stop
}

// as returns a client with a certificate for user that issuer signed, and that
// trusts trusted.
func as(t *testing.T, s *Server, user string, issuer, trusted *pki.CA, endpoint string) *clientv3.Client {
	t.Helper()
	cert, key, err := issuer.Issue(pki.Request{CommonName: user, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint},
		TLS:       &tls.Config{RootCAs: trusted.Pool(), Certificates: []tls.Certificate{pair}},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// root is a client that may do everything.
func (s *Server) root(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestTwiceOnOneDirectory(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, stop := run(t, cfg)
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("health: %v", err)
	}
	put(t, s, "k", "v")

	// A second one at the same time.
	for what, other := range map[string]func(*Config){
		"data directory": func(c *Config) { c.Socket += "2" },
		"socket":         func(c *Config) { c.Dir += "2" },
	} {
		second := cfg
		other(&second)
		began := time.Now()
		err := New(second).Run(t.Context(), func() { t.Error("a second member is ready") })
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), what) {
			t.Errorf("a second member on the same %s: %v, want ErrInUse", what, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it took %v to say so", d)
		}
	}

	stop()
	s, _ = run(t, cfg)
	if got := get(t, s, "k"); got != "v" {
		t.Errorf("after a restart: k = %q, want v", got)
	}
	total, used, err := s.DBSize(t.Context())
	if err != nil || total <= 0 || used <= 0 || used > total {
		t.Errorf("size: %d in use of %d, %v", used, total, err)
	}
}

func put(t *testing.T, s *Server, key, value string) {
	t.Helper()
	if err := s.withClient(func(c *clientv3.Client) error {
		_, err := c.Put(t.Context(), key, value)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *Server, key string) (value string) {
	t.Helper()
	if err := s.withClient(func(c *clientv3.Client) error {
		resp, err := c.Get(t.Context(), key)
		if err == nil && len(resp.Kvs) > 0 {
			value = string(resp.Kvs[0].Value)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestUsersSeeTheirPrefixOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := testConfig(t)
	s, _ := run(t, cfg)
	for range 2 { // twice is no error
		if err := s.EnsureUser(ctx, "ws-1", "/workspaces/1/"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.EnsureUser(ctx, "ws-2", "/workspaces/2/"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "/multipaas/secret", "x")

	one := as(t, s, "ws-1", cfg.CA, cfg.CA, s.Endpoint())
	two := as(t, s, "ws-2", cfg.CA, cfg.CA, s.Endpoint())
	if _, err := one.Put(ctx, "/workspaces/1/a", "1"); err != nil {
		t.Errorf("put below its own prefix: %v", err)
	}
	if _, err := one.Get(ctx, kubeCompactionKey); err != nil {
		t.Errorf("get %s: %v", kubeCompactionKey, err)
	}
	for what, err := range map[string]error{
		"get of another's":        errOf(two.Get(ctx, "/workspaces/1/a")),
		"list of another's":       errOf(two.Get(ctx, "/workspaces/1/", clientv3.WithPrefix())),
		"list of all":             errOf(two.Get(ctx, "/", clientv3.WithPrefix())),
		"get of the platform's":   errOf(two.Get(ctx, "/multipaas/secret")),
		"put to another's":        errOf(two.Put(ctx, "/workspaces/1/a", "2")),
		"put to compact_rev_key":  errOf(two.Put(ctx, kubeCompactionKey, "2")),
		"delete of another's":     errOf(two.Delete(ctx, "/workspaces/1/", clientv3.WithPrefix())),
		"a prefix that begins so": errOf(two.Get(ctx, "/workspaces/20/a")),
	} {
		if !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("%s: %v, want permission denied", what, err)
		}
	}
	watch := <-two.Watch(ctx, "/workspaces/1/", clientv3.WithPrefix())
	if watch.Err() == nil {
		t.Error("a watch of another's prefix was granted")
	}
	stranger := as(t, s, "nobody", cfg.CA, cfg.CA, s.Endpoint())
	if err := errOf(stranger.Get(ctx, "/workspaces/1/a")); err == nil {
		t.Error("who is no user was let in")
	}

	// Another prefix replaces the first.
	if err := s.EnsureUser(ctx, "ws-2", "/workspaces/3/"); err != nil {
		t.Fatal(err)
	}
	if err := errOf(two.Get(ctx, "/workspaces/2/a")); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("get below the former prefix: %v, want permission denied", err)
	}
	for range 2 {
		if err := s.RemoveUser(ctx, "ws-1", "/workspaces/1/"); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, s, "/workspaces/1/a"); got != "" {
		t.Errorf("after RemoveUser its key is still there: %q", got)
	}
	if err := errOf(one.Put(ctx, "/workspaces/1/a", "1")); err == nil {
		t.Error("a removed user still writes")
	}
	for _, bad := range [][2]string{{"root", "/x/"}, {"", "/x/"}, {peerName, "/x/"}, {"a", ""}, {"a", "/"}, {"a", "/x"}} {
		if err := s.EnsureUser(ctx, bad[0], bad[1]); err == nil {
			t.Errorf("EnsureUser(%q, %q): want an error", bad[0], bad[1])
		}
	}
}

func errOf[R any](_ R, err error) error { return err }

// TestVerification shows that both sides look at the other's certificate.
func TestVerification(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, _ := run(t, cfg)
	other := testpki.New(t)

	// The same socket under another name: the name is what is verified.
	alias := filepath.Join(filepath.Dir(cfg.Socket), "alias.sock")
	if err := os.Symlink(cfg.Socket, alias); err != nil {
		t.Fatal(err)
	}
	plain, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + cfg.Socket}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plain.Close() })
	for what, c := range map[string]*clientv3.Client{
		"a server of an authority that isn't trusted": as(t, s, Root, cfg.CA, other, s.Endpoint()),
		"a client of another authority":               as(t, s, Root, other, cfg.CA, s.Endpoint()),
		"a socket that the certificate doesn't name":  as(t, s, Root, cfg.CA, cfg.CA, "unixs://"+alias),
		"plain text": plain,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := c.Get(ctx, "k"); err == nil {
			t.Errorf("%s was accepted", what)
		}
		cancel()
	}
	good := as(t, s, Root, cfg.CA, cfg.CA, s.Endpoint())
	if _, err := good.Get(t.Context(), "k"); err != nil {
		t.Errorf("root: %v", err)
	}
	// The alias does lead there: it was its name that was refused.
	conn, err := tls.Dial("unix", alias, &tls.Config{RootCAs: cfg.CA.Pool(), ServerName: s.ServerName(), NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatalf("the alias: %v", err)
	}
	_ = conn.Close()
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, stop := run(t, cfg)
	serial := func() string {
		raw, err := tls.LoadX509KeyPair(s.file("server.crt"), s.file("server.key"))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(raw.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert.SerialNumber.String()
	}
	first := serial()
	if err := s.renew(t.Context()); err != nil || serial() != first {
		t.Errorf("renewed at once (%v)", err)
	}
	// One that is good for another minute only.
	cert, key, err := cfg.CA.Issue(pki.Request{CommonName: peerName, Hosts: []string{s.ServerName(), "localhost", peerAddress},
		Server: true, Client: true, Life: time.Minute})
	if err == nil {
		err = pki.WriteFiles(s.file("server.crt"), s.file("server.key"), cert, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	first = serial()
	if err := s.renew(t.Context()); err != nil || serial() == first {
		t.Errorf("not renewed in the last minute (%v)", err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("a new connection after renewal: %v", err)
	}

	// A half-written pair and another authority mend themselves.
	stop()
	if err := os.Remove(s.file("server.key")); err != nil {
		t.Fatal(err)
	}
	cfg.CA = testpki.New(t)
	s, _ = run(t, cfg)
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("with a new authority: %v", err)
	}
}

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	err := New(Config{Socket: "relative/" + strings.Repeat("x", 120)}).Run(t.Context(), func() {})
	for _, want := range []string{"Dir is not set", "Name is not set", "CA is not set", "not an absolute path", "shorter run directory"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q in it", err, want)
		}
	}
}
