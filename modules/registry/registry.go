// Package registry is the platform's image registry: repositories named
// ACCOUNT/ORGANIZATION/IMAGE that only members of the organization reach, and
// a pull-through cache in front of the upstream registries the operator names.
//
// It promises that no request reaches an image unless the token or the node
// certificate that comes with it allows that repository: everything passes
// Registry.ServeHTTP, which decides before the storage hears of a request.
//
// Parties: OCI clients push and pull with tokens that the API issues; node
// agents pull for the machines they run, by client certificate; the API and the
// apps controller list, inspect and delete by the methods of Registry; the
// composition root runs it. Only that root imports this package.
package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/gorilla/mux"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/limiter"
)

// Config is what the registry needs to know.
type Config struct {
	Addr string // "host:port" to listen on
	Dir  string // everything it stores is below; made if missing
	// TLS has the server's certificate, and in ClientCAs who signs for nodes.
	// Client certificates are asked for and verified if given.
	TLS *tls.Config
	// Names are the host[:port] names under which images of the platform's own
	// repositories are referred to.
	Names  []string
	Tokens Tokens
	// NodeRuns says whether the node that a verified certificate belongs to is still
	// one and runs a machine of the workspace "ACCOUNT/ORGANIZATION/WORKSPACE", and
	// HasOrganization whether the organization is there and not being deleted. They
	// are asked with every request of a node, and every one that writes; they must
	// not block, and are safe for concurrent use.
	NodeRuns        func(cert *x509.Certificate, workspace string) bool
	HasOrganization func(account, organization string) bool
	// AccountUID is an account's, by its name, which may come again; nil: its name is.
	AccountUID func(account string) string
	Upstreams  []Upstream
	// Limit says how many bytes of images an account may have; nil, or 0, is no
	// limit. It is asked while uploads come in, and must not block.
	Limit func(account string) int64
	// MinFreeBytes is the floor under the free disk space: below it nothing is
	// accepted. Zero is 1 GiB.
	MinFreeBytes int64
	// MaxBlobBytes is the most that one upload request may carry. Zero is
	// 32 GiB.
	MaxBlobBytes int64
	// Grace is how long a blob that no manifest names is kept. A push uploads
	// its blobs first and its manifest last, so it must be longer than the
	// longest push. Zero is 24 hours.
	Grace time.Duration
	Log   *slog.Logger
}

// Registry is the image registry.
type Registry struct {
	cfg       Config
	images    distribution.Namespace // what app stores, for our own questions
	router    *mux.Router
	upstreams map[string]*upstream
	disk      disk

	// gate keeps garbage collection and writing apart: those who write hold it
	// for reading once all has come, the collector holds it for writing.
	gate sync.RWMutex

	// pushes are the requests that write, by account; of them as many as the machine has
	// CPUs work at a time, which are its share.
	pushes *limiter.Limiter[string]
	share  int

	usagesMu sync.Mutex
	usages   map[string]*usage        // by account
	shares   map[string]chan struct{} // by account

	// Both are there once Run is ready.
	app  http.Handler
	addr net.Addr
}

// New makes a registry from cfg. It touches nothing before Run.
func New(cfg Config) (*Registry, error) {
	cfg.MinFreeBytes = cmp.Or(cfg.MinFreeBytes, 1<<30)
	cfg.MaxBlobBytes = cmp.Or(cfg.MaxBlobBytes, 32<<30)
	cfg.Grace = cmp.Or(cfg.Grace, 24*time.Hour)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Limit == nil {
		cfg.Limit = func(string) int64 { return 0 }
	}
	r := &Registry{
		cfg:       cfg,
		router:    newRouter(),
		upstreams: map[string]*upstream{},
		pushes:    limiter.New[string](maxPushes, 8*maxPushes),
		share:     runtime.GOMAXPROCS(0),
		usages:    map[string]*usage{},
		shares:    map[string]chan struct{}{},
		disk:      disk{dir: cfg.Dir, floor: cfg.MinFreeBytes},
	}
	// 100 concurrent file operations: distribution's own default.
	driver := filesystem.New(filesystem.DriverParameters{RootDirectory: r.imagesDir(), MaxThreads: 100})
	var err error
	r.images, err = storage.NewRegistry(context.Background(), driver,
		storage.EnableDelete, storage.EnableValidateImageIndexImagesExist)
	if err != nil {
		return nil, fmt.Errorf("open image storage %s: %w", r.imagesDir(), err)
	}
	var errs []error
	for i, u := range cfg.Upstreams {
		up, err := newUpstream(u, r.upstreamDir(u.Name), r.disk, len(cfg.Upstreams), cfg.Log)
		if err == nil && r.isOwn(u.Name) {
			err = fmt.Errorf("name %q is the platform's own registry: give the upstream its own name", u.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("upstreams[%d]: %w", i, err))
			continue
		}
		r.upstreams[strings.ToLower(u.Name)] = up
	}
	return r, errors.Join(errs...)
}

