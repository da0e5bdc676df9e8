package etcd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/pki"
)

// peerName is the common name of every member's certificate. No user can be
// called that: EnsureUser refuses it.
const peerName = "etcd-member"

// files are the certificates of one member. etcd reads its own anew for each
// handshake, so renewing is writing.
type files struct {
	dir, ca               string
	serverCert, serverKey string
	rootCert, rootKey     string
}

func filesIn(dir string) files {
	dir = filepath.Join(dir, "pki")
	return files{
		dir:        dir,
		ca:         filepath.Join(dir, "ca.crt"),
		serverCert: filepath.Join(dir, "server.crt"),
		serverKey:  filepath.Join(dir, "server.key"),
		rootCert:   filepath.Join(dir, "root.crt"),
		rootKey:    filepath.Join(dir, "root.key"),
	}
}

// renew makes the certificates that are missing or due, and those of another
// authority.
func (s *Server) renew(now time.Time) error {
	if err := os.MkdirAll(s.files.dir, 0o700); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	anchor, err := readFile(s.files.ca)
	if err != nil {
		return err
	}
	newCA := !bytes.Equal(anchor, s.cfg.CA.CertPEM())
	if newCA {
		if err := atomicfile.Write(s.files.ca, s.cfg.CA.CertPEM(), 0o600); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	hosts := []string{s.ServerName(), "localhost", s.cfg.Peer.Addr().String()}
	for _, c := range []struct {
		cert, key string
		request   pki.Request
	}{
		{s.files.serverCert, s.files.serverKey, pki.Request{CommonName: peerName, Hosts: hosts, Server: true, Client: true}},
		{s.files.rootCert, s.files.rootKey, pki.Request{CommonName: Root, Client: true}},
	} {
		due, err := isDue(c.cert, c.key, now)
		if err != nil {
			return err
		}
		if !due && !newCA {
			continue
		}
		certPEM, keyPEM, err := s.cfg.CA.Issue(c.request)
		if err != nil {
			return fmt.Errorf("etcd: issue certificate %s: %w", c.request.CommonName, err)
		}
		if err := pki.WriteFiles(c.cert, c.key, certPEM, keyPEM); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	return nil
}

func isDue(certFile, keyFile string, now time.Time) (bool, error) {
	cert, err := readFile(certFile)
	if err != nil || cert == nil {
		return true, err
	}
	// A crash between the two writes leaves a pair that doesn't fit.
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return true, nil
	}
	due, err := pki.NeedsRenewal(cert, now)
	if err != nil {
		return true, nil
	}
	return due, nil
}

// readFile returns nil for a file that is not there.
func readFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return data, nil
}
