package etcd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/pki"
)

// peerName is the common name of every member's certificate. No user can be
// called that: EnsureUser refuses it.
const peerName = "etcd-member"

// file is one of the certificates and keys of the member. etcd reads its own
// anew for each handshake, so renewing is writing.
func (s *Server) file(name string) string { return filepath.Join(s.cfg.Dir, "pki", name) }

// renew makes the certificates that are missing or due, and those of another
// authority.
func (s *Server) renew(ctx context.Context) error {
	if err := os.MkdirAll(s.file(""), 0o700); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	if err := atomicfile.Write(s.file("ca.crt"), s.cfg.CA.CertPEM(), 0o600); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	hosts := []string{s.ServerName(), "localhost", peerAddress}
	for _, c := range []struct {
		name    string
		request pki.Request
	}{
		{"server", pki.Request{CommonName: peerName, Hosts: hosts, Server: true, Client: true}},
		{"root", pki.Request{CommonName: Root, Client: true}},
	} {
		r := pki.NewRenewer(pki.RenewerConfig{
			Name:     "etcd/" + c.request.CommonName,
			Issue:    pki.IssueFrom(s.cfg.CA, c.request),
			CertFile: s.file(c.name + ".crt"),
			KeyFile:  s.file(c.name + ".key"),
			Accept:   pki.SameRequest(s.cfg.CA, c.request),
			Log:      s.cfg.Log,
		})
		if err := r.Ensure(ctx); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	return nil
}
