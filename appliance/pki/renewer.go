package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"
)

// An IssueFunc gets a new key and certificate: from a CA in this process, or
// from the server by CSR. It may block on the network until ctx is done.
type IssueFunc func(ctx context.Context) (certPEM, keyPEM []byte, err error)

// RenewerConfig says how to keep one certificate valid.
type RenewerConfig struct {
	Name  string // for the log
	Issue IssueFunc
	// CertFile and KeyFile keep the certificate over a restart.
	CertFile, KeyFile string
	// GID is the group that may read the key too, for another process; 0: root's.
	GID int
	// Accept says whether a certificate found in the files will do: for its names,
	// or its authority, may have changed. Any validity in time is checked already.
	Accept func(*x509.Certificate) bool
	Log    *slog.Logger
}

// Renewer keeps a certificate valid: it renews it at two thirds of its life,
// without a restart of those who use it. It is safe for concurrent use.
type Renewer struct {
	cfg     RenewerConfig
	current atomic.Pointer[tls.Certificate]
}

// NewRenewer makes a Renewer. It has no certificate before Run or Ensure.
func NewRenewer(cfg RenewerConfig) *Renewer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
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

// Ensure gets a certificate if there is none in memory or in the files that is
// good for now. Call it where a part needs the certificate before Run.
func (r *Renewer) Ensure(ctx context.Context) error {
	if r.untilDue() > 0 {
		return nil
	}
	err := r.load()
	if err == nil && r.untilDue() > 0 {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.cfg.Log.Info("certificate on disk will not do", "certificate", r.cfg.Name, "reason", err)
	}
	return r.renew(ctx)
}

// Run keeps the certificate valid until ctx is done. It is ready once there is
// one. A renewal that fails is tried again; Run fails only if there is none to
// begin with.
func (r *Renewer) Run(ctx context.Context, ready func()) error {
	if err := r.Ensure(ctx); err != nil {
		// One that is due but still good is enough to go on with.
		if c := r.current.Load(); c == nil || !time.Now().Before(c.Leaf.NotAfter) {
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
			leaf := r.current.Load().Leaf
			wait = max(time.Minute, leaf.NotAfter.Sub(leaf.NotBefore)/100)
			r.cfg.Log.Warn("certificate not renewed", "certificate", r.cfg.Name, "err", err, "again", wait)
		}
		// Not one long timer: it would run on while the machine is suspended, or
		// its clock is set.
		select {
		case <-time.After(min(wait, time.Hour)):
		case <-ctx.Done():
			return nil
		}
	}
}

// GetCertificate is for tls.Config of a server.
func (r *Renewer) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := r.current.Load(); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%s: no certificate yet", r.cfg.Name)
}

func (r *Renewer) load() error {
	pair, err := tls.LoadX509KeyPair(r.cfg.CertFile, r.cfg.KeyFile)
	if err != nil {
		return err // of which a key without its certificate is one kind
	}
	if !time.Now().Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("expired %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	if !r.cfg.Accept(pair.Leaf) {
		return errors.New("is not what is needed now")
	}
	r.current.Store(&pair)
	return nil
}

func (r *Renewer) renew(ctx context.Context) error {
	certPEM, keyPEM, err := r.cfg.Issue(ctx)
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(certPEM, keyPEM)
	}
	if err == nil {
		err = writeFiles(r.cfg.CertFile, r.cfg.KeyFile, r.cfg.GID, certPEM, keyPEM)
	}
	if err != nil {
		return fmt.Errorf("renew certificate %s: %w", r.cfg.Name, err)
	}
	r.current.Store(&pair)
	r.cfg.Log.Info("certificate renewed", "certificate", r.cfg.Name, "until", pair.Leaf.NotAfter)
	return nil
}

// untilDue is how long the certificate needs no renewal; 0 if there is none.
func (r *Renewer) untilDue() time.Duration {
	c := r.current.Load()
	if c == nil {
		return 0
	}
	return time.Until(renewalTime(c.Leaf))
}