// isOwn says whether images of the platform's own repositories are called so.
func (r *Registry) isOwn(host string) bool {
	return slices.ContainsFunc(r.cfg.Names, func(name string) bool { return strings.EqualFold(name, host) })
}

func (r *Registry) imagesDir() string { return filepath.Join(r.cfg.Dir, "images") }

func (r *Registry) upstreamDir(name string) string {
	return filepath.Join(r.cfg.Dir, "upstream", strings.NewReplacer(":", "_", "/", "_").Replace(strings.ToLower(name)))
}

// Run serves until ctx is done. It is ready once it listens.
func (r *Registry) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(r.imagesDir(), 0o700); err != nil {
		return fmt.Errorf("make the registry's folder: %w", err)
	}
	secret, err := r.secret()
	if err != nil {
		return err
	}
	var collecting sync.WaitGroup
	defer collecting.Wait()
	appCtx, stopApp := context.WithCancel(context.WithoutCancel(ctx))
	defer stopApp()
	if r.app, err = newApp(appCtx, r.imagesDir(), secret); err != nil {
		return err
	}
	for _, u := range r.upstreams {
		u.ctx = appCtx
		if err := u.cache.open(); err != nil {
			return err
		}
	}

	ln, err := net.Listen("tcp", r.cfg.Addr)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	defer ln.Close()
	// A machine's agent has some hundred connections here when all its pods are pulled at once.
	ln = limiter.Listener(ln, 16)
	r.addr = ln.Addr()

	tlsConfig := r.cfg.TLS.Clone()
	tlsConfig.ClientAuth = tls.VerifyClientCertIfGiven
	tlsConfig.MinVersion = tls.VersionTLS12
	srv := &http.Server{
		Handler:           r,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10, // a token with some hundred scopes is 16 KiB
		ErrorLog:          slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	collecting.Go(func() { r.collect(appCtx) })
	ready()

	select {
	case err := <-served:
		return fmt.Errorf("registry: %w", err)
	case <-ctx.Done():
	}
	// Uploads under way get a moment; what is cut off is resumed by the client.
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(bound); err != nil {
		srv.Close()
	}
	return nil
}

// secret signs the state of uploads that clients carry around. It is kept in a
// file so that an upload survives a restart.
func (r *Registry) secret() (string, error) {
	file := filepath.Join(r.cfg.Dir, "secret")
	data, err := os.ReadFile(file)
	if err == nil && len(data) >= 64 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read upload secret: %w", err)
	}
	s := rand.Text() + rand.Text() + rand.Text() // 26 characters each
	if err := atomicfile.Write(file, []byte(s), 0o600); err != nil {
		return "", fmt.Errorf("write upload secret: %w", err)
	}
	return s, nil
}

// newApp makes distribution's handler on dir. It has no access control of its
// own: only Registry.ServeHTTP calls it.
func newApp(ctx context.Context, dir, secret string) (app *handlers.App, err error) {
	defer func() {
		// NewApp reports every mistake by a panic.
		if v := recover(); v != nil {
			err = fmt.Errorf("open image storage %s: %v", dir, v)
		}
	}()
	c := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": dir},
			"delete":     {"enabled": true},
			"redirect":   {"disable": true},
			// Stale uploads are ours to remove: the app would do it on its own
			// clock, without the gate.
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	c.HTTP.Secret = secret
	c.HTTP.RelativeURLs = true // clients reach us by several names
	c.Catalog.MaxEntries = 1000
	c.Tags.MaxTags = 1000
	return handlers.NewApp(ctx, c), nil
}
