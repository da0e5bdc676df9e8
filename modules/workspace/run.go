package workspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// run is one plane while it runs on this server, with what watches it.
type run struct {
	id, key string
	apiHost string
	cancel  context.CancelCauseFunc
	done    chan struct{}
	changed chan struct{} // told when a machine came or went

	mu   sync.Mutex
	live live

	// These are the passes' own, of which there is one at a time.
	bound    map[types.UID]bool // namespaces; true: developers may work there
	manifest [32]byte           // what of the addons was applied
	dnsReady bool
}

// live is what is known of a plane and its cluster.
type live struct {
	plane    Plane
	level    string // of Pod Security, as last set
	told     bool   // who lives, and that is machines
	machines []string
	share    share // of the room, as last told
	serving  bool
	problem  string

	config     *rest.Config // of the platform's clients, with the bounds
	client     kubernetes.Interface
	nodes      *mirror.Mirror[node]
	namespaces *mirror.Mirror[namespace]
}

// followed says whether nodes and namespaces hold what there is.
func (l live) followed() bool {
	return l.nodes != nil && l.nodes.IsSynced() && l.namespaces.IsSynced()
}

func (r *run) now() live {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live
}

func (r *run) note(change func(*live)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.live)
}

// state says whether the plane serves, and if not, why.
func (r *run) state() (bool, string) {
	now := r.now()
	if now.serving && now.problem == "" {
		return true, ""
	}
	return false, cmp.Or(now.problem, "the plane is starting")
}

func (r *run) setPodSecurity(level string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live.level == level {
		return nil
	}
	if err := r.live.plane.SetPodSecurity(level); err != nil {
		return fmt.Errorf("pod security level %s: %w", level, err)
	}
	r.live.level = level
	return nil
}

// setMachines tells the plane which of its machines live. It hears of it at once,
// whatever holds up the workspace's pass: a machine that was given up may be in the
// hands of others.
//
// lives is asked inside, so that of two calls the later one tells what it knows.
func (r *run) setMachines(lives func(key string) []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	uids := lives(r.key)
	if r.live.plane == nil || r.live.told && slices.Equal(r.live.machines, uids) {
		return nil
	}
	if err := r.live.plane.SetMachines(uids); err != nil {
		return fmt.Errorf("machines of the plane: %w", err)
	}
	r.live.told, r.live.machines = true, uids
	return nil
}

// lives are the UIDs of a workspace's machines that speak to its plane.
func (c *Controller) lives(key string) []string {
	uids := []string{}
	for _, m := range c.cfg.Machines.List(key) {
		if m.Lives() {
			uids = append(uids, m.UID)
		}
	}
	return uids
}

// machinesChanged has the plane of a workspace told. It doesn't block.
func (c *Controller) machinesChanged(workspace string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.runs {
		if r.key == workspace {
			r.machinesChanged()
		}
	}
}

func (r *run) machinesChanged() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// tellPlane keeps a plane told of which machines live, until ctx is done. Each is told
// by itself: its file may be on a disk that is slow, or full.
func (c *Controller) tellPlane(ctx context.Context, r *run) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		}
		if err := r.setMachines(c.lives); err != nil {
			c.cfg.Log.Error("a plane may listen to a machine that is gone", "workspace", r.key, "err", err)
			time.AfterFunc(time.Second, r.machinesChanged) // pacing
		}
	}
}

// plane returns the run of a workspace's plane, starting it if there is none.
func (c *Controller) plane(w *resource.Workspace, keys *resource.WorkspaceKeys) *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.runs[w.Status.ID]; r != nil {
		return r
	}
	ctx, cancel := context.WithCancelCause(c.runScope)
	r := &run{id: w.Status.ID, key: w.Key(), apiHost: w.Status.APIHost,
		cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}, 1)}
	c.runs[r.id] = r
	c.wg.Go(func() { c.tellPlane(ctx, r) })
	c.wg.Go(func() {
		defer close(r.done)
		defer cancel(nil)
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			err := c.runPlane(ctx, r, w, keys)
			if ctx.Err() != nil {
				return
			}
			c.cfg.Log.Error("plane ended; it is started again", "workspace", r.key, "err", err, "in", wait)
			c.serves(r, fmt.Errorf("the plane does not run: %w", err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait): // pacing, not waiting for an event
			}
		}
	})
	return r
}

// runPlane runs the plane once, when it has its turn between its start and its first
// readiness.
func (c *Controller) runPlane(ctx context.Context, r *run, w *resource.Workspace, keys *resource.WorkspaceKeys) error {
	release, err := c.slots.Take(ctx, w.Account)
	if err != nil {
		return nil
	}
	defer release()
	// A plane that can't become ready must not hold up the others.
	patience := time.AfterFunc(time.Minute, release)
	defer patience.Stop()

	p, err := c.cfg.Planes.New(ctx, w, keys, c.cfg.Plan)
	if err != nil {
		return err
	}
	r.note(func(l *live) {
		l.plane, l.level, l.told, l.share, l.problem = p, w.Spec.PodSecurity, false, share{}, ""
	})
	if err := r.setMachines(c.lives); err != nil {
		return err
	}
	began := time.Now()
	// The client's certificate is there once the plane has been started.
	connect := sync.OnceValue(func() error {
		account, _, _ := strings.Cut(r.key, "/")
		cfg := c.bounds.Config(p.RESTConfig(), account)
		cfg.QPS, cfg.Burst = 50, 100
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return err
		}
		c.cfg.Log.Info("plane ready", "workspace", r.key, "id", r.id, "after", time.Since(began).Round(time.Millisecond))
		r.note(func(l *live) { l.config, l.client = cfg, client })
		c.followCluster(ctx, r, client)
		return nil
	})
	return p.Run(ctx, func() {
		failpoint.Reach("workspace/create/plane-ready")
		release()
		err := connect()
		if err != nil {
			err = fmt.Errorf("no client for the plane: %w", err)
		}
		c.serves(r, err)
	}, func(err error) {
		c.serves(r, fmt.Errorf("the plane has died and is started again: %w", err))
	})
}

