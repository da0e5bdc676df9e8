package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newCA(t *testing.T, name string) *CA {
	t.Helper()
	cert, key, err := NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ParseCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// handshake says whether a client and a server with these settings agree.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, err = io.WriteString(c, "x")
			c.Close()
		}
		served <- err
	}()
	d := tls.Dialer{Config: client}
	c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err == nil {
		_, err = io.ReadAll(c)
		c.Close()
	} else {
		ln.Close()
	}
	return errors.Join(err, <-served)
}

func pair(t *testing.T, ca *CA, r Request) tls.Certificate {
	t.Helper()
	cert, key, err := ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIssuedCertificatesDoWhatTheyAreFor(t *testing.T) {
	ca, other := newCA(t, "ours"), newCA(t, "theirs")
	server := pair(t, ca, Request{CommonName: "server", Hosts: []string{"127.0.0.1", "api.example"}, Server: true})
	client := pair(t, ca, Request{CommonName: "node1", Organizations: []string{"multipaas:nodes"}, Client: true})
	stranger := pair(t, other, Request{CommonName: "node1", Client: true})
	mutual := &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	for _, c := range []struct {
		what   string
		client *tls.Config
		ok     bool
	}{
		{"by address", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{client}}, true},
		{"by name", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{client}, ServerName: "api.example"}, true},
		{"by another name", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{client}, ServerName: "x.example"}, false},
		{"another authority is trusted", &tls.Config{RootCAs: other.Pool(), Certificates: []tls.Certificate{client}}, false},
		{"client of another authority", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{stranger}}, false},
		{"server's certificate as client", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{server}}, false},
		{"no certificate", &tls.Config{RootCAs: ca.Pool()}, false},
	} {
		if err := handshake(t, mutual, c.client); (err == nil) != c.ok {
			t.Errorf("%s: got %v, want it to go well: %v", c.what, err, c.ok)
		}
	}
	leaf := client.Leaf
	if leaf.Subject.CommonName != "node1" || len(leaf.Subject.Organization) != 1 || leaf.Subject.Organization[0] != "multipaas:nodes" {
		t.Errorf("got subject %v", leaf.Subject)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 90*24*time.Hour || life > 91*24*time.Hour {
		t.Errorf("got a life of %v, want 90 days", life)
	}
	if leaf.IsCA {
		t.Error("a leaf is an authority")
	}
}

func TestSignTakesOnlyTheKey(t *testing.T) {
	ca := newCA(t, "ours")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	greedy, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: greedy})
	certPEM, err := ca.Sign(csr, Request{CommonName: "node1", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.DNSNames) != 0 || cert.Subject.CommonName != "node1" {
		t.Errorf("the request chose: %v %v", cert.DNSNames, cert.Subject)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("not the key of the request")
	}

	broken := append([]byte(nil), greedy...)
	broken[len(broken)-1] ^= 1 // in the signature
	_, err = ca.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: broken}), Request{CommonName: "x"})
	if err == nil || !strings.Contains(err.Error(), "signature does not match its key") {
		t.Errorf("got %v, want a word about the signature", err)
	}
	big, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, big)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})} {
		if _, err := ca.Sign(bad, Request{CommonName: "x"}); err == nil {
			t.Errorf("signed %q", bad)
		}
	}
	keyPEM, csrPEM, err := NewKeyCSR()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err = ca.Sign(csrPEM, Request{CommonName: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Errorf("NewKeyCSR's key and the certificate: %v", err)
	}
}

func TestLoadOrCreateCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first, err := LoadOrCreateCA(dir, "ours")
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateCA(dir, "another name")
	if err != nil {
		t.Fatal(err)
	}
	if first.KeyHash() != second.KeyHash() || len(first.KeyHash()) != 64 {
		t.Errorf("got %q, then %q", first.KeyHash(), second.KeyHash())
	}
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the key's mode: %v, %v", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateCA(dir, "ours"); err == nil {
		t.Error("a lost key was replaced: everybody who trusted the old one is cut off")
	}
	// What a crash between the two files leaves.
	dir = filepath.Join(t.TempDir(), "crash")
	if _, err := LoadOrCreateCA(dir, "ours"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateCA(dir, "ours"); err != nil {
		t.Errorf("after a crash on the first start: %v", err)
	}
	a, b := newCA(t, "a"), newCA(t, "b")
	if _, err := ParseCA(a.CertPEM(), b.KeyPEM()); err == nil {
		t.Error("took the key of another authority")
	}
}

func TestNeedsRenewal(t *testing.T) {
	ca := newCA(t, "ours")
	cert, _, err := ca.Issue(Request{CommonName: "x", Life: 30 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, false}, {19 * time.Hour, false}, {20*time.Hour + time.Minute, true}, {40 * time.Hour, true}} {
		if got, err := NeedsRenewal(cert, time.Now().Add(c.after)); err != nil || got != c.want {
			t.Errorf("after %v: got %v, %v, want %v", c.after, got, err, c.want)
		}
	}
	if _, err := NeedsRenewal([]byte("x"), time.Now()); err == nil {
		t.Error("no error for what is no certificate")
	}
}

func TestServiceAccountKey(t *testing.T) {
	key, err := NewServiceAccountKey()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(key), "-----BEGIN EC PRIVATE KEY-----") {
		t.Errorf("got %.40q", key)
	}
}

// The certificate is renewed at two thirds of its life, in a process that goes
// on, and again if that fails at first.
func TestRenewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ours")
		req := Request{CommonName: "server", Hosts: []string{"127.0.0.1"}, Server: true, Life: 30 * 24 * time.Hour}
		dir := t.TempDir()
		var issued, failures atomic.Int32
		r := NewRenewer(RenewerConfig{
			Name: "test", CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), Accept: SameRequest(ca, req),
			Issue: func(ctx context.Context) ([]byte, []byte, error) {
				if failures.Load() > 0 {
					failures.Add(-1)
					return nil, nil, errors.New("the server is away")
				}
				issued.Add(1)
				return ca.Issue(req)
			},
		})
		if _, err := r.GetCertificate(nil); err == nil {
			t.Error("a certificate before the first was issued")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error)
		go func() { done <- r.Run(ctx, func() { close(ready) }) }()
		<-ready
		first, err := r.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(19 * 24 * time.Hour)
		if got := issued.Load(); got != 1 {
			t.Errorf("after 19 of 30 days: issued %d times, want once", got)
		}
		failures.Store(3)
		time.Sleep(4 * 24 * time.Hour)
		if got := issued.Load(); got != 2 {
			t.Errorf("after 23 of 30 days, with three failures: issued %d times, want twice", got)
		}
		second, err := r.GetCertificate(nil)
		if err != nil || second.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
			t.Errorf("the same certificate after renewal, %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}

		// After a restart the one on disk will do, unless other names are wanted.
		again := NewRenewer(RenewerConfig{Name: "test", CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), Accept: SameRequest(ca, req),
			Issue: func(context.Context) ([]byte, []byte, error) { return nil, nil, errors.New("not needed") }})
		if err := again.Ensure(t.Context()); err != nil {
			t.Errorf("a good certificate on disk was not taken: %v", err)
		}
		moved := req
		moved.Hosts = []string{"127.0.0.2"}
		renamed := NewRenewer(RenewerConfig{Name: "test", CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), Accept: SameRequest(ca, moved), Issue: IssueFrom(ca, moved)})
		if err := renamed.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := renamed.GetCertificate(nil)
		if err != nil || !got.Leaf.IPAddresses[0].Equal(net.ParseIP("127.0.0.2")) {
			t.Errorf("got %v, %v, want the new address", got.Leaf.IPAddresses, err)
		}
	})
}
