package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/internal/quota"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// Config is what a Controller needs.
type Config struct {
	Log   *slog.Logger
	Store *store.Store
	// Seal seals the keys of encrypted volumes.
	Seal *seal.Key
	// Limits is what each account may have unless a sysadmin said otherwise.
	Limits resource.Limits

	Volumes    *store.Cache[*resource.Volume]
	Snapshots  *store.Cache[*resource.Snapshot]
	Trash      *store.Cache[*resource.Trash]
	Nodes      *store.Cache[*resource.Node]
	Machines   *store.Cache[*resource.Machine]
	Workspaces *store.Cache[*resource.Workspace]

	// Registerer takes the metrics of the work queue. May be nil.
	Registerer prometheus.Registerer
}

const (
	// A look asks the store alone: a few milliseconds each.
	workers = 8
	share   = workers / 4
	// Everything is told by caches. This is for volumes that no host has room for: room
	// comes without a word, a machine that got smaller say.
	retryPlacing = 20 * time.Second
)

// Controller takes volumes through their life. It is safe for concurrent use.
type Controller struct {
	cfg   Config
	quota quota.Quota             // grants what claims ask for
	loop  *reconcile.Loop[string] // keys of volumes
	snaps *reconcile.Loop[string] // keys of snapshots
	trash *reconcile.Loop[string] // keys of what is in the trash

	balances *reconcile.Loop[string] // see reconcileBalance

	placing chan struct{} // full while somebody chooses a host, so that two don't take the same room
	retries flowcontrol.RateLimiter
	moves   flowcontrol.RateLimiter // of copies on hosts that are removed, all of which ask: they don't hold up retries
	opens   opens
}

// New makes a Controller.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{cfg: cfg, quota: quota.Quota{Store: cfg.Store, Limits: cfg.Limits}, placing: make(chan struct{}, 1),
		retries: flowcontrol.NewTokenBucketRateLimiter(placingPace, placingBurst),
		moves:   flowcontrol.NewTokenBucketRateLimiter(placingPace, placingBurst)}
	loop := func(
		name string, look func(context.Context, string) (time.Duration, error), tenant resource.Scope,
	) *reconcile.Loop[string] {
		return reconcile.New(reconcile.Config[string]{
			Name:       name,
			Log:        cfg.Log,
			Reconcile:  look,
			Tenant:     tenant.Parent,
			Share:      share,
			Workers:    workers,
			Timeout:    30 * time.Second,
			Backoff:    200 * time.Millisecond,
			MaxBackoff: 15 * time.Second,
			Registerer: cfg.Registerer,
		})
	}
	c.loop = loop("volume", c.reconcile, resource.OfWorkspace)
	c.snaps = loop("snapshot", c.reconcileSnapshot, resource.OfWorkspace)
	c.trash = loop("trash", c.reconcileTrash, resource.OfOrganization)
	c.balances = loop("balance", c.reconcileBalance, resource.Platform)
	// How much of one is used is for people alone.
	cfg.Volumes.OnChangeOf(func(v *resource.Volume) any {
		v.Status.UsedBytes = 0
		for i := range v.Status.Bricks {
			v.Status.Bricks[i].UsedBytes = 0
		}
		return v
	}, func(key string) {
		c.loop.Add(key)
		c.tellCopies(key)
	})
	cfg.Snapshots.OnChangeOf(func(s *resource.Snapshot) any { s.Status.UsedBytes = 0; return s }, c.snaps.Add)
	cfg.Trash.OnChange(c.trash.Add)
	// A machine that came may be where a volume can be.
	cfg.Machines.OnChange(func(key string) {
		for _, v := range cfg.Volumes.List(resource.OfWorkspace.Parent(key)) {
			if v.Status.Node == "" { // or it is shared, and who sees it may be another
				c.loop.Add(v.Key())
			}
		}
	})
	return c
}

