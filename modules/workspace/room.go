package workspace

import (
	"context"
	"fmt"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Planes keep their objects on a disk, or in an etcd, that all tenants of a server
// share; and one account has many of them. So what an account's clusters take is
// bounded together, and all stop growing while there is still room for the server's
// own: each may take what it takes, and an equal part of what is left. Parts never
// add up to more than that, whatever is written between two looks.

// roomEvery is how often parts are made anew. A cluster that grows alone gets an
// equal part of what is left each time.
const roomEvery = 15 * time.Second

// minShare is what any cluster may take: an empty one with its addons takes 4 MiB.
const minShare = 16 << 20

// holder is one of the datastores that share.
type holder struct {
	workspace, account string
	pool               resource.Datastore // what of this server's it takes
	used, max          int64              // bytes
	ours               bool               // its plane is this server's
}

// share is what a datastore may take, and a clause on why it is no more.
type share struct {
	limit int64
	why   string
}

// shares divides what is left: bound is what the clusters of an account may take
// together, on all servers, 0 without a bound; free is what is left of a pool on this one.
// Only datastores of this server get a share.
func shares(all []holder, bound func(account string) int64, free map[resource.Datastore]int64) map[string]share {
	type sum struct{ used, n int64 }
	accounts, pools := map[string]sum{}, map[resource.Datastore]int64{}
	for _, h := range all {
		a := accounts[h.account]
		accounts[h.account] = sum{a.used + h.used, a.n + 1}
		if h.ours {
			pools[h.pool]++
		}
	}
	out := map[string]share{}
	for _, h := range all {
		if !h.ours {
			continue
		}
		s := share{limit: h.max}
		take := func(left, among int64, why string) {
			// Whole MiB, so that what is told changes seldom.
			if limit := max(minShare, (h.used+max(0, left)/among)>>20<<20); limit < s.limit {
				s = share{limit, why}
			}
		}
		if b := boundOf(bound, h.account); b > 0 {
			a := accounts[h.account]
			take(b-a.used, a.n, fmt.Sprintf("the clusters of the account %s may take %s together and take %s",
				h.account, resource.Bytes.Text(b), resource.Bytes.Text(a.used)))
		}
		if left, ok := free[h.pool]; ok {
			take(left, pools[h.pool], "the platform is short of room")
		}
		out[h.workspace] = s
	}
	return out
}

func boundOf(bound func(account string) int64, account string) int64 {
	if bound == nil {
		return 0
	}
	return bound(account)
}

// shareRoom makes parts again and again until ctx is done.
func (c *Controller) shareRoom(ctx context.Context) {
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		c.divideRoom(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// divideRoom tells each plane its share, and each workspace what it takes.
func (c *Controller) divideRoom(ctx context.Context) {
	var all []holder
	planes, workspaces := map[string]*run{}, map[string]*resource.Workspace{}
	for _, w := range c.cfg.Workspaces.List("") {
		if w.Status.ID == "" {
			continue
		}
		h := holder{workspace: w.Key(), account: w.Account, pool: w.Spec.Datastore, used: w.Status.DatastoreBytes}
		c.mu.Lock()
		r := c.runs[w.Status.ID]
		c.mu.Unlock()
		if r != nil {
			if plane := r.now().plane; plane != nil {
				used, _, err := plane.Room()
				if err != nil {
					c.cfg.Log.Warn("what a datastore takes is not known", "workspace", h.workspace, "err", err)
				} else if used > 0 {
					h.used = used
				}
				h.max, h.ours = plane.Limit(), true
				planes[h.workspace], workspaces[h.workspace] = r, w
			}
		}
		all = append(all, h)
	}
	free := map[resource.Datastore]int64{}
	for _, pool := range []resource.Datastore{resource.Kine, resource.Etcd} {
		if c.cfg.FreeRoom == nil {
			break
		}
		left, err := c.cfg.FreeRoom(ctx, pool)
		if err != nil {
			c.cfg.Log.Warn("free room for datastores is not known", "datastore", pool, "err", err)
			continue
		}
		free[pool] = left
	}
	parts := shares(all, c.cfg.RoomOf, free)
	for _, h := range all {
		s, ok := parts[h.workspace]
		if !ok {
			continue
		}
		if err := planes[h.workspace].setShare(s); err != nil {
			c.cfg.Log.Error("a plane may take more room than it should", "workspace", h.workspace, "err", err)
		}
		if err := c.tellRoom(ctx, workspaces[h.workspace], h, s); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("what a datastore takes is not told", "workspace", h.workspace, "err", err)
		}
	}
}

// setShare tells the plane, unless it knows.
func (r *run) setShare(s share) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live.plane == nil || r.live.share == s {
		return nil
	}
	if err := r.live.plane.SetShare(s.limit, s.why); err != nil {
		return fmt.Errorf("share of the room: %w", err)
	}
	r.live.share = s
	return nil
}

// roomCondition says how full a datastore is. Until it is full all is taken; what it takes is
// known to a hundredth of what it may.
func roomCondition(used int64, s share) resource.Condition {
	cond := resource.Condition{Type: resource.WorkspaceHasRoom, Status: resource.True, Reason: "Enough"}
	state := ""
	switch {
	case used > s.limit/100*98:
		cond.Status, cond.Reason = resource.False, "Full"
		state = "new ones are refused, others go on"
	case used > s.limit/100*90:
		cond.Reason = "NearlyFull"
		state = "new ones are refused when it is full"
	default:
		return cond
	}
	why := ""
	if s.why != "" {
		why = ", as " + s.why
	}
	cond.Message = fmt.Sprintf("the objects of its cluster take %d %% of what they may (%s)%s: %s. "+
		"Delete what is not needed; `kubectl get --raw /metrics` counts objects as apiserver_resource_objects",
		min(100, used/max(1, s.limit/100)), resource.Bytes.Text(s.limit), why, state)
	return cond
}

// tellRoom writes what the datastore takes into the workspace's status, if that has
// changed by more than a hundredth, or if it comes to be full or is no more.
func (c *Controller) tellRoom(ctx context.Context, w *resource.Workspace, h holder, s share) error {
	cond := roomCondition(h.used, s)
	was := w.Status.Conditions.Get(cond.Type)
	same := was != nil && was.Status == cond.Status && was.Message == cond.Message
	change := h.used - w.Status.DatastoreBytes
	if same && max(change, -change) <= h.max/100 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, roomEvery)
	defer cancel()
	return store.Of[resource.Workspace](c.cfg.Store).Observe(ctx, w, func(now *resource.Workspace) {
		now.Status.DatastoreBytes = h.used
		now.Status.Conditions.Set(cond)
	})
}
