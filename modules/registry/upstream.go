package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Upstream is a registry that machines may pull from through this one.
type Upstream struct {
	Name     string // as in image references: "docker.io"
	URL      string // where it answers: "https://HOST[:PORT][/PREFIX]"; empty is https://NAME, Docker Hub's registry for docker.io
	CA       []byte // PEM of who signs its certificate; empty: the host's own set
	Username string
	Password string
}

// The bounds on an upstream. Machines wait for us, and behind them people: with
// no network, who asks for an image must hear so within a few seconds.
const (
	upstreamDial   = 2 * time.Second  // a round trip around the world is 0.3 s
	upstreamAnswer = 4 * time.Second  // first byte of an answer
	upstreamRest   = 10 * time.Second // not asked again for so long after it failed
	upstreamStall  = 30 * time.Second // a download that stands still is given up
	maxManifest    = 4 << 20          // distribution's own bound
)

// Docker Hub is called docker.io in image references, but no registry answers
// there: that host redirects to a web site. Its images without a slash in their
// names stand below library/.
const (
	dockerHub         = "docker.io"
	dockerHubRegistry = "registry-1.docker.io"
)

// upstream is a pull-through cache of one registry.
//
// distribution's proxy mode was not taken: it asks the upstream when it is made
// and panics if there is no answer, has no timeouts and takes no CA.
type upstream struct {
	Upstream
	host    string
	scheme  string
	prefix  string
	session *session
	log     *slog.Logger
	cache   *cache

	ctx context.Context // while the registry runs; downloads outlive who asked first

	mu      sync.Mutex
	failed  time.Time // when it last did not answer
	failure string
}

func newUpstream(u Upstream, dir string, d disk, log *slog.Logger) (*upstream, error) {
	if u.Name == "" || strings.ContainsAny(u.Name, "/ ") {
		return nil, fmt.Errorf("name %q: give the host[:port] that stands in image references", u.Name)
	}
	if u.URL == "" {
		u.URL = "https://" + u.Name
	}
	where, err := url.Parse(u.URL)
	if err == nil && slices.Contains([]string{dockerHub, "index." + dockerHub}, where.Host) {
		where.Host, where.Path = dockerHubRegistry, ""
	}
	if err != nil || where.Host == "" || (where.Scheme != "https" && where.Scheme != "http") {
		return nil, fmt.Errorf("url %q of %s: give https://HOST[:PORT]", u.URL, u.Name)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(u.CA) > 0 {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(u.CA) {
			return nil, fmt.Errorf("ca of %s: no certificate in PEM", u.Name)
		}
	}
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: upstreamDial}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   upstreamDial,
		ResponseHeaderTimeout: upstreamAnswer,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
	}
	log = log.With("upstream", u.Name)
	return &upstream{
		Upstream: u,
		host:     where.Host,
		scheme:   where.Scheme,
		prefix:   strings.Trim(where.Path, "/"),
		session:  newSession(base, where.Scheme == "https", u.Username, u.Password),
		log:      log,
		cache:    &cache{dir: dir, disk: d, log: log, downloads: map[digest.Digest]*download{}},
	}, nil
}

// serve answers a pull.
func (u *upstream) serve(w http.ResponseWriter, r *http.Request, t target) error {
	switch t.route {
	case v2.RouteNameBase:
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte("{}"))
		return nil
	case v2.RouteNameManifest, v2.RouteNameBlob:
	default:
		return refuse(http.StatusNotFound, "UNSUPPORTED", "images of %s can be pulled here, not listed", u.Name)
	}
	if _, err := reference.WithName(t.repository); err != nil {
		return refuse(http.StatusBadRequest, "NAME_INVALID", "%q is no name of a repository", t.repository)
	}
	if strings.EqualFold(u.Name, dockerHub) && !strings.Contains(t.repository, "/") {
		t.repository = "library/" + t.repository
	}
	d, err := digest.Parse(t.reference)
	blob := t.route == v2.RouteNameBlob
	if blob && (err != nil || d.Algorithm() != digest.SHA256) {
		return refuse(http.StatusBadRequest, "DIGEST_INVALID", "%q is not a SHA-256 digest", t.reference)
	}
	if err != nil {
		if d, err = u.resolve(r.Context(), t.repository, t.reference); err != nil {
			return err
		}
	}
	named := func() {
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Etag", fmt.Sprintf("%q", d))
	}
	if blob {
		named()
		return u.serveBlob(w, r, t.repository, d)
	}
	m, ok := u.cache.manifest(d)
	if !ok {
		if m, err = u.fetchManifest(r.Context(), t.repository, d.String()); err != nil {
			return err
		}
	}
	named()
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
	if r.Method != http.MethodHead {
		w.Write(m.body)
	}
	return nil
}