// Run works until ctx is done. The caches must be complete before.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.followNodes(ctx) })
	wg.Go(func() { c.snaps.Run(ctx) })
	wg.Go(func() { c.trash.Run(ctx) })
	wg.Go(func() { c.followBalances(ctx) })
	wg.Go(func() { c.balances.Run(ctx) })
	ready()
	c.loop.Run(ctx)
	return nil
}

// followNodes looks at the volumes of nodes that went, fell silent or came back. Most of
// what it is told are heartbeats.
func (c *Controller) followNodes(ctx context.Context) {
	for e := range store.Of[resource.Node](c.cfg.Store).Watch(ctx, "") {
		if e.Type == store.Put && e.Previous != nil && e.Previous.Status.Phase == e.Object.Status.Phase &&
			slices.Equal(e.Previous.Spec.Pools, e.Object.Spec.Pools) {
			continue
		}
		for _, v := range c.cfg.Volumes.List("") {
			waits := v.Spec.Class == resource.SharedVolume && v.Status.Phase != resource.Ready // perhaps for this host
			if placed(v) && (e.Type == store.Synced || on(v, e.Key)) || waits {
				c.loop.Add(v.Key())
			}
		}
		for _, s := range c.cfg.Snapshots.List("") {
			if e.Type == store.Synced || s.Status.Node == e.Key {
				c.snaps.Add(s.Key())
			}
		}
		for _, t := range c.cfg.Trash.List("") {
			if e.Type == store.Synced || on(t.Was(), e.Key) {
				c.trash.Add(t.Key())
			}
		}
	}
}

// placed says whether a volume has its host or hosts, and on whether one of them is called so.
func placed(v *resource.Volume) bool { return v.Status.Node != "" || len(v.Status.Bricks) > 0 }

func on(v *resource.Volume, node string) bool {
	return v.Status.Node == node || v.Status.Moving != nil && v.Status.Moving.Node == node ||
		slices.ContainsFunc(v.AllBricks(), func(b resource.VolumeBrick) bool { return b.Node == node })
}

// reconcile takes the next step for one volume.
func (c *Controller) reconcile(ctx context.Context, key string) (again time.Duration, err error) {
	v, err := store.Of[resource.Volume](c.cfg.Store).Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if v.Spec.Class == resource.SharedVolume {
		return c.reconcileShared(ctx, v)
	}
	if v.Deleting() {
		return end(ctx, c, store.Of[resource.Volume](c.cfg.Store), v, v.WorkspaceKey())
	}
	if v.Status.Node == "" {
		again, err = c.place(ctx, v)
		if err != nil || again > 0 {
			return again, err
		}
	}
	host, err := c.host(ctx, v)
	if err != nil {
		return 0, err
	}
	if v.Status.Moving != nil {
		return 0, c.move(ctx, v, host)
	}
	return 0, store.Of[resource.Volume](c.cfg.Store).Observe(ctx, v, func(now *resource.Volume) {
		if now.Status.Moving == nil {
			settle(now, host)
		}
	})
}

// host is the node that a volume is on, nil if that is not one of the platform's any
// more. The store is asked: a cache may be behind a join of a moment ago.
func (c *Controller) host(ctx context.Context, v *resource.Volume) (*resource.Node, error) {
	return c.nodeOf(ctx, v.Status.Node, v.Status.NodeUID)
}

func (c *Controller) nodeOf(ctx context.Context, name, uid string) (*resource.Node, error) {
	n, err := store.Of[resource.Node](c.cfg.Store).Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) || err == nil && n.UID != uid {
		return nil, nil
	}
	return n, err
}

const (
	diskLost     = "DiskLost"
	diskLostText = "the disk of its host that it was on was given up, and what it held is lost with it"
)

