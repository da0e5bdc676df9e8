package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
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
	// Run serves until ctx is done; with the cause child.ErrUnneeded it ends as soon as it
	// can, for all that it keeps is taken away then. It calls ready whenever the plane has become
	// able to serve and died whenever it has died by itself, in that order; it
	// starts it again. An error means that it could not be run at all.
	Run(ctx context.Context, ready func(), died func(error)) error
	// RESTConfig is for the platform's own client, with every right.
	RESTConfig() *rest.Config
	// SetPodSecurity changes the enforced level without a restart.
	SetPodSecurity(level string) error
	// SetMachines says which machines the plane listens to, by their UIDs: others are
	// refused within seconds. Until the first call it listens to none, or to those of
	// an earlier run.
	SetMachines(uids []string) error
	// Room is what the datastore takes and what it may take now, in bytes; 0 if that is
	// not known yet.
	Room() (used, limit int64, err error)
	// Limit is what the datastore may take at most, in bytes.
	Limit() int64
	// SetShare says what it may take now, and a clause for users on why it is no more.
	SetShare(limit int64, why string) error
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

// Addresses are those that this server has besides its own on the platform's network.
// Implemented by modules/network.
type Addresses interface {
	List() []netip.Addr
	// OnChange has fn called after each change; it doesn't block.
	OnChange(fn func())
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
	Own     Addresses  // what it has besides; nil: nothing
	// Door says which are its service addresses now. Nil: it has none.
	Door    func() []netip.Addr
	Domain  string
	Plan    wire.Plan
	KubeAPI string // host:port that reaches the planes by SNI

	// RoomOf is what the datastores of an account's clusters may take together, in
	// bytes; 0, or nil: there is no bound.
	RoomOf func(account string) int64
	// FreeRoom is what all datastores of that kind on this server may take beyond what
	// they do, in bytes. Nil: as much as they like.
	FreeRoom func(context.Context, resource.Datastore) (int64, error)

	Workspaces *store.Cache[*resource.Workspace]
	Machines   *store.Cache[*resource.Machine]
	Nodes      *store.Cache[*resource.Node]
	Registerer prometheus.Registerer // takes the loop's metrics; nil: they are not kept
}

// Controller runs the workspaces of this server. It is safe for concurrent use.
type Controller struct {
	cfg   Config
	loop  *reconcile.Loop[string] // keys of workspaces
	slots *limiter.Turns[string]  // planes that may start at the same time, by account

	bounds mirror.Bounds // of what is read of clusters

	draw func() uint32 // a number that nobody may have; nil: at random

	placing sync.Mutex // one placement at a time, so that no node is promised twice

	held    sync.Map // UIDs of workspaces whose claims name who may have something of them
	starved sync.Map // keys of workspaces that wait for a node with room, and what was said of it
	hosts   sync.Map // what matters of each node, when last seen, by name

	runScope context.Context
	wg       sync.WaitGroup

	mu   sync.Mutex
	runs map[string]*run // by workspace id
}

// passTimeout bounds one pass over a workspace, clusterTimeout what of it is
// asked of its cluster about one machine. A tenant decides how slow his cluster
// answers, by webhooks; he must not hold the workers that others wait for.
const (
	passTimeout    = time.Minute
	clusterTimeout = 20 * time.Second
)

