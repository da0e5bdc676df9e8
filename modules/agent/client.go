package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/wire"
)

// identity is who this machine is on the platform. One file, so that it is
// there whole or not at all.
type identity struct {
	Server      string `json:"server"` // https://HOST:7443
	Name        string `json:"name"`
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
	CA          []byte `json:"ca"`
}

// pair is the certificate with its key, as it is shown to the server.
func (id *identity) pair() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(id.Certificate, id.Key)
	return &pair, err
}

func identityFile(dir string) string { return filepath.Join(dir, "identity.json") }

// Joined says which server and under which name the machine has joined. It
// wraps fs.ErrNotExist when it has not.
func Joined(dir string) (server, name string, err error) {
	id, err := readIdentity(dir)
	if err != nil {
		return "", "", err
	}
	return id.Server, id.Name, nil
}

func readIdentity(dir string) (*identity, error) {
	data, err := os.ReadFile(identityFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this machine has not joined any platform, as it does with: "+
			"multipaas node join https://SERVER:7443 (%w)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("node identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("node identity %s is damaged: %w: remove the file and join again", identityFile(dir), err)
	}
	return &id, nil
}

func writeIdentity(dir string, id *identity) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(identityFile(dir), id)
}

// Client talks to the server as the node that this machine is, with the node's
// certificate. It is safe for concurrent use.
type Client struct {
	dir      string
	server   string // https://HOST:7443
	name     string
	http     *http.Client
	tls      *tls.Config
	identity atomic.Pointer[identity] // with the certificate that is shown
	keys     silence                  // of the server, asked for keys
}

// Open makes the client of the node whose identity is in dir. The error wraps
// fs.ErrNotExist if this machine has not joined.
func Open(dir string) (*Client, error) {
	id, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	if _, err := id.pair(); err != nil {
		return nil, fmt.Errorf("node identity: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(id.CA) {
		return nil, errors.New("node identity: no authority in it: remove it and join again")
	}
	c := &Client{dir: dir, server: id.Server, name: id.Name}
	c.identity.Store(id)
	c.tls = &tls.Config{
		RootCAs:    roots,
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.identity.Load().pair()
		},
	}
	c.http = newHTTP(c.tls)
	return c, nil
}

func newHTTP(cfg *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:       cfg.Clone(), // it is the transport's then
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       time.Minute,
	}}
}

// UID is the node's, "" if its certificate has none.
func (c *Client) UID() string {
	cert, err := pki.ParseCertificate(c.identity.Load().Certificate)
	if err != nil {
		return ""
	}
	for _, o := range cert.Subject.Organization {
		if uid, ok := strings.CutPrefix(o, wire.NodeUIDPrefix); ok {
			return uid
		}
	}
	return ""
}

// Transport reaches the platform's servers with the node's certificate.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// do sends one request, again when the server says that it had too many; an answer other than 200 is an error. The caller closes
// the body.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if limiter.Wait(ctx, res) {
		_ = res.Body.Close()
		return c.do(ctx, method, path, body)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, readAnswer(res, nil)
	}
	return res, nil
}

// call posts body and reads the answer.
func (c *Client) call(ctx context.Context, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return readAnswer(res, into)
}

// showTimeout is for one address: who has no way from there hears nothing.
const showTimeout = 5 * time.Second

// show tells the server, from an address of this host, that it has it.
func (c *Client) show(ctx context.Context, from netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	once := &Client{server: c.server, http: newHTTP(c.tls)}
	transport := once.http.Transport.(*http.Transport)
	transport.DialContext = dialer.DialContext
	defer transport.CloseIdleConnections()
	return once.call(ctx, wire.AddressPath, wire.AddressShown{Address: from}, nil)
}

// busy is the answer of a server that wants to be asked later.
type busy struct {
	after time.Duration
	text  string
}

func (b busy) Error() string { return b.text }

// readAnswer reads a bounded JSON answer, or turns a problem into an error.
func readAnswer(res *http.Response, into any) error {
	data, err := io.ReadAll(io.LimitReader(res.Body, maxState))
	if err != nil {
		return err
	}
	if res.StatusCode == http.StatusOK {
		if into == nil {
			return nil
		}
		return json.Unmarshal(data, into)
	}
	var p struct{ Detail, Title string }
	_ = json.Unmarshal(data, &p)
	if p.Detail == "" {
		p.Detail = fmt.Sprintf("the server answered %s", res.Status)
	}
	if res.StatusCode == http.StatusTooManyRequests {
		after, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return busy{after: min(max(time.Duration(after)*time.Second, wire.ReportPace), time.Minute), text: p.Detail}
	}
	if res.StatusCode == http.StatusGone {
		return fmt.Errorf("%w: %s", ErrRemoved, p.Detail)
	}
	return errors.New(p.Detail)
}

// renew gets a new certificate, for a new key, when two thirds of the old one's
// life are over.
func (c *Client) renew(ctx context.Context) error {
	id := *c.identity.Load()
	due, err := pki.NeedsRenewal(id.Certificate, time.Now())
	if err != nil || !due {
		return err
	}
	key, csr, err := pki.NewKeyCSR()
	if err != nil {
		return err
	}
	var res wire.JoinResponse
	if err := c.call(ctx, wire.CertificatePath, wire.JoinRequest{CSR: csr}, &res); err != nil {
		return err
	}
	id.Certificate, id.Key = res.Certificate, key
	if _, err := id.pair(); err != nil {
		return err
	}
	failpoint.Reach("node/renew/signed")
	if err := writeIdentity(c.dir, &id); err != nil {
		return err
	}
	failpoint.Reach("node/renew/kept")
	c.identity.Store(&id)
	return nil
}
