package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
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
	upstreamRest   = 10 * time.Second // not asked again for so long after it failed, or said no
	upstreamStall  = 30 * time.Second // a download that stands still is given up
	maxManifest    = 4 << 20          // distribution's own bound
	// upstreamShare is how many requests of one account an upstream answers at a time,
	// downloads among them, and upstreamQueue how long another waits for its turn.
	upstreamShare = 16
	upstreamQueue = 30 * time.Second
	// That it fails for so many repositories, of so many accounts, is its own fault: one
	// tenant can find any number of names for which a registry answers with an error.
	awayRepositories, awayAccounts = 3, 2
	// maxRemembered is how many failures and refusals are remembered.
	maxRemembered = 10_000
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

	mu     sync.Mutex
	failed time.Time           // when it last was away for all
	away   *refusal            // what was said then
	no     map[string]answered // what it refused, or failed at, by repository, or repository and what
	shares map[string]chan struct{}
}

// answered is what an account got for a repository.
type answered struct {
	at      time.Time
	account string
	broken  bool // it failed, and did not say no
	refusal *refusal
}

func newUpstream(u Upstream, dir string, d disk, of int, log *slog.Logger) (*upstream, error) {
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
		cache:    newCache(dir, d, of, log),
		no:       map[string]answered{},
		shares:   map[string]chan struct{}{},
	}, nil
}

