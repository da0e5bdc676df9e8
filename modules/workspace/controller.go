package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
)

// Networks keeps this server's side of workspaces' networks. Implemented by
// modules/network. Attach and Detach are idempotent.
type Networks interface {
	Attach(ctx context.Context, n wire.Network) error
	Detach(ctx context.Context, id string) error
	Attached() ([]string, error)
	// Dial connects from inside the network of a workspace; IP literals only.
	Dial(ctx context.Context, id, network, address string) (net.Conn, error)
}

// Plane is the control plane of one workspace.
type Plane interface {
	// Run serves until ctx is done. It calls ready whenever the plane has become
	// able to serve and died whenever it has died by itself, in that order; it
	// starts it again. An error means that it could not be run at all.
	Run(ctx context.Context, ready func(), died func(error)) error
	// RESTConfig is for the platform's own client, with every right.
	RESTConfig() *rest.Config
	// SetPodSecurity changes the enforced level without a restart.
	SetPodSecurity(level string) error
}

// Planes makes planes and removes what they leave. Implemented by appliance
// around embed/plane.
type Planes interface {
	New(ctx context.Context, w *resource.Workspace, keys *resource.WorkspaceKeys, plan wire.Plan) (Plane, error)
	// Remove deletes all data of a plane that is not running. None there is no error.
	Remove(ctx context.Context, id string) error
	// List returns the ids of planes that have data on this server.
	List() ([]string, error)
}

// Config is what a Controller needs.
type Config struct {
	Log      *slog.Logger
	Store    *store.Store
	Networks Networks
	Planes   Planes
	// Manifests renders what every cluster gets at birth, YAML documents.
	Manifests func(w *resource.Workspace, plan wire.Plan) ([]byte, error)

	Server  string     // this server's name
	Address netip.Addr // this server's underlay address
	Domain  string
	Plan    wire.Plan
	KubeAPI string // host:port that reaches the planes by SNI

	Workspaces *store.Cache[*resource.Workspace]
	Machines   *store.Cache[*resource.Machine]
	Nodes      *store.Cache[*resource.Node]
	Apps       *store.Cache[*resource.App]
}

// Controller runs the workspaces of this server. It is safe for concurrent use.
type Controller struct {
	cfg   Config
	queue workqueue.TypedRateLimitingInterface[string] // keys of workspaces
	slots chan struct{}                                // planes that may start at the same time

	placing sync.Mutex // one placement at a time, so that no node is promised twice

	mu       sync.Mutex
	runs     map[string]*run // by workspace id
	starved  map[string]bool // workspaces that wait for a node with room
	hosts    string          // names, addresses and phases of nodes when last seen
	runScope context.Context
	wg       sync.WaitGroup
}

// New makes a Controller.
func New(cfg Config) *Controller {
	c := &Controller{cfg: cfg, runs: map[string]*run{}, starved: map[string]bool{},
		// Two planes start at a time: each takes 3 CPU seconds, and a restart of
		// the server with a hundred of them shall bring the first back soon.
		slots: make(chan struct{}, 2),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 15*time.Second))}
	cfg.Workspaces.OnChange(c.queue.Add)
	cfg.Machines.OnChange(func(key string) { c.queue.Add(key[:strings.LastIndex(key, "/")]) })
	cfg.Apps.OnChange(func(key string) {
		if ws := key[:strings.LastIndex(key, "/")]; c.deleting(ws) {
			c.queue.Add(ws)
		}
	})
	cfg.Nodes.OnChange(func(string) { c.nodesChanged() })
	return c
}

func (c *Controller) deleting(key string) bool {
	w, ok := c.cfg.Workspaces.Get(key)
	return ok && w.Deleting()
}

// nodesChanged queues whom a change of nodes concerns: all workspaces when a
// node came, went or moved, else only those that wait for room. Heartbeats
// change nodes every ten seconds and shall cost nothing.
func (c *Controller) nodesChanged() {
	var b strings.Builder
	for _, n := range c.cfg.Nodes.List("") {
		fmt.Fprintln(&b, n.Name, n.Status.Address, n.Status.Phase, n.Spec.Unschedulable, n.Deleting(), n.Status.Capacity)
	}
	c.mu.Lock()
	changed := c.hosts != b.String()
	c.hosts = b.String()
	c.mu.Unlock()
	if changed {
		for _, w := range c.cfg.Workspaces.List("") {
			c.queue.Add(w.Key())
		}
	}
}

