// Package registry measures the platform's registry beside Debian's
// docker-registry (the same code base, an older version): pushes and pulls of
// random layers by HTTPS.
//
// Ours is that of a real server in a lab and asks for a token, which a push or
// pull fetches first; the peer is alone on a loopback, with a certificate of the
// same type, and asks for nothing.
//
// Parties: testing/bench runs it; nothing else may import it.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/bench/site"
	"github.com/multipaas/multipaas/testing/datacenter"
)

// Section is that of the registry.
func Section() measure.Section {
	return measure.Section{Name: "registry", About: "push and pull by HTTPS beside Debian's docker-registry (ours asks for tokens, it does not)", Run: run}
}

const (
	rounds    = 3
	totalMB   = 96  // pushed and pulled in each measurement by one client
	manyMB    = 256 // and by several together
	layers    = 2
	peerPort  = "5443"
	peerName  = "docker"
	megabyte  = 1_000_000
	chunkSize = 1 << 20
)

// contender is one of the registries.
type contender struct {
	name      string
	address   string // host:port/ and what comes before an image's name
	transport http.RoundTripper
	auth      authn.Authenticator
}

func run(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	s, err := site.Up(ctx, env)
	if err != nil {
		return nil, err
	}
	password, err := s.Password()
	if err != nil {
		return nil, err
	}
	ours := contender{name: "ours", address: "registry." + datacenter.Domain + ":5000/acme/web/",
		transport: namedRealm{transport(s.Pool, s.Dial), s.Server.Address().String()},
		auth:      &authn.Basic{Username: datacenter.OwnerEmail, Password: password}}
	peer, stop, err := startPeer(ctx, env)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	serial := 0
	for _, clients := range []int{1, 16} {
		env.Logf("registry: %d clients", clients)
		var contenders []measure.Contender
		for _, c := range []contender{ours, peer} {
			contenders = append(contenders, measure.Contender{Name: c.name, Measure: func(ctx context.Context) (measure.Sample, error) {
				serial++
				return c.measure(ctx, clients, serial)
			}})
		}
		stats, err := measure.Alternate(ctx, env.Rounds(rounds), contenders...)
		if err != nil {
			return results, err
		}
		for _, what := range []string{"push", "pull"} {
			r := measure.Result{Name: fmt.Sprintf("registry/%s, %d clients", what, clients), Unit: "MB/s", Better: measure.Higher,
				Ours: stats["ours"][what], Peer: peerName, PeerStat: stats[peerName][what]}
			r.Note = "ours: each client has its password checked (argon2id) for a token first, in the same time"
			if clients == 1 {
				r.Name = "registry/" + what + ", 1 client"
			}
			results = append(results, r)
		}
	}
	return results, nil
}

func transport(pool *x509.CertPool, dial func(context.Context, string, string) (net.Conn, error)) http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: dial, MaxIdleConnsPerHost: 64}
}

// namedRealm has tokens fetched at the API's name instead of its address: the
// client library refuses a private address on another port than the registry's
// ("invalid realm in www-authenticate").
type namedRealm struct {
	http.RoundTripper
	address string
}

func (n namedRealm) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := n.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		challenge := resp.Header.Get("Www-Authenticate")
		resp.Header.Set("Www-Authenticate", strings.Replace(challenge, "realm=\"https://"+n.address+":", "realm=\"https://api."+datacenter.Domain+":", 1))
	}
	return resp, err
}

// measure pushes images by some clients, then pulls them, and
// returns MB/s. The images are new each time: nothing is there already.
func (c contender) measure(ctx context.Context, clients, serial int) (measure.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	total := totalMB
	if clients > 1 {
		total = manyMB
	}
	size := int64(total * megabyte / layers / clients)
	images := make([]v1.Image, clients)
	refs := make([]name.Reference, clients)
	for i := range clients {
		var err error
		if images[i], err = random.Image(size, layers); err != nil {
			return nil, err
		}
		if refs[i], err = name.ParseReference(fmt.Sprintf("%sbench%d:r%d", c.address, i, serial)); err != nil {
			return nil, err
		}
	}
	options := []remote.Option{remote.WithTransport(c.transport), remote.WithAuth(c.auth), remote.WithJobs(layers)}
	all := func(do func(ctx context.Context, i int) error) (float64, error) {
		work, ctx := errgroup.WithContext(ctx)
		began := time.Now()
		for i := range clients {
			work.Go(func() error { return do(ctx, i) })
		}
		err := work.Wait()
		return float64(size) * layers * float64(clients) / megabyte / time.Since(began).Seconds(), err
	}
	push, err := all(func(ctx context.Context, i int) error {
		return remote.Write(refs[i], images[i], append(options, remote.WithContext(ctx))...)
	})
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	pull, err := all(func(ctx context.Context, i int) error {
		return fetch(refs[i], append(options, remote.WithContext(ctx)))
	})
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	return measure.Sample{"push": push, "pull": pull}, nil
}

// fetch reads all layers of an image; the library verifies their digests.
func fetch(ref name.Reference, options []remote.Option) error {
	image, err := remote.Image(ref, options...)
	if err != nil {
		return err
	}
	all, err := image.Layers()
	if err != nil {
		return err
	}
	buffer := make([]byte, chunkSize)
	for _, l := range all {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(io.Discard, r, buffer)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

const peerConf = `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %[1]s/docker-registry
  delete:
    enabled: true
http:
  addr: 127.0.0.1:%[2]s
  secret: not-a-secret-but-one-must-be-here
  tls:
    certificate: %[1]s/registry.crt
    key: %[1]s/registry.key
`

// startPeer starts Debian's docker-registry in a network of its own.
func startPeer(ctx context.Context, env *measure.Env) (c contender, stop func() error, err error) {
	env.VersionOf(ctx, "docker-registry", "docker-registry", "--version")
	ca, err := pki.LoadOrCreateCA(filepath.Join(env.Dir, "registry-pki"), "bench")
	if err != nil {
		return c, nil, err
	}
	cert, key, err := ca.Issue(pki.Request{CommonName: "registry.bench.internal", Hosts: []string{"registry.bench.internal"}, Server: true})
	if err != nil {
		return c, nil, err
	}
	conf := filepath.Join(env.Dir, "registry.yml")
	for file, data := range map[string][]byte{conf: fmt.Appendf(nil, peerConf, env.Dir, peerPort),
		filepath.Join(env.Dir, "registry.crt"): cert, filepath.Join(env.Dir, "registry.key"): key} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return c, nil, err
		}
	}
	n, err := measure.NewNet(ctx, env)
	if err != nil {
		return c, nil, err
	}
	child, err := measure.Start(env, "docker-registry", n.Command(context.Background(), nil, "docker-registry", "serve", conf))
	if err != nil {
		return c, nil, errors.Join(err, n.Remove())
	}
	stop = func() error { return errors.Join(child.Stop(), n.Remove()) }
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.DialContext(ctx, "tcp", "127.0.0.1:"+peerPort)
	}
	err = child.Await(ctx, time.Minute, func(ctx context.Context) error {
		conn, err := dial(ctx, "", "")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		return c, nil, errors.Join(err, stop())
	}
	return contender{name: peerName, address: "registry.bench.internal:" + peerPort + "/", transport: transport(ca.Pool(), dial), auth: authn.Anonymous}, stop, nil
}