// New makes a Controller.
func New(cfg Config) *Controller {
	c := &Controller{
		cfg: cfg,
		// Two planes of an account start at a time: each takes 3 CPU seconds, and a
		// restart of the server with a hundred of them shall bring the first back soon.
		// One that can't start holds its place for a minute; the third is for others.
		slots: limiter.NewTurns[string](2, 3),
		runs:  map[string]*run{},
	}
	c.loop = reconcile.New(reconcile.Config[string]{
		Name:      "workspace",
		Log:       cfg.Log,
		Reconcile: c.reconcile,
		// A workspace whose cluster hangs is left alone, not its neighbours of the
		// same account; but together they hold an eighth of the workers, however
		// many of them hang. It is enough after a restart: passes are far shorter
		// than the starts of the planes, of which two run at a time.
		Tenant:     func(key string) string { return key },
		Share:      4,
		Workers:    32, // they mostly wait, for clusters of which some are slow
		Timeout:    passTimeout,
		MaxBackoff: 15 * time.Second,
		Registerer: cfg.Registerer,
	})
	cfg.Workspaces.OnChange(func(key string) {
		if w, ok := cfg.Workspaces.Get(key); ok && w.Deleting() {
			c.loop.Urge(key) // taking away needs no answer of its cluster
		} else {
			c.loop.Add(key)
		}
	})
	cfg.Machines.OnChange(func(key string) {
		workspace := resource.OfWorkspace.Parent(key)
		c.loop.Add(workspace)
		c.machinesChanged(workspace)
	})
	cfg.Nodes.OnChange(c.nodeChanged)
	if cfg.Own != nil {
		cfg.Own.OnChange(c.all)
	}
	return c
}

// nodeChanged queues all workspaces when a node came, went or moved: they attach
// its address. Those that wait for room are queued when there may be more.
// Heartbeats change nodes every ten seconds and shall cost nothing, and what a host
// says it has changes as often as it likes.
func (c *Controller) nodeChanged(name string) {
	var place, room string
	if n, ok := c.cfg.Nodes.Get(name); ok {
		place = fmt.Sprint(n.Status.Address, n.Status.Addresses, n.Status.Phase, n.Spec.Zone, n.Deleting())
		room = fmt.Sprint(n.Spec.Unschedulable, n.Status.Drivers, n.Status.Capacity)
	}
	was, _ := c.hosts.Swap(name, [2]string{place, room})
	if place == "" {
		c.hosts.Delete(name)
	}
	before, _ := was.([2]string)
	if before[0] != place {
		c.all()
	} else if before[1] != room {
		c.freed()
	}
}

// all queues all workspaces.
func (c *Controller) all() {
	for _, w := range c.cfg.Workspaces.List("") {
		c.loop.Add(w.Key())
	}
}

// Run works until ctx is done and then stops all planes. The caches must be
// complete before.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	defer c.wg.Wait()
	c.runScope = ctx
	if err := c.sweep(ctx); err != nil {
		return err
	}
	if err := c.letGo(ctx); err != nil {
		return err
	}
	c.followContents(ctx)
	c.wg.Go(func() { c.shareRoom(ctx) })
	ready()
	c.loop.Run(ctx)
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

// pass is one look at a workspace, and what it saw.
type pass struct {
	*resource.Workspace
	machines   []*resource.Machine // its own, as they were when the pass began
	run        *run
	again      time.Duration // when to look again though nothing announces a change; 0 is never
	conditions []resource.Condition
	ready      int // machines
}

// reconcile takes one workspace further.
func (c *Controller) reconcile(ctx context.Context, key string) (time.Duration, error) {
	w, err := store.Of[resource.Workspace](c.cfg.Store).Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil // its last pass took everything away
	} else if err != nil {
		return 0, err
	}
	if w.Deleting() {
		return 0, c.remove(ctx, w) // what it waits for announces its end
	}
	if w.Status.ID == "" {
		return 0, c.allocate(ctx, w) // the write queues it again
	}
	if w.Status.Server != c.cfg.Server && w.Status.Server != "" {
		return 0, nil // another server runs it
	}
	if usersOf(w) == 0 {
		err := c.giveUsers(ctx, w)
		if err == nil {
			return 0, nil // the write queues it again
		}
		// What is there goes on without, as it did: only new machines need them.
		c.cfg.Log.Warn("a workspace from before gets no range of users", "workspace", key, "err", err)
	}
	keys, err := store.Of[resource.WorkspaceKeys](c.cfg.Store).Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("keys of %s: %w", key, err)
	}

	p := &pass{Workspace: w, machines: c.cfg.Machines.List(key)}
	if err := c.hold(ctx, w, p.machines); err != nil {
		return 0, err // before anything of it is here
	}
	err = c.network(ctx, p)
	if err != nil {
		p.set(resource.WorkspaceNetworkReady, "", "NotAttached", err.Error())
	} else {
		p.set(resource.WorkspaceNetworkReady, "Attached", "", "")
		p.run = c.plane(w, keys)
		began := time.Now()
		err = reconcile.SlowSince(began, c.cluster(ctx, p)) // most of what it asks is its cluster
	}
	// Also when the time of this pass is over: the status says what held it up.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if writeErr := store.Of[resource.Workspace](c.cfg.Store).Observe(wctx, w, func(now *resource.Workspace) {
		p.writeTo(&now.Status, err == nil)
	}); writeErr != nil {
		return 0, writeErr
	}
	return p.again, err
}