// serves notes that the plane serves, or why it does not, and has that looked at.
func (c *Controller) serves(r *run, problem error) {
	r.note(func(l *live) {
		if l.serving, l.problem = problem == nil, ""; problem != nil {
			l.problem = problem.Error()
		}
	})
	c.loop.Add(r.key)
}

// end ends the plane with this id, if it runs, for ever, and waits until it has. Nothing is
// told to it, by files in its folder, after that.
func (c *Controller) end(id string) {
	c.mu.Lock()
	r := c.runs[id]
	delete(c.runs, id)
	c.mu.Unlock()
	if r != nil {
		r.cancel(child.ErrUnneeded)
		<-r.done
		r.note(func(l *live) { l.plane = nil }) // waits for who tells it something now
	}
}

// Client returns a client with every right in the workspace's cluster. It wraps
// resource.ErrNotReady while the plane does not serve.
func (c *Controller) Client(_ context.Context, key string) (kubernetes.Interface, error) {
	r, err := c.serving(key)
	if err != nil {
		return nil, err
	}
	return r.now().client, nil
}

// ClientAs is Client with the rights of a user of the workspace's: what he may do in the
// cluster, and what is counted and logged as his, is the cluster's to say.
func (c *Controller) ClientAs(_ context.Context, key string, as resource.KubeUser) (kubernetes.Interface, error) {
	r, err := c.serving(key)
	if err != nil {
		return nil, err
	}
	cfg := rest.CopyConfig(r.now().config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: as.Name, Groups: as.Groups}
	return kubernetes.NewForConfig(cfg)
}

// serving returns the run of a workspace's plane that serves. It wraps
// resource.ErrNotReady if there is none.
func (c *Controller) serving(key string) (*run, error) {
	var r *run
	if w, ok := c.cfg.Workspaces.Get(key); ok {
		c.mu.Lock()
		r = c.runs[w.Status.ID]
		c.mu.Unlock()
	}
	if r == nil {
		return nil, fmt.Errorf("workspace %s: %w", key, resource.ErrNotReady)
	}
	if ok, why := r.state(); !ok {
		return nil, fmt.Errorf("workspace %s: %w: %s", key, resource.ErrNotReady, why)
	}
	return r, nil
}

// Dialer returns what connects to pods and machines from inside the network of
// the workspace.
func (c *Controller) Dialer(key string) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	w, ok := c.cfg.Workspaces.Get(key)
	if !ok || w.Status.ID == "" {
		return nil, fmt.Errorf("workspace %s: %w", key, resource.ErrNotReady)
	}
	id := w.Status.ID
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.cfg.Networks.Dial(ctx, id, network, address)
	}, nil
}

// PlanePort is where every plane listens in its network.
const PlanePort = 6443

// DialPlane connects to the plane that the TLS server name belongs to.
func (c *Controller) DialPlane(ctx context.Context, serverName string) (net.Conn, error) {
	id, _, _ := strings.Cut(serverName, ".")
	c.mu.Lock()
	r := c.runs[id]
	c.mu.Unlock()
	if r == nil || !strings.EqualFold(r.apiHost, serverName) {
		return nil, fmt.Errorf("server name %q: %w", serverName, resource.ErrUnknownPlane)
	}
	// A plane that starts refuses what it will allow once it has read its roles:
	// no answer is better than a wrong one.
	if ok, why := r.state(); !ok {
		return nil, fmt.Errorf("workspace %s: %w: %s", r.key, resource.ErrNotReady, why)
	}
	return c.cfg.Networks.Dial(ctx, id, "tcp", netip.AddrPortFrom(c.cfg.Plan.Plane, PlanePort).String())
}

// Access returns what a kubeconfig for the workspace needs. It wraps
// resource.ErrNotReady while the workspace has no keys yet.
func (c *Controller) Access(ctx context.Context, w *resource.Workspace) (resource.KubeAccess, error) {
	keys, err := store.Of[resource.WorkspaceKeys](c.cfg.Store).Get(ctx, w.Key())
	if errors.Is(err, store.ErrNotFound) {
		err = resource.ErrNotReady
	}
	if err != nil {
		return resource.KubeAccess{}, fmt.Errorf("workspace %s: %w", w.Key(), err)
	}
	return resource.KubeAccess{
		Server:     "https://" + c.cfg.KubeAPI,
		ServerName: w.Status.APIHost,
		CA:         string(keys.CACert),
		Context:    strings.Join([]string{w.Account, w.Organization, w.Name}, "-"),
	}, nil
}
