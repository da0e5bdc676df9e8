package workspace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// followContents queues a workspace when something that a tenant made in it is
// gone: its removal waits for the last. It returns once no such end is missed any
// more. A watch for each kind remembers keys; a cache would hold every value again.
func (c *Controller) followContents(ctx context.Context) {
	for _, k := range resource.Counted() {
		if k.Scope != resource.OfWorkspace {
			continue
		}
		events := store.Any(c.cfg.Store, k).Watch(ctx, "")
		for e := range events {
			if e.Type == store.Synced {
				break
			}
		}
		c.wg.Go(func() {
			for e := range events {
				if e.Type == store.Deleted {
					c.loop.Add(k.Scope.Parent(e.Key))
				}
			}
		})
	}
}

// remove takes a workspace away, machines first, the resource last. Nothing of
// it is left when the resource is gone.
func (c *Controller) remove(ctx context.Context, w *resource.Workspace) error {
	if err := c.hold(ctx, w, c.cfg.Machines.List(w.Key())); err != nil {
		return err
	}
	machines, err := c.removeMachines(ctx, w)
	if err != nil {
		return err
	}
	// The API does so too, but a server that was killed just before that would have
	// left the workspace to wait for apps that nobody takes away.
	left, err := c.cfg.Store.Clear(ctx, w)
	if err != nil {
		return err
	}
	if machines > 0 || len(left) > 0 {
		return c.observeRemoval(ctx, w, machines, left)
	}
	if id := w.Status.ID; id != "" {
		c.end(id)
		failpoint.Reach("workspace/delete/plane-stopped")
		if err := c.cfg.Planes.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove plane of %s: %w", w.Key(), err)
		}
		failpoint.Reach("workspace/delete/plane-removed")
		if err := c.cfg.Networks.Detach(ctx, id); err != nil {
			return fmt.Errorf("remove network of %s: %w", w.Key(), err)
		}
		failpoint.Reach("workspace/delete/network-removed")
	}
	// The same pass again after a kill finds the three still there, or none.
	db := c.cfg.Store
	ops := []store.Op{store.Of[resource.Workspace](db).DeleteOp(w)}
	if w.Status.VNI != 0 {
		keys := &resource.WorkspaceKeys{Workspace: w.Key()}
		ops = append(ops, store.Of[resource.WorkspaceKeys](db).DeleteOp(keys))
		// The claims stay until the nodes, too, have said that nothing is left.
		retired, err := c.onClaims(ctx, w, func(v *resource.VNI) bool {
			v.Retired, v.RetiredAt = true, time.Now()
			c.leave(v)
			return true
		})
		if err != nil {
			return err
		}
		ops = append(ops, retired...)
	}
	if err := db.Commit(ctx, ops...); err != nil {
		return fmt.Errorf("remove %s: %w", w.Key(), err)
	}
	failpoint.Reach("workspace/delete/committed")
	c.starved.Delete(w.Key())
	c.held.Delete(w.UID)
	c.freed() // others may have waited for its room
	c.cfg.Log.Info("workspace removed", "workspace", w.Key(), "id", w.Status.ID)
	return nil
}

// leave notes that nothing of a workspace is on this server any more.
func (c *Controller) leave(v *resource.VNI) {
	v.Servers = slices.DeleteFunc(v.Servers, func(name string) bool { return name == c.cfg.Server })
}

// letGo leaves the claims of workspaces that are gone, of which sweep has left nothing
// here: another server took them away when this one was down.
func (c *Controller) letGo(ctx context.Context) error {
	kind := store.Of[resource.VNI](c.cfg.Store)
	claims, _, err := kind.List(ctx, "", "", 0)
	if err != nil {
		return fmt.Errorf("list claims: %w", err)
	}
	for _, claim := range claims {
		if !claim.Retired || !slices.Contains(claim.Servers, c.cfg.Server) {
			continue
		}
		_, err := kind.Modify(ctx, claim.Key(), func(v *resource.VNI) error {
			if !v.Retired {
				return store.ErrSkip
			}
			c.leave(v)
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("claim %s: %w", claim.Name, err)
		}
	}
	return nil
}

// removeMachines returns how many machines are left. A call may come late, when the
// workspace is gone and another one has its name: that one's machines stay.
func (c *Controller) removeMachines(ctx context.Context, w *resource.Workspace) (left int, err error) {
	db := c.cfg.Store
	kind := store.Of[resource.Machine](db)
	going := store.Of[resource.Workspace](db).ModifyOp(w.Key(), func(now *resource.Workspace) error {
		if now.UID != w.UID {
			return store.ErrConflict
		}
		return store.ErrSkip
	})
	machines, _, err := kind.List(ctx, w.Key(), "", 0)
	if err != nil {
		return 0, err
	}
	for _, m := range machines {
		end := kind.DeleteOp(m)
		if !m.Status.Conditions.Is(resource.MachineRemoved) {
			end = c.markMachine(m, "WorkspaceDeleted")
			left++
		}
		if err := db.Commit(ctx, going, end); err != nil && !errors.Is(err, store.ErrNotFound) {
			return 0, err
		}
		failpoint.Reach("workspace/delete/machines-marked")
	}
	return left, nil
}

// markMachine asks for the end of a machine. It is drained first, unless undrained
// says why it need not be.
func (c *Controller) markMachine(m *resource.Machine, undrained string) store.Op {
	return store.Of[resource.Machine](c.cfg.Store).ModifyOp(m.Key(), func(x *resource.Machine) error {
		if x.UID != m.UID {
			return store.ErrSkip
		}
		if undrained != "" {
			x.Status.Conditions.Set(resource.Condition{Type: resource.MachineDrained, Status: resource.True, Reason: undrained})
		}
		if !x.Deleting() {
			x.DeletedAt = new(time.Now().UTC())
		}
		x.Status.Phase = resource.Deleting
		return nil
	})
}

// observeRemoval writes what the removal still waits for.
func (c *Controller) observeRemoval(ctx context.Context, w *resource.Workspace, machines int, left map[string]int) error {
	cond := resource.Condition{Type: "MachinesRemoved", Status: resource.True, Reason: "Removing"}
	if machines > 0 {
		cond.Status, cond.Message = resource.False, fmt.Sprintf("%d machines are being taken away", machines)
		if c.hostIsSilent(w) {
			// Which one is for the operator, who finds it among the problems of the status.
			cond.Message += "; a host of them does not report; the operator sees which with: multipaas status"
		}
	} else {
		cond.Message = strings.Join(slices.Sorted(maps.Keys(left)), " and ") + " are being taken away"
	}
	return store.Of[resource.Workspace](c.cfg.Store).Observe(ctx, w, func(now *resource.Workspace) {
		now.Status.Conditions.Set(cond)
		now.Status.Phase = resource.Deleting
	})
}

// hostIsSilent says whether a host of the workspace's machines does not report.
func (c *Controller) hostIsSilent(w *resource.Workspace) bool {
	return slices.ContainsFunc(c.cfg.Machines.List(w.Key()), func(m *resource.Machine) bool {
		n, ok := c.cfg.Nodes.Get(m.Spec.Node)
		return ok && n.Status.Phase == resource.Degraded
	})
}