// network attaches the workspace's network on this server, members included.
func (c *Controller) network(ctx context.Context, p *pass) error {
	nodes := c.cfg.Nodes.List("")
	hosts := wire.Hosts(nodes, c.cfg.Server, c.cfg.Address)
	var own []netip.Addr
	if c.cfg.Own != nil {
		own = c.cfg.Own.List()
	}
	var door []netip.Addr
	if c.cfg.Door != nil {
		door = c.cfg.Door()
	}
	return c.cfg.Networks.Attach(ctx, wire.NetworkFor(p.Workspace, c.cfg.Plan, p.machines, c.cfg.Server, c.cfg.Server, hosts,
		door, wire.Closed(nodes, hosts, door, own)))
}

// cluster takes everything above the network further.
func (c *Controller) cluster(ctx context.Context, p *pass) error {
	up, message := p.run.state()
	p.set(resource.WorkspacePlaneReady, "Serving", "Starting", message)
	if up {
		if err := p.run.setPodSecurity(p.Spec.PodSecurity); err != nil {
			return err
		}
	}

	// Machines are placed while the plane starts: both take seconds.
	short, err := c.place(ctx, p)
	if err != nil {
		// Not its own words: they may name a host.
		p.set(resource.WorkspaceScheduled, "", "NotPlaced", "placing machines has failed and is tried again")
		return err
	}
	p.set(resource.WorkspaceScheduled, "Placed", resource.NoCapacity, short)
	if err := c.followMachines(ctx, p); err != nil {
		return err
	}
	if !up {
		p.set(resource.WorkspaceAddonsReady, "", "Waiting", "waiting for the plane")
		return nil
	}
	message, err = c.furnish(ctx, p)
	if err != nil {
		p.set(resource.WorkspaceAddonsReady, "", "NotApplied", err.Error())
		return fmt.Errorf("addons: %w", err)
	}
	p.set(resource.WorkspaceAddonsReady, "Ready", "Waiting", message)
	return nil
}

// set notes the condition t: True, unless there is a message that says why not.
func (p *pass) set(t, yes, no, message string) {
	c := resource.Condition{Type: t, Status: resource.True, Reason: yes}
	if message != "" {
		c = resource.Condition{Type: t, Status: resource.False, Reason: no, Message: message}
	}
	p.conditions = append(p.conditions, c)
}

// writeTo writes into a status what this pass saw. The workspace is ready if all
// that the pass looked at is, and the pass got to its end.
func (p *pass) writeTo(s *resource.WorkspaceStatus, ended bool) {
	ready := ended
	for _, c := range p.conditions {
		s.Conditions.Set(c)
		ready = ready && c.Status == resource.True
	}
	switch was := s.Phase; {
	case ready:
		s.Phase = resource.Ready
	case was == resource.Creating || was == resource.Pending || was == "":
		s.Phase = resource.Creating
	case was == resource.Updating || s.ObservedGeneration != p.Generation:
		s.Phase = resource.Updating
	default:
		s.Phase = resource.Degraded
	}
	s.MachinesReady, s.ObservedGeneration = p.ready, p.Generation
}
