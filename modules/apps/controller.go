package apps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Clusters reaches the workspaces' clusters. Implemented by modules/workspace.
type Clusters interface {
	// Client returns a client with every right in the cluster of the workspace
	// with that key, the same one as long as it is good. An error says that there
	// is none now, in words for users; it is asked again. It must not block.
	Client(ctx context.Context, workspace string) (kubernetes.Interface, error)
}

// Config is what a Controller needs.
type Config struct {
	Log      *slog.Logger
	Store    *store.Store
	Clusters Clusters
	Images   Images

	Apps       *store.Cache[*resource.App]
	Workspaces *store.Cache[*resource.Workspace]

	Domain   string // hosts are below it
	Registry string // host:port of the platform's registry in references
	// RegistryNames are further names of it, which mean the same.
	RegistryNames []string
	// Registerer takes the metrics of the work queue. May be nil.
	Registerer prometheus.Registerer
}

const (
	// A look mostly waits for a cluster, so 32 of them cost some stacks and no
	// processor. A workspace holds one at most and an account a quarter. A cluster
	// that hangs holds one for 30 of 330 seconds in the end: some 350 of them, of
	// four accounts or more, have to hang at once until none is free.
	workers = 32
	share   = workers / 4
	// clusterTimeout bounds what a look waits for the cluster: two writes past a
	// webhook with its default limit of 10 s, and reserve. The rest of a look is to
	// say so.
	clusterTimeout = 30 * time.Second
	lookTimeout    = clusterTimeout + 10*time.Second

	// An image may be pushed after all, a plane come back: look again.
	retryImage = 20 * time.Second
	// Everything is told by watches. This is for what they miss.
	resync = 5 * time.Minute
	// Objects go within a second or two of their pods' grace.
	retryRemoval = 2 * time.Second
)

// Controller runs the apps of all workspaces.
type Controller struct {
	cfg            Config
	loop           *reconcile.Loop[string] // keys of apps
	clusterTimeout time.Duration

	scope    context.Context // Run's: clusters are watched as long as it runs
	watching sync.WaitGroup

	mu       sync.Mutex
	clusters map[string]*cluster // by key of the workspace
	applied  map[string]applied  // by key of the app
}

// New makes a Controller.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{
		cfg:            cfg,
		clusterTimeout: clusterTimeout,
		clusters:       map[string]*cluster{},
		applied:        map[string]applied{},
	}
	c.loop = reconcile.New(reconcile.Config[string]{
		Name:       "app",
		Log:        cfg.Log,
		Reconcile:  c.reconcile,
		Tenant:     resource.OfWorkspace.Parent,
		Share:      share,
		Workers:    workers,
		Timeout:    lookTimeout,
		Backoff:    200 * time.Millisecond,
		MaxBackoff: 15 * time.Second,
		Registerer: cfg.Registerer,
	})
	cfg.Apps.OnChange(c.loop.Add)
	// What a workspace is about changes how its apps fare; most changes of it are
	// of its machines, and a look at an app costs little.
	cfg.Workspaces.OnChange(func(key string) {
		add := c.loop.Add
		if ws, ok := cfg.Workspaces.Get(key); !ok || ws.Deleting() {
			add = c.loop.Urge // the cluster goes: the apps don't need it to go too
		}
		for _, app := range cfg.Apps.List(key) {
			add(app.Key())
		}
	})
	return c
}

// Run works until ctx is done. The caches must be complete before.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.watching.Wait()
	defer cancel()
	c.scope = ctx
	c.watching.Go(func() { c.watchRoutes(ctx) })
	ready()
	c.loop.Run(ctx)
	return nil
}

// watchRoutes looks at the app again when the balancer has said something about
// its route, or when somebody took the route away.
func (c *Controller) watchRoutes(ctx context.Context) {
	for e := range store.Of[resource.Route](c.cfg.Store).Watch(ctx, "") {
		r := e.Object
		if e.Type == store.Deleted {
			r = e.Previous
		}
		if r != nil && r.App != "" {
			c.loop.Add(r.Workspace + "/" + r.App)
		}
	}
}

// reconcile takes the next steps for one app. again is when to look at it anew
// without being told to; 0 is never.
func (c *Controller) reconcile(ctx context.Context, key string) (again time.Duration, err error) {
	workspace := resource.OfWorkspace.Parent(key)
	app, err := store.Of[resource.App](c.cfg.Store).Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		c.forget(key, workspace)
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	// From the store and not from the cache: an app is created together with a
	// look at its workspace, and the cache may not have that yet.
	ws, err := store.Of[resource.Workspace](c.cfg.Store).Get(ctx, workspace)
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && ws.Deleting():
		// The cluster goes, and all in it.
		return 0, c.removeResource(ctx, app)
	case err != nil:
		return 0, err
	case app.Deleting():
		return c.remove(ctx, app)
	}
	began := time.Now()
	again, err = c.deploy(ctx, app)
	return again, reconcile.SlowSince(began, err)
}

// late is what to say of err if it came because the cluster has used up its time, else
// nil.
func (c *Controller) late(inCluster context.Context, err error) error {
	if err == nil || !errors.Is(inCluster.Err(), context.DeadlineExceeded) {
		return nil
	}
	return reconcile.Slow(fmt.Errorf("its cluster hasn't answered within %v. A slow webhook may hold it up", c.clusterTimeout))
}

// observe stores what is seen of app.
func (c *Controller) observe(ctx context.Context, app *resource.App, status resource.AppStatus) error {
	return store.Of[resource.App](c.cfg.Store).Observe(ctx, app, func(now *resource.App) { now.Status = status })
}

// blocked stores conditions, because of which app can't go on.
func (c *Controller) blocked(ctx context.Context, app *resource.App, conditions ...resource.Condition) error {
	st := app.Status
	st.Conditions = slices.Clone(st.Conditions)
	for _, condition := range conditions {
		st.Conditions.Set(condition)
	}
	return c.observe(ctx, app, settle(app, st))
}

// waiting stores that app waits for its workspace: err says why, and condition is
// what can't come true meanwhile. It returns err, which passes by itself.
func (c *Controller) waiting(ctx context.Context, app *resource.App, condition string, err error) error {
	unreachable := not(condition, reasonUnreachable, "Waiting for the workspace: "+sentence(err.Error()))
	return reconcile.Expected(errors.Join(err, c.blocked(ctx, app, unreachable)))
}

// not is a condition that isn't true yet, never one that waiting will not mend.
func not(condition, reason, message string) resource.Condition {
	return resource.Condition{Type: condition, Status: resource.False, Reason: reason, Message: message}
}

func never(condition, reason, message string) resource.Condition {
	c := not(condition, reason, message)
	c.Final = true
	return c
}

// unlessGone is nil for the error of a Delete whose object is gone already.
func unlessGone(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
