package plane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/testpki"
)

const audience = "11111111-2222-3333-4444-555555555555"

// kubeBinary is the real thing: a plane can't be tested without it.
func kubeBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("MULTIPAAS_KUBE")
	if path == "" {
		path = filepath.Join("..", "..", "dist", "payload", "kube", "1.36", "kube")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no kube binary: run `embed/kube/build.sh dist/payload/kube/1.36/kube` or set MULTIPAAS_KUBE: %v", err)
	}
	return path
}

func newNamespace(t *testing.T) *netns.NS {
	t.Helper()
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := "mpt-plane-" + hex.EncodeToString(random[:])
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func newKeys(t *testing.T) Keys {
	t.Helper()
	var keys Keys
	var err [4]error
	keys.CACert, keys.CAKey, err[0] = pki.NewCA("workspace")
	keys.FrontProxyCACert, keys.FrontProxyCAKey, err[1] = pki.NewCA("front proxy")
	keys.SigningCACert, keys.SigningCAKey, err[2] = pki.NewCA("signing")
	keys.ServiceAccountKey, err[3] = pki.NewServiceAccountKey()
	keys.EncryptionKey = make([]byte, 32)
	_, _ = rand.Read(keys.EncryptionKey)
	if err := errors.Join(err[:]...); err != nil {
		t.Fatal(err)
	}
	return keys
}

func newConfig(t *testing.T, ns *netns.NS) Config {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{
		UID:    0x0fff_1000,
		ID:     strings.TrimPrefix(ns.Name(), "mpt-plane-"),
		Binary: kubeBinary(t),
		Dir:    filepath.Join(dir, "plane"),
		Netns:  ns.Path(),
		Plan: Plan{
			Services: netip.MustParsePrefix("10.43.0.0/16"),
			Machines: netip.MustParsePrefix("172.30.0.0/20"),
			Plane:    netip.MustParseAddr("172.30.0.1"),
		},
		ServerNames: []string{"00002a.k8s.lab.example"},
		Keys:        newKeys(t),
		Log:         slog.New(slog.DiscardHandler),
		Dial:        ns.DialContext,
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(filepath.Join(cfg.Dir, logFile)))
		}
	})
	return cfg
}

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8000):])
}

// start runs a plane until stop is called or the test ends.
func start(t *testing.T, cfg Config) (p *Plane, stop func()) {
	t.Helper()
	p = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	began := time.Now()
	go func() { ended <- p.Run(ctx, sync.OnceFunc(func() { close(ready) }), nil) }()
	select {
	case <-ready:
		t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	case err := <-ended:
		cancel()
		t.Fatalf("plane ended: %v", err)
	case <-time.After(time.Minute):
		cancel()
		<-ended
		t.Fatal("plane not ready after a minute")
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		began := time.Now()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("stop: %v", err)
			}
			t.Logf("stopped after %s", time.Since(began).Round(time.Millisecond))
		case <-time.After(stopTimeout + 5*time.Second):
			t.Error("plane did not stop")
		}
	}
	t.Cleanup(stop)
	return p, stop
}

func clientFor(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withToken is the way a tenant comes: the workspace's CA and a bearer token.
func withToken(p *Plane, token string) *rest.Config {
	cfg := rest.AnonymousClientConfig(p.RESTConfig())
	cfg.CAData, cfg.BearerToken, cfg.Dial = p.cfg.Keys.CACert, token, p.cfg.Dial
	return cfg
}

// issuer is a small OIDC issuer that only the namespace can reach.
type issuer struct {
	url    string
	caPEM  []byte
	signer jose.Signer
}

func newIssuer(t *testing.T, ns *netns.NS) *issuer {
	t.Helper()
	ca := testpki.New(t)
	certPEM, keyPEM, err := ca.Issue(pki.Request{CommonName: "issuer", Server: true, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: key, KeyID: "1", Algorithm: "ES256", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ns.Listen("tcp", "127.0.0.1:6444")
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{url: "https://datacenter.example:7443", caPEM: ca.CertPEM(), signer: signer}
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/.well-known/openid-configuration", answer(map[string]any{
		"issuer": i.url, "jwks_uri": "https://127.0.0.1:6444/keys",
		"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	}))
	mux.Handle("/keys", answer(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk.Public()}}))
	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { server.Close() })
	return i
}

func (i *issuer) oidc() OIDC {
	return OIDC{
		Issuer: i.url, DiscoveryURL: "https://127.0.0.1:6444/.well-known/openid-configuration",
		CAPEM: i.caPEM, Audience: audience,
	}
}

func (i *issuer) token(t *testing.T, email, audience string, groups ...string) string {
	t.Helper()
	now := time.Now()
	token, err := jwt.Signed(i.signer).Claims(jwt.Claims{
		Issuer: i.url, Subject: email, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(10 * time.Minute)),
	}).Claims(map[string]any{"email": email, "groups": groups}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// memory returns the anonymous and the file-backed memory of a process.
func memory(t *testing.T, pid int) (anon, file string) {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			anon = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "RssFile:"); ok {
			file = strings.TrimSpace(v)
		}
	}
	return anon, file
}

// servedSerial is the serial number of the certificate that the API server
// shows now.
func servedSerial(ctx context.Context, p *Plane) (string, error) {
	conn, err := p.cfg.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(Port)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{RootCAs: p.check.Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "00002a.k8s.lab.example"})
	if err := client.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return client.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}
