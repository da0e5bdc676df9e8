package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

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

	var ca []byte
	pinned := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Verified below against the pin; the chain holds the authority itself.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			root, err := verifyPinned(cs, parts[2])
			ca = root
			return err
		},
	}
	hc := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: pinned, ForceAttemptHTTP2: true}}
	defer hc.CloseIdleConnections()
	body, err := json.Marshal(wire.JoinRequest{Name: name, Token: token, CSR: csr})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server+"/v1/agent/join", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := hc.Do(req)
	if err != nil {
		return fmt.Errorf("join %s: %w", server, err)
	}
	defer res.Body.Close()
	var joined wire.JoinResponse
	if err := readAnswer(res, &joined); err != nil {
		return fmt.Errorf("join %s: %w", server, err)
	}
	if _, err := tls.X509KeyPair(joined.Certificate, key); err != nil {
		return fmt.Errorf("join %s: the server answered with a certificate that does not fit: %w", server, err)
	}
	failpoint.Reach("node/join/answered")
	err = writeIdentity(dir, &identity{
		Server:      server,
		Name:        name,
		Certificate: joined.Certificate,
		Key:         key,
		CA:          ca,
	})
	if err != nil {
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
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		if c.IsCA && subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(strings.ToLower(pin))) == 1 {
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
	if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: cs.ServerName,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), nil
}

// Leave asks the server to take this node out of the platform: its machines
// are drained and removed by the running agent, which then ends.
func Leave(ctx context.Context, dir string) error {
	c, err := Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("this machine has not joined any platform")
	} else if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, "/v1/agent/leave", struct{}{}, nil)
}
