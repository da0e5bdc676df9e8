package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance/pki"
)

// TestMain lets the scripts call mp and multipaas, each a process of its own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mp": func() { os.Exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"multipaas": func() {
			app := &cli.App{Name: "multipaas", Commands: []*cli.Command{Command(), Token()}, HideHelpCommand: true}
			if err := app.Run(os.Args); err != nil {
				os.Exit(1)
			}
		},
	})
}

// TestScript runs testdata/script. Each script has a TLS server of its own that
// answers METHOD PATH with the file api/METHOD/PATH.json, or .STATUS.json for
// another status than 200, or .sse for a stream, and writes what it was asked
// into requests. It proves transport and rendering; what the real API answers
// is for testing/e2e. A PUT that is answered with 200 is of what is there already: it
// is refused, with 412, if it asks for nothing to be there.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			ca, cert := authority(t)
			api := &cannedAPI{dir: env.WorkDir, ca: ca}
			server := httptest.NewUnstartedServer(api)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			env.Defer(server.Close)
			env.Setenv("SERVER", server.URL)
			env.Setenv("MP_CONFIG", filepath.Join(env.WorkDir, "config"))
			env.Setenv("HOME", env.WorkDir)
			pinned, err := pki.ParseCertificate(ca)
			if err != nil {
				return err
			}
			env.Setenv("CA_HASH", pki.KeyHash(pinned))
			env.Setenv("WRONG_HASH", hex.EncodeToString(make([]byte, sha256.Size)))
			other, _ := authority(t)
			for name, data := range map[string][]byte{"ca.crt": ca, "other.crt": other} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), data, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":  checkCode,
			"login": loginInScript,
		},
	})
}

// checkCode runs a command and compares its exit code: code 4 mp ws create x.
func checkCode(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("run: %v", err)
		}
	}
	if want := args[0]; fmt.Sprint(got) != want {
		ts.Fatalf("exit code %d, want %s", got, want)
	}
}

// loginInScript writes a session and a chosen place as init, login and use do.
func loginInScript(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.Getenv("MP_CONFIG")
	conf := &Config{Server: ts.Getenv("SERVER"), CA: ts.ReadFile("ca.crt")}
	place := strings.Split(args[0], "/")
	for i, field := range []*string{&conf.Context.Account, &conf.Context.Organization, &conf.Context.Workspace} {
		if i < len(place) {
			*field = place[i]
		}
	}
	ts.Check(writeConfig(dir, conf))
	ts.Check(writeSession(dir, &Session{Server: conf.Server, Token: "secret", User: "me@acme.example", ExpiresAt: time.Now().Add(time.Hour)}))
}

// cannedAPI answers with files.
type cannedAPI struct {
	dir string
	ca  []byte
	mu  sync.Mutex
}

func (a *cannedAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	journal, err := os.OpenFile(filepath.Join(a.dir, "requests"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		query := r.URL.Query()
		query.Del("limit")
		line := r.Method + " " + r.URL.EscapedPath()
		if q := query.Encode(); q != "" {
			line += "?" + q
		}
		fmt.Fprintf(journal, "%s %s\n", line, body)
		journal.Close()
	}
	if r.URL.Path == "/v1/info" {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"version": "v1.0.0", "domain": "apps.example", "registry": "multipaas.example:5000", "kubernetesApi": "multipaas.example:6443", "kubernetesVersions": []string{"1.36"}, "ca": string(a.ca)})
		return
	}
	if r.URL.Path != "/v1/login" && r.URL.Path != "/v1/register" && r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	base := filepath.Join(a.dir, "api", r.Method, filepath.FromSlash(r.URL.Path))
	if data, err := os.ReadFile(base + ".sse"); err == nil {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Write(data)
		return
	}
	status := http.StatusOK
	data, err := os.ReadFile(base + ".json")
	if err != nil {
		found, _ := filepath.Glob(base + ".[0-9][0-9][0-9].json")
		if len(found) == 0 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"status":404,"title":"Not Found","detail":"there is no %s","code":"not-found","remedy":"check the name"}`, strings.TrimPrefix(r.URL.Path, "/v1/"))
			return
		}
		fmt.Sscanf(strings.TrimPrefix(found[0], base+"."), "%d", &status)
		data, _ = os.ReadFile(found[0])
	}
	if r.Method == http.MethodPut && status == http.StatusOK && r.Header.Get("If-None-Match") != "" {
		status, data = http.StatusPreconditionFailed, []byte(`{"status":412,"code":"precondition-failed"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(data)
}

// authority makes a certificate authority and a certificate of it for the
// loopback address.
func authority(t testing.TB) (caPEM []byte, leaf tls.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sign := func(template, parent *x509.Certificate, public, signer any) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER := sign(ca, ca, &caKey.PublicKey, caKey)
	server := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER := sign(server, ca, &leafKey.PublicKey, caKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}
}
