// Package pki is the appliance's certificate authority, the certificates it
// issues and their renewal. All keys are ECDSA P-256.
//
// Parties: the server owns the platform's authority and one for each
// workspace; nodes and parts ask for certificates, by CSR where the key must
// not travel. Any package may import it; it knows no part by name.
package pki

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

const (
	// caLife is longer than any installation is likely to go without being
	// rebuilt: replacing an authority touches every machine.
	caLife = 20 * 365 * 24 * time.Hour
	// defaultLife: renewed at two thirds, a certificate of 90 days leaves a node
	// that was switched off a month to come back.
	defaultLife = 90 * 24 * time.Hour
	// backdate lets a machine whose clock is a little behind use a new
	// certificate at once.
	backdate = 5 * time.Minute
)

// CA is a certificate authority. It is safe for concurrent use.
type CA struct {
	// Now is the clock, for tests. Nil is time.Now.
	Now func() time.Time

	cert            *x509.Certificate
	key             crypto.PrivateKey
	certPEM, keyPEM []byte
}

// Request says what a certificate shall be.
type Request struct {
	CommonName     string
	Organizations  []string
	Hosts          []string // DNS names and IP addresses
	Client, Server bool
	Life           time.Duration // 0: 90 days
}

// NewCA makes an authority that is valid for 20 years.
func NewCA(commonName string) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		// An authority issues leaves only: none of its certificates can be made
		// an authority by mistake.
		MaxPathLenZero: true,
		KeyUsage:       x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("create certificate authority %q: %w", commonName, err)
	}
	return encodeCert(der), keyPEM, nil
}

// ParseCA reads an authority. The key must be the certificate's.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert := pair.Leaf
	if !cert.IsCA {
		return nil, fmt.Errorf("certificate authority: %q is no authority", cert.Subject.CommonName)
	}
	return &CA{cert: cert, key: pair.PrivateKey, certPEM: encodeCert(cert.Raw), keyPEM: bytes.Clone(keyPEM)}, nil
}

// LoadOrCreateCA reads ca.crt and ca.key from dir, or makes them. An authority
// of which one file is missing is an error: to make a new one would cut off
// everybody who trusts the old.
func LoadOrCreateCA(dir, commonName string) (*CA, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	switch {
	case certErr == nil && keyErr == nil:
		ca, err := ParseCA(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		return ca, nil
	case errors.Is(certErr, fs.ErrNotExist) && (keyErr == nil || errors.Is(keyErr, fs.ErrNotExist)):
		// The key is written first: a key without a certificate is what a crash
		// on the first start leaves, and nobody can have trusted it yet.
	default:
		return nil, fmt.Errorf("load certificate authority: %w", errors.Join(certErr, keyErr))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	certPEM, keyPEM, err := NewCA(commonName)
	if err != nil {
		return nil, err
	}
	if err := WriteFiles(certFile, keyFile, certPEM, keyPEM); err != nil {
		return nil, err
	}
	return ParseCA(certPEM, keyPEM)
}

// Issue makes a key and a certificate for it.
func (ca *CA) Issue(r Request) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = ca.sign(key.Public(), r)
	return certPEM, keyPEM, err
}

// Sign makes a certificate for the public key of a CSR. Names and uses come
// from r alone, whatever the CSR asks for. Who sent it must hold its key.
func (ca *CA) Sign(csrPEM []byte, r Request) (certPEM []byte, err error) {
	pub, err := requestedKey(csrPEM)
	if err != nil {
		return nil, err
	}
	return ca.sign(pub, r)
}

// CheckCSR says why Sign would refuse a CSR, nil if it would not.
func CheckCSR(csrPEM []byte) error {
	_, err := requestedKey(csrPEM)
	return err
}

// requestedKey is the public key of a CSR that its sender holds.
func requestedKey(csrPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("certificate request: not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: signature does not match its key: %w", err)
	}
	// One kind of key, so that nobody can bring a weak or a very large one.
	if pub, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key must be ECDSA P-256")
	}
	return csr.PublicKey, nil
}

func (ca *CA) sign(pub crypto.PublicKey, r Request) ([]byte, error) {
	if r.CommonName == "" {
		return nil, errors.New("issue certificate: no common name")
	}
	now := time.Now()
	if ca.Now != nil {
		now = ca.Now()
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(cmp.Or(r.Life, defaultLife)),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %q: %w", r.CommonName, err)
	}
	return encodeCert(der), nil
}

// CertPEM is the authority's certificate.
func (ca *CA) CertPEM() []byte { return bytes.Clone(ca.certPEM) }

// KeyPEM is the authority's key, for those that issue certificates themselves.
func (ca *CA) KeyPEM() []byte { return bytes.Clone(ca.keyPEM) }

// Pool is a pool that holds only this authority.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// KeyHash is the SHA-256 of the authority's public key in hex: what a join
// token pins.
func (ca *CA) KeyHash() string { return KeyHash(ca.cert) }

// KeyHash is the SHA-256 of a certificate's SubjectPublicKeyInfo, in hex.
func KeyHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "pki/key-written", In: failpoint.Both, Cuts: "a key stands, its certificate does not"},
	}
}

// WriteFiles writes a certificate and its key, each whole or not at all; the
// key with mode 0600, and first, so that a certificate never stands without one.
// A reader can still meet a new key with an old certificate: load both into
// memory by a Renewer where that matters.
func WriteFiles(certFile, keyFile string, certPEM, keyPEM []byte) error {
	return writeFiles(certFile, keyFile, 0, certPEM, keyPEM)
}

// writeFiles is WriteFiles of a key that a group may read too; group 0 is root's own.
func writeFiles(certFile, keyFile string, gid int, certPEM, keyPEM []byte) error {
	if err := atomicfile.WriteGroup(keyFile, gid, keyPEM); err != nil {
		return err
	}
	failpoint.Reach("pki/key-written")
	return atomicfile.Write(certFile, certPEM, 0o644)
}

func serial() *big.Int {
	// 127 random bits: positive, and within the 20 octets of RFC 5280.
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand.Reader never returns an error
	}
	return n.Add(n, big.NewInt(1))
}
