package apps

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

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
}

const (
	workers = 4

	// An image may be pushed after all, a plane come back: look again.
	retryImage = 20 * time.Second
	// Everything is told by watches. This is for what they miss.
	resync = 5 * time.Minute
	// Objects go within a second or two of their pods' grace.
	retryRemoval = 2 * time.Second
)

// Controller runs the apps of all workspaces.
type Controller struct {
	cfg   Config
	queue workqueue.TypedRateLimitingInterface[string] // keys of apps

	mu       sync.Mutex
	clusters map[string]*cluster // by key of the workspace
	applied  map[string]applied  // by key of the app
	scope    context.Context     // Run's: clusters are watched as long as it runs
	watching sync.WaitGroup
}

// New makes a Controller.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{
		cfg: cfg,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 15*time.Second)),
		clusters: map[string]*cluster{},
		applied:  map[string]applied{},
	}
	cfg.Apps.OnChange(c.queue.Add)
	// What a workspace is about changes how its apps fare; most changes of it are
	// of its machines, and a pass over an app costs little.
	cfg.Workspaces.OnChange(func(key string) {
		for _, app := range cfg.Apps.List(key) {
			c.queue.Add(app.Key())
		}
	})
	return c
}

// Run works until ctx is done. The caches must be complete before.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer c.watching.Wait()
	defer wg.Wait()
	defer c.queue.ShutDown()
	defer cancel()
	c.mu.Lock()
	c.scope = ctx
	c.mu.Unlock()

	wg.Go(func() { c.watchRoutes(ctx) })
	for range workers {
		wg.Go(func() {
			for c.work(ctx) {
			}
		})
	}
	for _, app := range c.cfg.Apps.List("") {
		c.queue.Add(app.Key())
	}
	ready()
	<-ctx.Done()
	return nil
}

// watchRoutes looks at the app again when the balancer has said something about
// its route, or when somebody took the route away.
func (c *Controller) watchRoutes(ctx context.Context) {
	for e := range store.Of[resource.Route](c.cfg.Store).Watch(ctx, "", 0) {
		r := e.Object
		if e.Type == store.Deleted {
			r = e.Previous
		}
		if r != nil && r.App != "" {
			c.queue.Add(r.Workspace + "/" + r.App)
		}
	}
}

func (c *Controller) work(ctx context.Context) bool {
	key, quit := c.queue.Get()
	if quit {
		return false
	}
	defer c.queue.Done(key)
	began := time.Now()
	again, err := c.reconcile(ctx, key)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		level := slog.LevelWarn
		if _, passes := errors.AsType[*unreachableError](err); passes {
			level = slog.LevelDebug
		}
		c.cfg.Log.Log(ctx, level, "app not as wanted yet", "app", key, "err", err)
		c.queue.AddRateLimited(key)
	default:
		c.queue.Forget(key)
		if again > 0 {
			c.queue.AddAfter(key, again)
		}
		c.cfg.Log.Debug("looked at app", "app", key, "took", time.Since(began))
	}
	return true
}

// reconcile takes the next steps for one app. again is when to look at it anew
// without being told to; 0 is never.
func (c *Controller) reconcile(ctx context.Context, key string) (again time.Duration, err error) {
	workspace := key[:strings.LastIndexByte(key, '/')]
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
		return 0, c.remove(ctx, app)
	case err != nil:
		return 0, err
	case app.Deleting():
		return c.takeDown(ctx, app)
	}
	return c.bringUp(ctx, app)
}

// unreachableError says that a cluster can't be reached now, as happens while it
// starts.
type unreachableError struct{ error }

func (e *unreachableError) Unwrap() error { return e.error }

// say stores what is seen of app, unless it changed meanwhile: then it is in the
// queue again anyway.
func (c *Controller) say(ctx context.Context, app *resource.App, status resource.AppStatus) error {
	_, err := store.Of[resource.App](c.cfg.Store).Modify(ctx, app.Key(), func(now *resource.App) error {
		if now.UID != app.UID || now.Generation != app.Generation || now.Deleting() != app.Deleting() {
			return store.ErrSkip
		}
		now.Status = status
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// blocked stores that app can't go on because of condition.
func (c *Controller) blocked(ctx context.Context, app *resource.App, condition resource.Condition) error {
	st := app.Status
	st.Conditions = append(resource.Conditions(nil), st.Conditions...)
	st.Conditions.Set(condition)
	if condition.Type != resource.AppImageFound && !app.Deleting() {
		// What came before is so, or we would not be here.
		st.Conditions.Set(resource.Condition{Type: resource.AppImageFound, Status: resource.True})
	}
	return c.say(ctx, app, settle(app, st))
}