// settle computes the phase from what was seen.
func settle(v *resource.Volume, host *resource.Node) {
	s := &v.Status
	if host == nil {
		s.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "HostRemoved", Final: true,
			Message: "the host that it was on is not part of the platform any more, and what it held is lost with it"})
		s.Phase, s.ObservedGeneration = resource.Failed, v.Generation
		return
	}
	if host.LostPool(s.Pool) {
		s.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: diskLost, Final: true,
			Message: diskLostText})
		s.Phase, s.ObservedGeneration = resource.Failed, v.Generation
		return
	}
	if host.Silent() {
		s.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "HostSilent",
			Message: "the host that it is on does not report: what it holds comes back with that"})
	}
	ready := s.Conditions.Is(resource.VolumeReady)
	c := s.Conditions.Get(resource.VolumeReady)
	switch {
	case ready && s.SizeBytes >= v.Spec.SizeBytes:
		s.Phase, s.ObservedGeneration = resource.Ready, v.Generation
	case ready:
		s.Phase = resource.Updating
	case s.SizeBytes == 0 || c != nil && c.Reason == resource.VolumeRestored:
		s.Phase = resource.Creating
	default:
		s.Phase = resource.Degraded
	}
}

// stored is a volume, in the trash or not.
type stored interface {
	resource.Object
	Stored() *resource.VolumeStatus
}

// end takes a volume of a workspace away: its host first, the resource last.
func end[T stored](
	ctx context.Context, c *Controller, kind store.Kind[T], v T, workspace string,
) (again time.Duration, err error) {
	if over, err := endMove(ctx, c, kind, v); !over || err != nil {
		return 0, err
	}
	var host *resource.Node
	s := v.Stored()
	if s.Node != "" {
		if host, err = c.nodeOf(ctx, s.Node, s.NodeUID); err != nil {
			return 0, err
		}
	}
	if host != nil && !s.Conditions.Is(resource.VolumeRemoved) {
		if s.Phase != resource.Deleting { // or its host destroys it already
			what, err := c.neededFor(ctx, workspace, v.Metadata().UID)
			if err != nil {
				return 0, err
			}
			if what != "" {
				return retryNeeded, kind.Observe(ctx, v, func(now T) { waitFor(&now.Stored().Conditions, resource.VolumeRemoved, what) })
			}
		}
		if err := c.dropKey(ctx, workspace, v.Metadata().UID); err != nil {
			return 0, err
		}
		// The hub has its host destroy it from now on, and that reports.
		return 0, kind.Observe(ctx, v, func(now T) {
			now.Stored().Phase = resource.Deleting
			leaving(now.Stored(), host)
		})
	}
	return 0, forget(ctx, c, kind, v, workspace)
}

// forget deletes the resource of a volume of which nothing is left on hosts.
func forget[T resource.Object](ctx context.Context, c *Controller, kind store.Kind[T], v T, workspace string) error {
	if err := c.dropKey(ctx, workspace, v.Metadata().UID); err != nil {
		return err
	}
	failpoint.Reach("storage/volume/removed")
	if err := kind.Delete(ctx, v); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err // a conflict too: it is looked at again
	}
	c.cfg.Log.Info("volume removed", "kind", kind.Name(), "volume", v.Key())
	return nil
}

// leaving says what a volume waits for that shall be removed. Its host reports when it is.
func leaving(s *resource.VolumeStatus, host *resource.Node) {
	if s.Conditions.Is(resource.VolumeRemoved) {
		return
	}
	c := resource.Condition{Type: resource.VolumeRemoved, Status: resource.False, Reason: "Removing",
		Message: "its host takes it away"}
	if host.Silent() {
		c.Reason, c.Message = "HostSilent", "the host that it is on does not report: it goes once that does; "+
			"if the host never comes back, the operator has to give it up"
	}
	s.Conditions.Set(c)
}