// Run works until ctx is done and then stops all planes. The caches must be
// complete before.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	scope, cancel := context.WithCancel(ctx)
	defer c.wg.Wait()
	defer cancel()
	c.runScope = scope
	if err := c.sweep(ctx); err != nil {
		return err
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer c.queue.ShutDown()
	for _, w := range c.cfg.Workspaces.List("") {
		c.queue.Add(w.Key())
	}
	// Workers mostly wait, for clusters of which some are slow.
	for range 32 {
		workers.Go(func() { c.work(scope) })
	}
	ready()
	<-ctx.Done()
	return nil
}

// sweep removes what workspaces left on this server that are in the store no
// more: the server was killed between their last steps.
func (c *Controller) sweep(ctx context.Context) error {
	known := map[string]bool{}
	for _, w := range c.cfg.Workspaces.List("") {
		known[w.Status.ID] = true
	}
	planes, err := c.cfg.Planes.List()
	if err != nil {
		return fmt.Errorf("list planes: %w", err)
	}
	for _, id := range planes {
		if !known[id] {
			c.cfg.Log.Info("removing the data of a plane whose workspace is gone", "id", id)
			if err := c.cfg.Planes.Remove(ctx, id); err != nil {
				return fmt.Errorf("remove plane %s: %w", id, err)
			}
		}
	}
	networks, err := c.cfg.Networks.Attached()
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	for _, id := range networks {
		if !known[id] {
			c.cfg.Log.Info("removing the network of a workspace that is gone", "id", id)
			if err := c.cfg.Networks.Detach(ctx, id); err != nil {
				return fmt.Errorf("remove network %s: %w", id, err)
			}
		}
	}
	return nil
}

func (c *Controller) work(ctx context.Context) {
	for {
		key, quit := c.queue.Get()
		if quit {
			return
		}
		again, err := c.pass(ctx, key)
		c.queue.Done(key)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, store.ErrConflict):
			c.queue.AddRateLimited(key) // somebody else wrote: look again
		case err != nil:
			c.cfg.Log.Warn("workspace not as wanted yet", "workspace", key, "error", err)
			c.queue.AddRateLimited(key)
		case again > 0:
			c.queue.AddAfter(key, again)
		default:
			c.queue.Forget(key)
		}
	}
}

// passTimeout bounds one pass over a workspace, clusterTimeout what of it is
// asked of its cluster about one machine. A tenant decides how slow his cluster
// answers, by webhooks; he must not hold the workers that others wait for.
const (
	passTimeout    = time.Minute
	clusterTimeout = 20 * time.Second
)

func (c *Controller) pass(ctx context.Context, key string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	return c.reconcile(ctx, key)
}

// reconcile takes one workspace further. It returns after how long to look
// again when nothing will announce the next change, 0 for never.
func (c *Controller) reconcile(ctx context.Context, key string) (time.Duration, error) {
	w, err := store.Of[resource.Workspace](c.cfg.Store).Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil // its last pass took everything away
	} else if err != nil {
		return 0, err
	}
	if w.Deleting() {
		return c.remove(ctx, w)
	}
	if w.Status.ID == "" {
		return 0, c.allocate(ctx, w) // the write queues it again
	}
	if w.Status.Server != c.cfg.Server && w.Status.Server != "" {
		return 0, nil // another server runs it
	}
	keys, err := store.Of[resource.WorkspaceKeys](c.cfg.Store).Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("keys of %s: %w", key, err)
	}

	s := &progress{}
	machines := c.cfg.Machines.List(key)
	err = c.network(ctx, w, machines)
	s.set(resource.WorkspaceNetworkReady, err == nil, "Attached", "NotAttached", err)
	var again time.Duration
	if err == nil {
		again, err = c.cluster(ctx, w, keys, machines, s)
	}
	// Also when the time of this pass is over: the status says what held it up.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if writeErr := c.writeStatus(wctx, w, s); writeErr != nil {
		return 0, writeErr
	}
	return again, err
}

