package appliance

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/appliance/preflight"
	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/embed/payload"
	"github.com/multipaas/multipaas/modules/network"
)

// stopTimeout is for each part. The longest is a plane's: it gives its four
// components five seconds each.
const stopTimeout = 40 * time.Second

// base is what both roles have.
type base struct {
	cfg      Config
	version  string
	log      *slog.Logger
	graph    *lifecycle.Graph
	problems *problem.Registry
	metrics  *prometheus.Registry
	status   *status.Server
	payload  *payload.Payload
	items    func() []status.Item // for the status; nil: there are none yet
	answers  answerer             // for doctor; set before the graph runs
	own      *network.OwnAddresses
	tree     string // where the payload's files are, once unpacked
}

func newBase(role string, cfg Config, version string, log *slog.Logger) *base {
	b := &base{
		cfg:      cfg,
		version:  version,
		log:      log,
		problems: problem.New(log.With("component", "problems")),
		metrics:  prometheus.NewRegistry(),
	}
	b.graph = &lifecycle.Graph{Log: log, StopTimeout: stopTimeout, OnReady: b.tellInit}
	b.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	started := time.Now()
	b.status = status.New(status.Config{
		Socket:  cfg.Paths.Socket(),
		Metrics: promhttp.HandlerFor(b.metrics, promhttp.HandlerOpts{}),
		Log:     b.part("status"),
		More:    b.inventoryHandlers(started),
		Collect: func() status.Status {
			st := status.Status{
				Role:     role,
				Name:     cfg.Name,
				Address:  cfg.Address.String(),
				Version:  version,
				PID:      os.Getpid(),
				Started:  started,
				Parts:    b.graph.Status(),
				Problems: b.problems.List(),
			}
			if b.items != nil {
				st.Items = b.items()
			}
			return st
		},
	})
	return b
}

// network is the workspaces' networks on this host, with what they reach of it.
func (b *base) network(door func() network.Door) *network.Network {
	log := b.part("network")
	log.Info("the setting egress says where tenants may go from this machine",
		"mode", b.cfg.File.Egress.Mode, "allow", b.cfg.File.Egress.Allow, "deny", b.cfg.File.Egress.Deny)
	return network.New(network.Config{Underlay: b.cfg.Address, Egress: b.cfg.Egress, Door: door, Log: log})
}

// tellInit tells the init system that started us, if one wants to know, that we
// serve.
func (b *base) tellInit() {
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		b.log.Warn("the init system is not told that this is ready", "err", err)
	}
}

func (b *base) part(name string) *slog.Logger { return b.log.With("component", name) }

// prepare makes this process the only one on its directories and checks what
// the parts would otherwise die of. The caller calls release at the end.
func (b *base) prepare(ctx context.Context, modules []preflight.Module, checks []preflight.Check) (release func(), err error) {
	// What is in them is closed by itself. Others pass through on the way to what is
	// theirs: machines' root, who is nobody here, and planes, each as a user of its own.
	for _, dir := range []string{b.cfg.Paths.Data, b.cfg.Paths.Run} {
		err := cmp.Or(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711))
		if errors.Is(err, syscall.EROFS) {
			return nil, fmt.Errorf("%w: mount it for writing; a systemd unit writes elsewhere than below %s and /run only if "+
				"a drop-in says so, with ReadWritePaths=%s (systemctl edit)", err, paths.DefaultData, dir)
		}
		if err != nil {
			return nil, err
		}
	}
	var locks []func()
	unlock := func() {
		for _, release := range slices.Backward(locks) {
			release()
		}
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	unlockData, err := lock(b.cfg.Paths.Lock())
	if err != nil {
		return nil, fmt.Errorf("%w: stop that one first, or set another data_dir", err)
	}
	locks = append(locks, unlockData)
	for _, err := range prepareKernel(ctx, modules) {
		b.log.Warn("prepare the kernel", "err", err)
	}
	results := preflight.Run(ctx, checks)
	for _, r := range results {
		if r.State == preflight.Warning || r.State == preflight.Skip {
			b.log.Warn("preflight", "check", r.String())
		}
	}
	if err := errors.Join(preflight.Failures(results)...); err != nil {
		return nil, err
	}
	// Another server or node on this host would take our workspaces' networks
	// for what its own, killed, has left. After the checks, which know better
	// what is in the way if a port is.
	unlockHost, err := lock(hostLock)
	if err != nil {
		return nil, fmt.Errorf("%w: a host is one server or one node: stop that one first", err)
	}
	locks = append(locks, unlockHost)
	b.payload, err = openPayload(b.cfg.PayloadKeys...)
	return unlock, err
}

func openPayload(more ...ed25519.PublicKey) (*payload.Payload, error) {
	keys, err := payload.TrustedKeys("")
	if err != nil {
		return nil, fmt.Errorf("payload keys: %w", err)
	}
	return payload.Self(append(keys, more...)...)
}

// hostLock is beside the folder of network namespaces, which is the same for all
// on a host.
const hostLock = "/run/multipaas-host.lock"

// unpack puts the payload's files on disk and forgets those of former versions
// that nothing runs from.
func (b *base) unpack(ctx context.Context, prefixes ...string) error {
	dir := b.cfg.Paths.Payload()
	root, err := b.payload.Unpack(ctx, dir, prefixes...)
	if err != nil {
		return err
	}
	b.tree = root
	if b.payload.ID() == "" {
		return nil // a folder in place of the payload
	}
	// What runs from a former version holds its files open, or mounted.
	return payload.Prune(ctx, dir, root)
}

// serverChecks are the preflight checks for a server with this configuration.
func serverChecks(cfg Config) []preflight.Check {
	l := cfg.Listen
	return preflight.Server(cfg.Paths.Data, []string{l.API, l.Kubernetes, l.Registry, l.HTTP, l.HTTPS})
}

// kubectl returns the path of the payload's newest kubectl, unpacked into the
// user's cache.
func kubectl(ctx context.Context) (string, error) {
	p, err := openPayload()
	if err != nil {
		return "", err
	}
	defer p.Close()
	versions, err := kubeVersions(p)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	version := versions[len(versions)-1]
	root, err := p.Unpack(ctx, filepath.Join(cache, "multipaas", "payload"), "kube/"+version)
	return filepath.Join(root, "kube", version, "kube"), err
}

// kubeVersions lists the Kubernetes versions in the payload, newest last.
func kubeVersions(p *payload.Payload) ([]string, error) {
	var out []string
	if dir := os.Getenv(payload.DirVariable); dir != "" {
		entries, err := os.ReadDir(filepath.Join(dir, "kube"))
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out, err
	}
	for _, f := range p.Manifest().Files {
		if p := strings.Split(f.Path, "/"); len(p) == 3 && p[0] == "kube" && p[2] == "kube" {
			out = append(out, p[1])
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the payload holds no Kubernetes: build it with: make")
	}
	return out, nil
}

// ErrInUse is returned when another process owns the data directory, or the
// host.
var ErrInUse = errors.New("another multipaas is running")

// lock takes a lock that the kernel drops when the process dies, however it
// dies.
func lock(file string) (release func(), err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(file)
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s is held by process %s", ErrInUse, file, strings.TrimSpace(string(holder)))
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}