// place chooses the host of a volume that nobody waits for: one that a machine of its
// workspace runs on. again is above 0 while there is none.
func (c *Controller) place(ctx context.Context, v *resource.Volume) (again time.Duration, err error) {
	if !c.hasMachine(v.WorkspaceKey()) {
		return retryPlacing, c.unplaced(ctx, v, noMachine)
	}
	if v.Status.Conditions.Get(resource.VolumePlaced) != nil && !c.retries.TryAccept() {
		return retryPlacing, nil // what it waits for stands there
	}
	var short *shortError
	if err := c.canSeal(ctx, v); errors.As(err, &short) {
		return retryPlacing, c.unplaced(ctx, v, short.Error())
	} else if err != nil {
		return 0, err
	}
	done, err := c.alone(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	at, err := c.choose(ctx, v, nil)
	if errors.As(err, &short) {
		return retryPlacing, c.unplaced(ctx, v, short.Error())
	}
	if err != nil {
		return 0, err
	}
	ops := append(c.stays(at), c.newKey(v))
	ops = append(ops, store.Of[resource.Volume](c.cfg.Store).ModifyOp(v.Key(), func(now *resource.Volume) error {
		if now.UID != v.UID || now.Deleting() || now.Status.Node != "" {
			return store.ErrNotFound // nothing of all this is to be written
		}
		at.note(now)
		return nil
	}))
	return time.Second, c.settlePlace(ctx, ops) // the cache tells sooner
}

// settlePlace writes which hosts a volume has. One that is gone needs none.
func (c *Controller) settlePlace(ctx context.Context, ops []store.Op) error {
	if err := c.cfg.Store.Commit(ctx, ops...); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	failpoint.Reach("storage/volume/placed")
	return nil
}

// spot is where a volume can be.
type spot struct {
	host *resource.Node
	pool string // UID of the host's
	// firstUID is the host's user who is root in the workspace's machines there.
	firstUID uint32
}

// note writes down that a volume is there.
func (at spot) note(v *resource.Volume) {
	v.Status.Node, v.Status.NodeUID, v.Status.Pool = at.host.Name, at.host.UID, at.pool
	v.Status.FirstUID, v.Status.Phase = at.firstUID, resource.Creating
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumePlaced, Status: resource.True, Reason: "Placed"})
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Creating",
		Message: "its host is making it"})
}

// stays counts on hosts that a volume was placed there, and fails if one, or the pool, is going when the
// commit happens: a volume on one that is no more would be lost at its birth. Who removes a host or a pool, and
// has looked for volumes before, notices that there is one more.
func (c *Controller) stays(at ...spot) (ops []store.Op) {
	for _, at := range at {
		ops = append(ops, store.Of[resource.Node](c.cfg.Store).ModifyOp(at.host.Name, func(n *resource.Node) error {
			if n.Deleting() || n.UID != at.host.UID || !n.Keeps(at.pool) {
				return fmt.Errorf("node %s, or its disk, is being removed", at.host.Name)
			}
			n.Status.Placings++
			return nil
		}))
	}
	return ops
}

// shortError says why no host can have a volume, in words for tenants.
type shortError struct{ text string }

func (e *shortError) Error() string { return e.text }