// cluster takes everything above the network further.
func (c *Controller) cluster(ctx context.Context, w *resource.Workspace, keys *resource.WorkspaceKeys, machines []*resource.Machine, s *progress) (time.Duration, error) {
	r := c.plane(w, keys)
	up, message := r.state()
	s.add(resource.WorkspacePlaneReady, up, "Serving", "Starting", message)
	if up {
		if err := r.setPodSecurity(w.Spec.PodSecurity); err != nil {
			return 0, err
		}
	}

	// Machines are placed while the plane starts: both take seconds.
	short, err := c.place(ctx, w, machines)
	s.add(resource.WorkspaceScheduled, err == nil && short == "", "Placed", resource.NoCapacity, short)
	if err != nil {
		return 0, err
	}
	again, err := c.followMachines(ctx, w, r, machines, s)
	if err != nil {
		return 0, err
	}
	if !up {
		s.add(resource.WorkspaceAddonsReady, false, "", "Waiting", "waiting for the plane")
		return again, nil
	}
	if ok, err := r.bindDevelopers(ctx); err != nil {
		s.add(resource.WorkspaceAddonsReady, false, "", "NotApplied", err.Error())
		return 0, err
	} else if !ok {
		s.add(resource.WorkspaceAddonsReady, false, "", "Waiting", "waiting for the list of namespaces")
		return again, nil
	}
	message, err = r.addons(ctx, c.cfg.Manifests, w, c.cfg.Plan)
	if err != nil {
		s.add(resource.WorkspaceAddonsReady, false, "", "NotApplied", err.Error())
		return 0, fmt.Errorf("addons: %w", err)
	}
	s.add(resource.WorkspaceAddonsReady, message == "", "Ready", "Waiting", message)
	if message != "" {
		again = soonest(again, time.Second)
	}
	return again, nil
}

func soonest(a, b time.Duration) time.Duration {
	if a == 0 || (b > 0 && b < a) {
		return b
	}
	return a
}

// network attaches the workspace's network on this server, members included.
func (c *Controller) network(ctx context.Context, w *resource.Workspace, machines []*resource.Machine) error {
	hosts := wire.Hosts(c.cfg.Nodes.List(""), c.cfg.Server, c.cfg.Address)
	return c.cfg.Networks.Attach(ctx, wire.NetworkFor(w, c.cfg.Plan, machines, c.cfg.Server, c.cfg.Server, hosts))
}

// progress collects the conditions of one pass.
type progress struct {
	conditions    []resource.Condition
	machinesReady int
}

func (s *progress) add(t string, ok bool, yes, no, message string) {
	c := resource.Condition{Type: t, Status: resource.False, Reason: no, Message: message}
	if ok {
		c = resource.Condition{Type: t, Status: resource.True, Reason: yes}
	}
	s.conditions = append(s.conditions, c)
}

func (s *progress) set(t string, ok bool, yes, no string, err error) {
	message := ""
	if err != nil {
		message = err.Error()
	}
	s.add(t, ok, yes, no, message)
}

// writeStatus writes what this pass saw, if anything of it is new.
func (c *Controller) writeStatus(ctx context.Context, seen *resource.Workspace, s *progress) error {
	_, err := store.Of[resource.Workspace](c.cfg.Store).Modify(ctx, seen.Key(), func(w *resource.Workspace) error {
		if w.UID != seen.UID || w.Deleting() {
			return store.ErrSkip
		}
		changed, all := false, true
		for _, cond := range s.conditions {
			changed = w.Status.Conditions.Set(cond) || changed
			all = all && cond.Status == resource.True
		}
		phase := resource.Creating
		switch was := w.Status.Phase; {
		case all && len(s.conditions) == 5:
			phase = resource.Ready
		case w.Status.ObservedGeneration != seen.Generation && was != resource.Creating && was != resource.Pending && was != "":
			phase = resource.Updating
		case was == resource.Ready || was == resource.Degraded:
			phase = resource.Degraded
		case was == resource.Updating:
			phase = resource.Updating
		}
		if w.Status.Phase != phase || w.Status.MachinesReady != s.machinesReady || w.Status.ObservedGeneration != seen.Generation {
			changed = true
		}
		if !changed {
			return store.ErrSkip
		}
		w.Status.Phase, w.Status.MachinesReady = phase, s.machinesReady
		w.Status.ObservedGeneration = seen.Generation
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
