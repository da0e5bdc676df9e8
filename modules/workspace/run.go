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

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// run is one plane while it runs on this server, with what watches it.
type run struct {
	id, key string
	apiHost string
	cancel  context.CancelFunc
	done    chan struct{}

	mu   sync.Mutex
	live live

	// These are the passes' own, of which there is one at a time.
	bound    map[types.UID]bool // namespaces in which developers may edit
	manifest [32]byte           // what of the addons was applied
	dnsReady bool
}

// live is what is known of a plane and its cluster.
type live struct {
	plane   Plane
	level   string // of Pod Security, as last set
	serving bool
	problem string

	client     kubernetes.Interface
	nodes      corelisters.NodeLister
	namespaces corelisters.NamespaceLister
	synced     bool // nodes and namespaces hold all there are
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

// plane returns the run of a workspace's plane, starting it if there is none.
func (c *Controller) plane(w *resource.Workspace, keys *resource.WorkspaceKeys) *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.runs[w.Status.ID]; r != nil {
		return r
	}
	ctx, cancel := context.WithCancel(c.runScope)
	r := &run{id: w.Status.ID, key: w.Key(), apiHost: w.Status.APIHost, cancel: cancel, done: make(chan struct{})}
	c.runs[r.id] = r
	c.wg.Go(func() {
		defer close(r.done)
		defer cancel()
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

// runPlane runs the plane once. At most cap(c.slots) are between their start
// and their first readiness.
func (c *Controller) runPlane(ctx context.Context, r *run, w *resource.Workspace, keys *resource.WorkspaceKeys) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	release := sync.OnceFunc(func() { <-c.slots })
	defer release()
	// A plane that can't become ready must not hold up the others.
	patience := time.AfterFunc(time.Minute, release)
	defer patience.Stop()

	p, err := c.cfg.Planes.New(ctx, w, keys, c.cfg.Plan)
	if err != nil {
		return err
	}
	r.note(func(l *live) { l.plane, l.level, l.problem = p, w.Spec.PodSecurity, "" })
	began := time.Now()
	// The client's certificate is there once the plane has been started.
	connect := sync.OnceValue(func() error {
		cfg := p.RESTConfig()
		cfg.QPS, cfg.Burst = 50, 100
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return err
		}
		c.cfg.Log.Info("plane ready", "workspace", r.key, "id", r.id, "after", time.Since(began).Round(time.Millisecond))
		r.note(func(l *live) { l.client = client })
		c.watchCluster(ctx, r, client)
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

// watchCluster follows the cluster's nodes and namespaces until ctx is done.
func (c *Controller) watchCluster(ctx context.Context, r *run, client kubernetes.Interface) {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	inf := f.Core().V1().Nodes()
	changed := func(any) { c.loop.Add(r.key) }
	_, err := inf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed,
		UpdateFunc: func(a, b any) {
			if old, cur := a.(*corev1.Node), b.(*corev1.Node); nodeReady(old) != nodeReady(cur) || old.Spec.PodCIDR != cur.Spec.PodCIDR {
				changed(b)
			}
		}})
	namespaces := f.Core().V1().Namespaces()
	_, err2 := namespaces.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed})
	if err := errors.Join(err, err2); err != nil {
		c.cfg.Log.Error("watch cluster", "workspace", r.key, "err", err)
		return
	}
	r.note(func(l *live) { l.nodes, l.namespaces = inf.Lister(), namespaces.Lister() })
	f.Start(ctx.Done())
	c.wg.Go(func() {
		f.WaitForCacheSync(ctx.Done())
		r.note(func(l *live) { l.synced = true })
		c.loop.Add(r.key)
		<-ctx.Done()
		f.Shutdown()
	})
}

// slim keeps of nodes and namespaces what this package looks at: they lie in the
// server's memory, and a tenant can make any number as large as he likes.
func slim(o any) (any, error) {
	if ns, ok := o.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, UID: ns.UID, ResourceVersion: ns.ResourceVersion,
			DeletionTimestamp: ns.DeletionTimestamp}}, nil
	}
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	kept := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion}}
	kept.Spec.PodCIDR = n.Spec.PodCIDR
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			c.Message = strings.Clone(c.Message[:min(len(c.Message), 1024)])
			kept.Status.Conditions = []corev1.NodeCondition{c}
		}
	}
	return kept, nil
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// stop ends the plane with this id, if it runs, and waits until it has.
func (c *Controller) stop(id string) {
	c.mu.Lock()
	r := c.runs[id]
	delete(c.runs, id)
	c.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// Client returns a client with every right in the workspace's cluster. It wraps
// resource.ErrNotReady while the plane does not serve.
func (c *Controller) Client(_ context.Context, key string) (kubernetes.Interface, error) {
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
	return r.now().client, nil
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