// alone waits until nobody else chooses a host. done lets the next.
func (c *Controller) alone(ctx context.Context) (done func(), err error) {
	select {
	case c.placing <- struct{}{}:
		return func() { <-c.placing }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// roomToGrow says why a volume can't have so many bytes more: OutOfRange if there are not so many, ResourceExhausted if it
// is to be tried again. The caller is alone.
func (c *Controller) roomToGrow(ctx context.Context, v *resource.Volume, more int64) error {
	if !placed(v) {
		return nil
	}
	if v.Status.Moving != nil {
		return refuse(codes.ResourceExhausted, "it is on its way to another host: try it again when it is there")
	}
	// What is made from it was promised as much as it has now.
	what, err := c.neededFor(ctx, v.WorkspaceKey(), v.UID)
	if err != nil {
		return internal(err)
	}
	if what != "" {
		return refuse(codes.ResourceExhausted, "%s is being made from it: try it again when that is Ready", what)
	}
	have, err := c.promises(ctx)
	if err != nil {
		return internal(err)
	}
	if v.Spec.Class == resource.SharedVolume {
		return c.roomForCopies(ctx, v, more, have.free)
	}
	host, err := c.host(ctx, v)
	if err != nil {
		return internal(err)
	}
	if host != nil && have.free(host, v.Status.Pool) < more {
		return refuse(codes.OutOfRange, "its host has not %s more free for it: ask the operator for more disk",
			resource.Bytes.Text(more))
	}
	return nil
}

// Grow calls commit, which writes that a volume shall have so many bytes more, unless its
// host has not so much free: an *access.Refusal.
func (c *Controller) Grow(ctx context.Context, v *resource.Volume, more int64, commit func() error) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = c.roomToGrow(ctx, v, more)
	if code := status.Code(err); code == codes.OutOfRange || code == codes.ResourceExhausted {
		return &access.Refusal{Reason: access.ErrExists, Text: "The volume can't grow: " + status.Convert(err).Message() + "."}
	}
	if err != nil {
		return err
	}
	return commit()
}

// choose picks the host of a volume: the one with the most room of those that run a machine of its workspace,
// and of these one in places, if any are given. The caller is alone. The error is a
// *shortError if none has room.
func (c *Controller) choose(ctx context.Context, v *resource.Volume, places []string) (at spot, err error) {
	workspace, size := v.WorkspaceKey(), v.Spec.SizeBytes
	ws, err := store.Of[resource.Workspace](c.cfg.Store).Get(ctx, workspace)
	if err != nil {
		return at, err
	}
	have, err := c.promises(ctx)
	if err != nil {
		return at, err
	}
	own, old := map[string]uint32{}, map[string]bool{}
	for _, m := range have.machines {
		switch {
		case m.WorkspaceKey() != workspace || m.Deleting():
		case m.Status.NoVolumes:
			old[m.Spec.Node] = true
		default:
			own[m.Spec.Node] = m.Spec.FirstUID
		}
	}
	if len(own) == 0 && len(old) == 0 {
		return at, &shortError{noMachine}
	}
	why := fmt.Sprintf("no host of its machines has %s free for it: ask for a smaller one, or the operator for more disk",
		resource.Bytes.Text(size))
	type room struct {
		n    *resource.Node
		pool string
		free int64
	}
	var fit []room
	for _, n := range c.cfg.Nodes.List("") {
		has, away := n.HasPool()
		switch _, here := own[n.Name]; {
		case !here && !old[n.Name] || places != nil && !slices.Contains(places, wire.Place(ws.UID, n.UID)):
		case !here:
			why = oldMachines
		case n.Spec.Unschedulable:
			why = "the host that could have it takes nothing new now: the operator has cordoned it"
		case n.Deleting() || n.Status.Phase != resource.Ready:
			why = "the host that could have it does not report: it is tried again"
		case away:
			why = "the disk with volumes of the host that could have it is away: the operator is told, and it is tried again"
		case !has:
			why = "the host that could have it keeps no volumes: the operator has to upgrade it first"
		case v.Importing() && !slices.Contains(n.Status.Drivers, wire.FileDriver):
			why = "the host that could have it takes no files yet: the operator has to upgrade it first"
		case v.Spec.Encrypted && !n.Encrypts():
			why = noEncryption
		case v.Spec.Block && !n.ShowsBlocks():
			why = noBlocks
		case have.crowded(n, workspace) != "":
			why = have.crowded(n, workspace)
		default:
			if pool, free := have.best(n); free >= size {
				fit = append(fit, room{n, pool, free})
			}
		}
	}
	if len(fit) == 0 {
		return at, &shortError{why}
	}
	best := slices.MaxFunc(fit, func(a, b room) int {
		return cmp.Or(cmp.Compare(ails(b.n), ails(a.n)), cmp.Compare(a.free, b.free), cmp.Compare(b.n.Name, a.n.Name))
	})
	return spot{best.n, best.pool, own[best.n.Name]}, nil
}
