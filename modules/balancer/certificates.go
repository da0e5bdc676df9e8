package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/multipaas/multipaas/appliance/logs"
)

// Signer is the platform's certificate authority.
type Signer interface {
	// Sign returns a server certificate in PEM, leaf first, for the public key
	// of the CSR and exactly the given hosts. It is called once per host and
	// renewal, from several goroutines, and may block until ctx is done.
	Sign(ctx context.Context, csrPEM []byte, hosts []string) (certPEM []byte, err error)
}

const (
	// inMemory is how many certificates are held parsed: about 10 KiB each, so
	// 200 MB at most. Others are read when a client asks for them.
	inMemory = 20_000
	// obtainTimeout bounds making a key and having it signed, which takes
	// milliseconds, and waiting for the lock of another server that does.
	obtainTimeout = 30 * time.Second
	issuerKey     = "platform"
)

// certificates has a certificate for every host that is routed. They are in the
// shared storage, and copies in a local folder, so that this server can serve
// without the storage.
type certificates struct {
	magic   *certmagic.Config
	cache   *certmagic.Cache
	shared  certmagic.Storage
	local   *certmagic.FileStorage
	handles func(host string) bool
}

// newCertificates begins to maintain certificates; close ends it. Names that
// handles denies get none.
func newCertificates(
	shared certmagic.Storage, dir string, signer Signer, handles func(host string) bool, log *slog.Logger,
) *certificates {
	c := &certificates{shared: shared, local: &certmagic.FileStorage{Path: dir}, handles: handles}
	zlog := logs.Zap(log).WithOptions(zap.IncreaseLevel(zap.WarnLevel)) // it tells every step
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil },
		Capacity:         inMemory,
		Logger:           zlog,
	})
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Issuers:    []certmagic.Issuer{issuer{signer}},
		Storage:    shared,
		LocalCache: c.local,
		// A third of the life is left when a certificate is renewed.
		RenewalWindowRatio: 1.0 / 3,
		// Certificates are read when they are asked for, and renewed while they
		// are in use: with 50,000 hosts, a start reads none.
		OnDemand: &certmagic.OnDemandConfig{DecisionFunc: func(_ context.Context, name string) error {
			if !handles(name) {
				return fmt.Errorf("%s is not routed", name)
			}
			return nil
		}},
		KeySource:           certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		OCSP:                certmagic.OCSPConfig{DisableStapling: true}, // the platform's CA has no responder
		DisableARI:          true,                                        // nor renewal information
		DisableStorageCheck: true,                                        // etcd is there or says that it is not
		Logger:              zlog,
	})
	return c
}

func (c *certificates) close() { c.cache.Stop() }

// get is for tls.Config. A host that is not routed is refused with the TLS
// alert unrecognized_name, which is what crypto/tls sends if there is neither a
// certificate nor an error.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host, ok := canonicalHost(hello.ServerName)
	if !ok || !c.handles(host) {
		return nil, nil
	}
	return c.magic.GetCertificateWithContext(hello.Context(), hello)
}

// ensure has a certificate for host in the storage and in the local folder.
func (c *certificates) ensure(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, obtainTimeout)
	defer cancel()
	if err := c.magic.ObtainCertSync(ctx, host); err != nil {
		return fmt.Errorf("obtain certificate for %s: %w", host, err)
	}
	if err := c.magic.WarmLocalCache(ctx, host); err != nil {
		return fmt.Errorf("keep certificate for %s: %w", host, err)
	}
	return nil
}

// isLocal says whether the certificate of host is in the local folder.
func (c *certificates) isLocal(ctx context.Context, host string) bool {
	return c.local.Exists(ctx, certmagic.StorageKeys.SiteCert(issuerKey, host))
}

// remove forgets the certificate of host everywhere.
func (c *certificates) remove(ctx context.Context, host string) error {
	c.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host, IssuerKey: issuerKey}})
	site := certmagic.StorageKeys.CertsSitePrefix(issuerKey, host)
	err := c.shared.Delete(ctx, site)
	if lerr := c.local.Delete(ctx, site); lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
		err = errors.Join(err, lerr)
	}
	if err != nil {
		return fmt.Errorf("remove certificate of %s: %w", host, err)
	}
	return nil
}

// stored are the hosts that have a certificate, here or in the shared storage.
func (c *certificates) stored(ctx context.Context) ([]string, error) {
	var hosts []string
	for _, s := range []certmagic.Storage{c.shared, c.local} {
		sites, err := s.List(ctx, certmagic.StorageKeys.CertsPrefix(issuerKey), false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list certificates: %w", err)
		}
		for _, site := range sites {
			hosts = append(hosts, path.Base(site))
		}
	}
	return hosts, nil
}

// issuer has certmagic's requests signed by the platform's authority.
type issuer struct{ signer Signer }

// IssuerKey is the folder of its certificates in the storage.
func (issuer) IssuerKey() string { return issuerKey }

// Issue signs a request.
func (i issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	certPEM, err := i.signer.Sign(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}), csr.DNSNames)
	if err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: certPEM}, nil
}