// serve answers a pull for an account, which is a UID.
func (u *upstream) serve(w http.ResponseWriter, r *http.Request, t target, account string) error {
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
	t.repository = u.repository(t.repository)
	d, err := digest.Parse(t.reference)
	blob := t.route == v2.RouteNameBlob
	if err != nil && (blob || strings.Contains(t.reference, ":")) {
		return errDigest(t.reference)
	}
	a := asked{account, t.repository}
	if err != nil {
		if d, err = u.resolve(r.Context(), a, t.reference); err != nil {
			return err
		}
	}
	named := func() {
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Etag", fmt.Sprintf("%q", d))
	}
	if blob {
		named()
		return u.serveBlob(w, r, a, d)
	}
	m, ok := u.cache.manifest(d)
	if !ok {
		if m, err = u.fetchManifest(r.Context(), a, d.String()); err != nil {
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

// asked is for whom a repository of the upstream is asked for.
type asked struct{ account, repository string }

// repository is what the upstream calls a repository that references name.
func (u *upstream) repository(name string) string {
	if strings.EqualFold(u.Name, dockerHub) && !strings.Contains(name, "/") {
		return "library/" + name
	}
	return name
}

// resolve asks the upstream what a tag points to now. If it does not answer,
// the last known answer serves.
func (u *upstream) resolve(ctx context.Context, a asked, tag string) (digest.Digest, error) {
	d, err := u.ask(ctx, a, tag)
	if err == nil {
		u.cache.setTag(a.repository, tag, d)
		return d, nil
	}
	if no, ok := errors.AsType[*refusal](err); ok && no.Status == http.StatusBadGateway {
		if d, ok := u.cache.tag(a.repository, tag); ok {
			u.log.Warn("upstream is away, serving what is cached", "image", a.repository+":"+tag, "err", err)
			return d, nil
		}
	}
	return "", err
}

func (u *upstream) ask(ctx context.Context, a asked, tag string) (digest.Digest, error) {
	resp, err := u.get(ctx, http.MethodHead, a, "manifests/"+tag)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	if d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil {
		return d, nil
	}
	// Some answer HEAD without the digest: get the thing itself.
	m, err := u.fetchManifest(ctx, a, tag)
	return digest.FromBytes(m.body), err
}

func (u *upstream) fetchManifest(ctx context.Context, a asked, ref string) (manifest, error) {
	what := "manifests/" + ref
	resp, err := u.get(ctx, http.MethodGet, a, what)
	if err != nil {
		return manifest{}, err
	}
	defer resp.Body.Close()
	body, err := readAll(resp.Body, maxManifest)
	if errors.Is(err, errTooLarge) {
		return manifest{}, u.remember(a, what, false, refuse(http.StatusNotFound, "MANIFEST_UNKNOWN",
			"the manifest %s of %s in %s has more than %d MiB", ref, a.repository, u.Name, maxManifest>>20))
	}
	if ctx.Err() != nil { // who asked has gone
		return manifest{}, ctx.Err()
	}
	if err != nil {
		return manifest{}, u.broken("read manifest "+a.repository+":"+ref, a, err)
	}
	m := manifest{mediaType: resp.Header.Get("Content-Type"), body: body}
	got := digest.FromBytes(body)
	if want, err := digest.Parse(ref); err == nil {
		if got = want.Algorithm().FromBytes(body); got != want {
			return manifest{}, u.broken("read manifest "+a.repository+"@"+ref, a, fmt.Errorf("content has digest %s", got))
		}
	}
	if err := u.cache.putManifest(a.account, got, m); err != nil {
		u.log.Warn("cache manifest", "image", a.repository+"@"+got.String(), "err", err)
	}
	return m, nil
}

// get asks the upstream. A refusal with status 502 says that it did not answer
// as a registry does; others that it said no. The account has a part less of its share until
// the answer's body is closed.
func (u *upstream) get(ctx context.Context, method string, a asked, what string) (*http.Response, error) {
	if no := u.remembered(a.repository, what); no != nil {
		return nil, no
	}
	leave, err := u.enter(ctx, a.account)
	if err != nil {
		return nil, err
	}
	resp, err := u.send(ctx, method, a, what)
	if err != nil {
		leave()
		return nil, err
	}
	resp.Body = &sharedBody{resp.Body, leave}
	return resp, nil
}

func (u *upstream) send(ctx context.Context, method string, a asked, what string) (*http.Response, error) {
	repository := path.Join(u.prefix, a.repository)
	connected := false
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	req, err := http.NewRequestWithContext(traced, method, fmt.Sprintf("%s://%s/v2/%s/%s", u.scheme, u.host, repository, what), nil)
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
		return nil, u.said(http.StatusForbidden, a, what)
	case err != nil && !connected:
		// Whatever was asked for: that is the same for all.
		no := u.broken("connect", a, err)
		u.mu.Lock()
		u.failed, u.away = time.Now(), no
		u.mu.Unlock()
		return nil, no
	case err != nil:
		return nil, u.broken("pull from "+repository, a, err)
	case resp.StatusCode != http.StatusOK:
		resp.Body.Close()
		return nil, u.said(resp.StatusCode, a, what)
	}
	return resp, nil
}

// sharedBody is an answer that counts for its account until it is closed.
type sharedBody struct {
	io.ReadCloser
	leave func()
}

func (b *sharedBody) Close() error {
	b.leave()
	return b.ReadCloser.Close()
}

// enter waits for a part of the account's share. leave may be called more than once.
func (u *upstream) enter(ctx context.Context, account string) (leave func(), err error) {
	u.mu.Lock()
	share := u.shares[account]
	if share == nil {
		share = make(chan struct{}, upstreamShare)
		u.shares[account] = share
	}
	u.mu.Unlock()
	late := time.NewTimer(upstreamQueue)
	defer late.Stop()
	select {
	case share <- struct{}{}:
		return sync.OnceFunc(func() { <-share }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS",
			"your account has %d pulls from %s under way: try again later", upstreamShare, u.Name)
	}
}

// said turns a status of the upstream into what we say.
func (u *upstream) said(status int, a asked, what string) *refusal {
	switch {
	case status == http.StatusNotFound:
		return u.remember(a, what, false,
			refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no such image in %s", u.Name, a.repository))
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return u.remember(a, "", false, refuse(http.StatusNotFound, "NAME_UNKNOWN",
			"%s has no %s, or does not let us have it: check the name, "+
				"and the user name and password the operator set for that upstream", u.Name, a.repository))
	case status == http.StatusTooManyRequests:
		return u.remember(a, "", false, refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS",
			"%s says that we ask too often: try again later", u.Name))
	case status >= 400 && status < 500:
		return u.remember(a, what, false, refuse(http.StatusNotFound, "MANIFEST_UNKNOWN",
			"%s refuses that of %s: status %d, %s", u.Name, a.repository, status, http.StatusText(status)))
	default:
		return u.broken("pull from "+a.repository, a, fmt.Errorf("status %d", status))
	}
}

// broken remembers that the upstream failed for a repository, and says so.
func (u *upstream) broken(what string, a asked, err error) *refusal {
	u.log.Warn("upstream does not answer", "while", what, "err", err)
	return u.remember(a, "", true, refuse(http.StatusBadGateway, "UNAVAILABLE",
		"%s does not answer, and the image is not in the cache: check the server's network and the upstream's address, "+
			"or push the image to this platform's registry", u.Name))
}

// remember has no be the answer for a while to who asks for that, or for all of the
// repository if what is "". If the upstream failed for several accounts, it rests for all.
func (u *upstream) remember(a asked, what string, broken bool, no *refusal) *refusal {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.no) >= maxRemembered {
		clear(u.no)
	}
	u.no[a.repository+" "+what] = answered{time.Now(), a.account, broken, no}
	if !broken {
		return no
	}
	repositories, accounts := 0, map[string]bool{}
	for _, n := range u.no {
		if n.broken && time.Since(n.at) < upstreamRest {
			repositories++
			accounts[n.account] = true
		}
	}
	if repositories >= awayRepositories && len(accounts) >= awayAccounts {
		u.failed, u.away = time.Now(), no
	}
	return no
}

// remembered is what was said a moment ago, nil if nothing was. So a machine
// that asks for twenty layers waits once.
func (u *upstream) remembered(repository, what string) *refusal {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.failed) < upstreamRest {
		return u.away
	}
	for _, key := range []string{repository + " ", repository + " " + what} {
		if n, ok := u.no[key]; ok {
			if time.Since(n.at) < upstreamRest {
				return n.refusal
			}
			delete(u.no, key)
		}
	}
	return nil
}
