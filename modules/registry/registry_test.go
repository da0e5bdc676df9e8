package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/testpki"
)

// platform is what the registry finds around it: an authority, an issuer of
// tokens with users, organizations and nodes.
type platform struct {
	ca  *pki.CA
	key *ecdsa.PrivateKey

	mu    sync.Mutex
	users map[string][]string // name: the "ACCOUNT/ORGANIZATION" he is in; "*" is a sysadmin
	orgs  map[string]bool
	runs  map[string]bool // "NODE WORKSPACE"
}

func newPlatform(t testing.TB) *platform {
	t.Helper()
	ca := testpki.New(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &platform{
		ca: ca, key: key,
		users: map[string][]string{"ann": {"acme/web"}, "bob": {"umbrella/lab"}, "root": {"*"}},
		orgs:  map[string]bool{"acme/web": true, "acme/ops": true, "umbrella/lab": true},
		runs:  map[string]bool{"node1 acme/web/shop": true, "node2 umbrella/lab/virus": true},
	}
	return p
}

func (p *platform) tls(t testing.TB) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{p.certificate(t, pki.Request{CommonName: "server", Hosts: []string{"127.0.0.1", "localhost"}, Server: true})}, ClientCAs: p.ca.Pool()}
}

func (p *platform) certificate(t testing.TB, r pki.Request) tls.Certificate {
	t.Helper()
	certPEM, keyPEM, err := p.ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (p *platform) Exists(account, organization string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orgs[account+"/"+organization]
}

func (p *platform) Runs(cert *x509.Certificate, workspace string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runs[cert.Subject.CommonName+" "+workspace]
}

func (p *platform) keys(context.Context) (*jose.JSONWebKeySet, error) {
	return &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}}, nil
}

// token stands at TokenPath: it grants of what is asked what the user may.
func (p *platform) token(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	p.mu.Lock()
	orgs := p.users[user]
	p.mu.Unlock()
	if orgs == nil || password != "secret" {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
		return
	}
	var granted []map[string]any
	for _, scope := range r.URL.Query()["scope"] {
		for _, one := range strings.Fields(scope) {
			parts := strings.Split(one, ":")
			org := strings.Join(strings.SplitN(parts[1], "/", 3)[:min(2, strings.Count(parts[1], "/")+1)], "/")
			if len(parts) == 3 && (slices.Contains(orgs, "*") || slices.Contains(orgs, org)) {
				granted = append(granted, map[string]any{"type": parts[0], "name": parts[1], "actions": strings.Split(parts[2], ",")})
			}
		}
	}
	json.NewEncoder(w).Encode(map[string]string{"token": p.sign(jwt.Claims{Subject: user}, granted)})
}

// sign makes a token; what is missing in c is filled in.
func (p *platform) sign(c jwt.Claims, access any) string {
	if c.Issuer == "" {
		c.Issuer = "test-issuer"
	}
	if c.Audience == nil {
		c.Audience = jwt.Audience{"test-service"}
	}
	if c.Expiry == nil {
		c.Expiry = jwt.NewNumericDate(time.Now().Add(time.Minute))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}, nil)
	if err != nil {
		panic(err)
	}
	s, err := jwt.Signed(signer).Claims(c).Claims(map[string]any{"access": access}).Serialize()
	if err != nil {
		panic(err)
	}
	return s
}

// scope is a token for one repository.
func (p *platform) scope(repository string, actions ...string) string {
	return p.sign(jwt.Claims{Subject: "ann"}, []map[string]any{{"type": "repository", "name": repository, "actions": actions}})
}

// start runs a registry for the length of the test and returns its host:port.
func start(t testing.TB, p *platform, change func(*Config)) (*Registry, string) {
	t.Helper()
	cfg := Config{
		Addr: "127.0.0.1:0", Dir: t.TempDir(), TLS: p.tls(t),
		Names:    []string{"registry.example:5000"},
		Tokens:   Tokens{Issue: http.HandlerFunc(p.token), Service: "test-service", Issuer: "test-issuer", Keys: p.keys},
		NodeRuns: p.Runs, HasOrganization: p.Exists, MinFreeBytes: 1 << 20,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := parttest.Run(t, r.Run)
	t.Cleanup(stop)
	return r, r.addr.String()
}

// image writes an image of the given number of layers as an OCI layout.
func image(t testing.TB, layers int) (dir string, img v1.Image) {
	t.Helper()
	img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for range layers {
		layer, err := random.Layer(64<<10, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	dir = t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "x"})); err != nil {
		t.Fatal(err)
	}
	return dir, img
}

// skopeo runs skopeo as a user and returns what it printed.
func skopeo(t *testing.T, p *platform, user string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), p.ca.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	full := []string{"--policy", filepath.Join(dir, "policy.json"), "--command-timeout", "20s", args[0]}
	if err := os.WriteFile(filepath.Join(dir, "policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	switch {
	case args[0] == "copy" && strings.HasPrefix(args[1], "docker:"):
		full = append(full, "--src-creds", user+":secret", "--src-cert-dir", dir)
	case args[0] == "copy":
		full = append(full, "--dest-creds", user+":secret", "--dest-cert-dir", dir)
	default:
		full = append(full, "--creds", user+":secret", "--cert-dir", dir)
	}
	cmd := exec.Command("skopeo", append(full, args[1:]...)...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ask sends a request, with a token unless it is empty or with a node's
// certificate, and returns status, header and body.
type asker struct {
	t      *testing.T
	p      *platform
	host   string
	client *http.Client
	header http.Header
}

func asUser(t *testing.T, p *platform, host, token string) *asker {
	a := &asker{t: t, p: p, host: host, header: http.Header{}, client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool()}}}}
	a.header["Accept"] = manifestTypes
	if token != "" {
		a.header.Set("Authorization", "Bearer "+token)
	}
	t.Cleanup(a.client.CloseIdleConnections)
	return a
}

func asNode(t *testing.T, p *platform, host, node, workspace string) *asker {
	a := asUser(t, p, host, "")
	a.header.Set("X-Multipaas-Workspace", workspace)
	a.client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{
		p.certificate(t, pki.Request{CommonName: node, Organizations: []string{"multipaas:nodes"}, Client: true}),
	}
	return a
}

func (a *asker) do(method, path string, body io.Reader, header ...string) (int, http.Header, string) {
	a.t.Helper()
	req, err := http.NewRequest(method, "https://"+a.host+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header = a.header.Clone()
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// want checks the status of a request and that the body has a text.
func (a *asker) want(status int, contains, method, path string, header ...string) string {
	a.t.Helper()
	got, _, body := a.do(method, path, nil, header...)
	if got != status || !strings.Contains(body, contains) {
		a.t.Errorf("%s %s: got %d %s, want %d with %q", method, path, got, body, status, contains)
	}
	return body
}

func push1(t *testing.T, p *platform, host, user, name string, layers int) v1.Image {
	t.Helper()
	dir, img := image(t, layers)
	if out, err := skopeo(t, p, user, "copy", "oci:"+dir+":x", "docker://"+host+"/"+name); err != nil {
		t.Fatalf("push %s: %v\n%s", name, err, out)
	}
	return img
}

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func layersOf(t *testing.T, img v1.Image) []string {
	t.Helper()
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range ls {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d.String())
	}
	return out
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
