package node

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestStorageCertificate: a node gets a certificate by which other hosts know it, of an authority that
// is good for nothing else; one that was removed gets none.
func TestStorageCertificate(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := pki.NewKeyCSR()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(csr []byte) (res wire.JoinResponse, err error) {
		err = c.call(t.Context(), wire.StorageCertificatePath, wire.JoinRequest{Name: "another", CSR: csr}, &res)
		return res, err
	}
	res, err := ask(csr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.ParseCertificate(res.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(res.CA)
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Error(err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: p.ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("it is the platform's authority's")
	}
	if cert.Subject.CommonName != n.UID || len(cert.Subject.Organization) > 0 || time.Until(cert.NotAfter) < 4*365*24*time.Hour {
		t.Errorf("it is for %v until %v", cert.Subject, cert.NotAfter)
	}
	if _, err := ask([]byte("none")); err == nil {
		t.Error("no request was signed")
	}
	_, err = store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error {
		n.Spec.Lost, n.DeletedAt = true, new(time.Now())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // until the cache has heard of it
		_, err = ask(csr)
	}
	if !errors.Is(err, errGone) {
		t.Errorf("a node that was removed: %v", err)
	}
}
