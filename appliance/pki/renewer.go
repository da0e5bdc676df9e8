package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// An IssueFunc gets a new key and certificate: from a CA in this process, or
// from the server by CSR. It may block on the network until ctx is done.
type IssueFunc func(ctx context.Context) (certPEM, keyPEM []byte, err error)

// RenewerConfig says how to keep one certificate valid.
type RenewerConfig struct {
	Name  string // for the log
	Issue IssueFunc
	// CertFile and KeyFile keep the certificate over a restart; both empty: it
	// is kept in memory only.
	CertFile, KeyFile string
	// Accept, if given, says whether a certificate found in the files will do:
	// for its names, or its authority, may have changed. Any validity in time is
	// checked already. Nil: all will.
	Accept func(*x509.Certificate) bool
	// OnRenew, if given, is called after each new certificate, on Run's goroutine.
	OnRenew func(certPEM, keyPEM []byte)
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Renewer keeps a certificate valid: it renews it at two thirds of its life,
// without a restart of those who use it. It is safe for concurrent use.
type Renewer struct {
	cfg RenewerConfig

	mu      sync.RWMutex
	current *tls.Certificate
	certPEM []byte
	keyPEM  []byte
}

// NewRenewer makes a Renewer. It has no certificate before Run or Ensure.
func NewRenewer(cfg RenewerConfig) *Renewer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Renewer{cfg: cfg}
}

// IssueFrom is an IssueFunc that asks an authority in this process.
func IssueFrom(ca *CA, r Request) IssueFunc {
	return func(context.Context) (certPEM, keyPEM []byte, err error) { return ca.Issue(r) }
}

// SameRequest is an Accept that takes a certificate if ca has issued it for
// what r asks.
func SameRequest(ca *CA, r Request) func(*x509.Certificate) bool {
	return func(cert *x509.Certificate) bool {
		if cert.CheckSignatureFrom(ca.cert) != nil || cert.Subject.CommonName != r.CommonName {
			return false
		}
		for _, h := range r.Hosts {
			if cert.VerifyHostname(h) != nil {
				return false
			}
		}
		return len(cert.DNSNames)+len(cert.IPAddresses) == len(r.Hosts)
	}
}

// errNoCertificate is what a handshake gets before the first certificate is there.
var errNoCertificate = errors.New("no certificate yet")

// Ensure gets a certificate if there is none in memory or in the files that is
// good for now. Call it where a part needs the certificate before Run.
func (r *Renewer) Ensure(ctx context.Context) error {
	if !r.due() {
		return nil
	}
	if r.cfg.CertFile != "" {
		err := r.load()
		if err == nil && !r.due() {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Log.Info("certificate on disk will not do", "certificate", r.cfg.Name, "reason", err)
		}
	}
	return r.renew(ctx)
}

// Run keeps the certificate valid until ctx is done. It is ready once there is
// one. A renewal that fails is tried again; Run fails only if there is none to
// begin with.
func (r *Renewer) Run(ctx context.Context, ready func()) error {
	if err := r.Ensure(ctx); err != nil {
		// One that is due but still good is enough to go on with.
		if r.valid() != nil {
			return err
		}
		r.cfg.Log.Warn("certificate not renewed", "certificate", r.cfg.Name, "err", err)
	}
	ready()
	for {
		wait := r.untilDue()
		if wait <= 0 {
			err := r.renew(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				continue
			}
			// A third of its life is left when the first try is made: a hundredth
			// of it gives some thirty tries, at most one a minute.
			wait = max(time.Minute, r.life()/100)
			r.cfg.Log.Warn("certificate not renewed", "certificate", r.cfg.Name, "err", err, "again", wait)
		}
		// Not one long timer: it would run on while the machine is suspended, or
		// its clock is set.
		timer := time.NewTimer(min(wait, time.Hour))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// GetCertificate is for tls.Config of a server.
func (r *Renewer) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return r.Certificate()
}

// GetClientCertificate is for tls.Config of a client.
func (r *Renewer) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return r.Certificate()
}

// Certificate is the certificate of now.
func (r *Renewer) Certificate() (*tls.Certificate, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.current == nil {
		return nil, fmt.Errorf("%s: %w", r.cfg.Name, errNoCertificate)
	}
	return r.current, nil
}

// PEM is the certificate of now and its key; nil before the first.
func (r *Renewer) PEM() (certPEM, keyPEM []byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.certPEM, r.keyPEM
}

func (r *Renewer) load() error {
	certPEM, err := os.ReadFile(r.cfg.CertFile)
	if err != nil {
		return err
	}
	keyPEM, err := os.ReadFile(r.cfg.KeyFile)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return err // of which a key without its certificate is one kind
	}
	if !r.cfg.Now().Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("expired %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	if r.cfg.Accept != nil && !r.cfg.Accept(pair.Leaf) {
		return errors.New("is not what is needed now")
	}
	r.set(&pair, certPEM, keyPEM)
	return nil
}

func (r *Renewer) renew(ctx context.Context) error {
	certPEM, keyPEM, err := r.cfg.Issue(ctx)
	if err != nil {
		return fmt.Errorf("renew certificate %s: %w", r.cfg.Name, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("renew certificate %s: %w", r.cfg.Name, err)
	}
	if r.cfg.CertFile != "" {
		if err := WriteFiles(r.cfg.CertFile, r.cfg.KeyFile, certPEM, keyPEM); err != nil {
			return fmt.Errorf("renew certificate %s: %w", r.cfg.Name, err)
		}
	}
	r.set(&pair, certPEM, keyPEM)
	r.cfg.Log.Info("certificate renewed", "certificate", r.cfg.Name, "until", pair.Leaf.NotAfter)
	if r.cfg.OnRenew != nil {
		r.cfg.OnRenew(certPEM, keyPEM)
	}
	return nil
}

func (r *Renewer) set(pair *tls.Certificate, certPEM, keyPEM []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current, r.certPEM, r.keyPEM = pair, certPEM, keyPEM
}

// untilDue is how long the certificate needs no renewal.
func (r *Renewer) untilDue() time.Duration {
	cert, err := r.Certificate()
	if err != nil {
		return 0
	}
	return renewalTime(cert.Leaf).Sub(r.cfg.Now())
}

func (r *Renewer) due() bool { return r.untilDue() <= 0 }

func (r *Renewer) life() time.Duration {
	cert, err := r.Certificate()
	if err != nil {
		return 0
	}
	return cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
}

func (r *Renewer) valid() error {
	cert, err := r.Certificate()
	if err != nil {
		return err
	}
	if !r.cfg.Now().Before(cert.Leaf.NotAfter) {
		return errors.New("expired")
	}
	return nil
}
