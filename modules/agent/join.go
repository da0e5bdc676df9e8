package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Join makes this machine a node of the platform at server, with a join token
// ID.SECRET.CAHASH. The server must show a certificate of the authority whose
// key the token pins; the secret is sent to no other. The node's private key is
// made here and never leaves. Nothing is kept unless all went well.
func Join(ctx context.Context, dir, server, name, token string) error {
	token = strings.TrimSpace(token)
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(parts[2]) != 2*sha256.Size {
		return errors.New("the join token is not complete: copy all of what `multipaas token create --role node` printed")
	}
	if err := resource.CheckName("node", name); err != nil {
		return err
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") {
		return fmt.Errorf("server %q: not an address of a server: write https://HOST:7443", server)
	}
	server = "https://" + u.Host
	switch id, err := readIdentity(dir); {
	case err == nil && id.Server == server && id.Name == name:
		return nil // done already
	case err == nil:
		return fmt.Errorf("this machine has joined %s as %q already: leave first with: multipaas node leave", id.Server, id.Name)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	key, csr, err := pki.NewKeyCSR()
	if err != nil {
		return err
	}

	id := &identity{Server: server, Name: name, Key: key}
	c := &Client{server: server, http: newHTTP(&tls.Config{
		MinVersion: tls.VersionTLS12,
		// Verified below against the pin; the chain holds the authority itself.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			id.CA, err = verifyPinned(cs, parts[2])
			return err
		},
	})}
	defer c.http.CloseIdleConnections()
	var joined wire.JoinResponse
	if err := c.call(ctx, wire.JoinPath, wire.JoinRequest{Name: name, Token: token, CSR: csr}, &joined); err != nil {
		return fmt.Errorf("join %s: %w", server, err)
	}
	id.Certificate = joined.Certificate
	if _, err := id.pair(); err != nil {
		return fmt.Errorf("join %s: the server answered with a certificate that does not fit: %w", server, err)
	}
	failpoint.Reach("node/join/answered")
	if err := writeIdentity(dir, id); err != nil {
		return err
	}
	failpoint.Reach("node/join/kept")
	return nil
}

// verifyPinned verifies the server's chain up to the authority whose public
// key has the pinned hash, name included, and returns that authority as PEM.
func verifyPinned(cs tls.ConnectionState, pin string) ([]byte, error) {
	inter := x509.NewCertPool()
	var root *x509.Certificate
	for _, c := range cs.PeerCertificates {
		if c.IsCA && strings.EqualFold(pki.KeyHash(c), pin) {
			root = c
			continue
		}
		inter.AddCert(c)
	}
	if root == nil {
		return nil, errors.New("the token was made by another platform than the one at this address: " +
			"check the address, or make a token there with: multipaas token create --role node")
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	// For a server, unless said otherwise.
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: cs.ServerName})
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), err
}

// Leave asks the server to take this node out of the platform: its machines
// are drained and removed by the running agent, which then ends.
func Leave(ctx context.Context, dir string) error {
	c, err := Open(dir)
	if err != nil {
		return err
	}
	return c.call(ctx, wire.LeavePath, struct{}{}, nil)
}