// resolve asks the upstream what a tag points to now. If it does not answer,
// the last known answer serves.
func (u *upstream) resolve(ctx context.Context, repository, tag string) (digest.Digest, error) {
	d, err := u.ask(ctx, repository, tag)
	if err == nil {
		u.cache.setTag(repository, tag, d)
		return d, nil
	}
	if no, ok := errors.AsType[*refusal](err); ok && no.Status == http.StatusBadGateway {
		if d, ok := u.cache.tag(repository, tag); ok {
			u.log.Warn("upstream is away, serving what is cached", "image", repository+":"+tag, "err", err)
			return d, nil
		}
	}
	return "", err
}

func (u *upstream) ask(ctx context.Context, repository, tag string) (digest.Digest, error) {
	resp, err := u.get(ctx, http.MethodHead, repository, "manifests/"+tag)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	if d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil {
		return d, nil
	}
	// Some answer HEAD without the digest: get the thing itself.
	m, err := u.fetchManifest(ctx, repository, tag)
	return digest.FromBytes(m.body), err
}

func (u *upstream) fetchManifest(ctx context.Context, repository, ref string) (manifest, error) {
	resp, err := u.get(ctx, http.MethodGet, repository, "manifests/"+ref)
	if err != nil {
		return manifest{}, err
	}
	defer resp.Body.Close()
	body, err := readAll(resp.Body, maxManifest)
	if err != nil {
		return manifest{}, u.broken("read manifest "+repository+":"+ref, err)
	}
	m := manifest{mediaType: resp.Header.Get("Content-Type"), body: body}
	got := digest.FromBytes(body)
	if want, err := digest.Parse(ref); err == nil && want != got {
		return manifest{}, u.broken("read manifest "+repository+"@"+ref, fmt.Errorf("content has digest %s", got))
	}
	if err := u.cache.putManifest(got, m); err != nil {
		u.log.Warn("cache manifest", "image", repository+"@"+got.String(), "err", err)
	}
	return m, nil
}

// get asks the upstream. A refusal with status 502 says that it did not answer
// as a registry does; others that it said no.
func (u *upstream) get(ctx context.Context, method, repository, what string) (*http.Response, error) {
	if why := u.resting(); why != "" {
		return nil, refuse(http.StatusBadGateway, "UNAVAILABLE", "%s", why)
	}
	repository = path.Join(u.prefix, repository)
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("%s://%s/v2/%s/%s", u.scheme, u.host, repository, what), nil)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(what, "manifests/") {
		req.Header["Accept"] = manifestTypes
	}
	resp, err := u.session.do(req, repository)
	switch {
	case ctx.Err() != nil: // who asked has gone
		if err == nil {
			resp.Body.Close()
		}
		return nil, ctx.Err()
	case errors.Is(err, errRefused):
		return nil, u.said(http.StatusForbidden, repository)
	case err != nil:
		return nil, u.broken("pull from "+repository, err)
	case resp.StatusCode != http.StatusOK:
		resp.Body.Close()
		return nil, u.said(resp.StatusCode, repository)
	}
	return resp, nil
}

// said turns a status of the upstream into what we say.
func (u *upstream) said(status int, repository string) *refusal {
	switch {
	case status == http.StatusNotFound:
		return refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no such image in %s", u.Name, repository)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return refuse(http.StatusNotFound, "NAME_UNKNOWN", "%s has no %s, or does not let us have it: check the name, "+
			"and the user name and password the operator set for that upstream", u.Name, repository)
	case status == http.StatusTooManyRequests:
		return refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS", "%s says that we ask too often: try again later", u.Name)
	default:
		return u.broken("pull from "+repository, fmt.Errorf("status %d", status))
	}
}

// broken remembers that the upstream failed, and says so.
func (u *upstream) broken(what string, err error) *refusal {
	u.log.Warn("upstream does not answer", "while", what, "err", err)
	no := refuse(http.StatusBadGateway, "UNAVAILABLE",
		"%s does not answer, and the image is not in the cache: check the server's network and the upstream's address, "+
			"or push the image to this platform's registry", u.Name)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failed, u.failure = time.Now(), no.Message
	return no
}

// resting says why the upstream is not asked now, "" if it is. So a machine
// that asks for twenty layers waits once.
func (u *upstream) resting() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.failed) < upstreamRest {
		return u.failure
	}
	return ""
}
