package pki

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"
)

// FuzzSign signs any bytes as a certificate request, alone and as the DER in a
// good frame: what a certificate says comes from the platform alone.
func FuzzSign(f *testing.F) {
	certPEM, keyPEM, err := NewCA("test")
	if err != nil {
		f.Fatal(err)
	}
	ca, err := ParseCA(certPEM, keyPEM)
	if err != nil {
		f.Fatal(err)
	}
	_, csr, err := NewKeyCSR()
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(csr)
	f.Add(csr)
	f.Add(block.Bytes)
	f.Add(certPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, text := range [][]byte{data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: data})} {
			out, err := ca.Sign(text, Request{CommonName: "n1", Organizations: []string{"o"}, Hosts: []string{"n1.example"}, Client: true, Life: time.Hour})
			if (err == nil) != (CheckCSR(text) == nil) {
				t.Errorf("Sign says %v, CheckCSR %v", err, CheckCSR(text))
			}
			if err != nil {
				continue
			}
			c, err := ParseCertificate(out)
			if err != nil {
				t.Fatal(err)
			}
			if c.IsCA || c.Subject.String() != "CN=n1,O=o" || !slices.Equal(c.DNSNames, []string{"n1.example"}) || len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0 ||
				!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || time.Until(c.NotAfter) > time.Hour+time.Minute {
				t.Errorf("%q gives a certificate for %v, %v, %v", text, c.Subject, c.DNSNames, c.ExtKeyUsage)
			}
		}
	})
}

// FuzzParseCA reads what operators and stores give as an authority: it is taken
// only with the certificate's own key, and then signs.
func FuzzParseCA(f *testing.F) {
	certPEM, keyPEM, err := NewCA("test")
	if err != nil {
		f.Fatal(err)
	}
	_, otherKey, err := NewCA("other")
	if err != nil {
		f.Fatal(err)
	}
	ca, err := ParseCA(certPEM, keyPEM)
	if err != nil {
		f.Fatal(err)
	}
	leaf, leafKey, err := ca.Issue(Request{CommonName: "leaf"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(certPEM, keyPEM)
	f.Add(certPEM, otherKey)
	f.Add(leaf, leafKey)
	f.Add(append(leaf, certPEM...), keyPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	_, csr, err := NewKeyCSR()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, certPEM, keyPEM []byte) {
		_, _ = NeedsRenewal(certPEM, time.Now())
		ca, err := ParseCA(certPEM, keyPEM)
		if err != nil {
			return
		}
		out, err := ca.Sign(csr, Request{CommonName: "x", Client: true})
		if err != nil {
			return // an authority with a kind of key that can't sign this
		}
		c, err := ParseCertificate(out)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckSignatureFrom(ca.cert); err != nil && ca.cert.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("what it signs is not its own: %v", err)
		}
	})
}
