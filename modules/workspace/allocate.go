package workspace

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// The range of network identifiers: RFC 7348 gives 24 bits; the low ones are
// left to the site's own networks.
const (
	firstVNI = 1 << 12
	lastVNI  = 1<<24 - 1
)

// allocate gives a new workspace its network identifier and its keys, in one
// write with the claim that makes the identifier unique.
func (c *Controller) allocate(ctx context.Context, w *resource.Workspace) error {
	keys, err := newKeys(w.Key())
	if err != nil {
		return fmt.Errorf("keys of %s: %w", w.Key(), err)
	}
	// Random, so that identifiers are not used again soon: a host that was away
	// may still hold the network of a workspace deleted meanwhile.
	n, err := rand.Int(rand.Reader, big.NewInt(lastVNI-firstVNI+1))
	if err != nil {
		return err
	}
	w.Status.VNI = uint32(firstVNI + n.Int64())
	w.Status.ID = fmt.Sprintf("%06x", w.Status.VNI)
	w.Status.APIHost = w.Status.ID + ".k8s." + c.cfg.Domain
	w.Status.Server = c.cfg.Server
	w.Status.Phase = resource.Creating
	claim := &resource.VNI{Workspace: w.Key(), UID: w.UID}
	claim.Name = strconv.FormatUint(uint64(w.Status.VNI), 10)
	db := c.cfg.Store
	err = db.Commit(ctx, store.Of[resource.VNI](db).CreateOp(claim), store.Of[resource.WorkspaceKeys](db).CreateOp(keys), store.Of[resource.Workspace](db).UpdateOp(w))
	faultpoint.Reach("workspace/create/allocated")
	if errors.Is(err, store.ErrExists) {
		return store.ErrConflict // another workspace has this number: draw again
	}
	return err
}

func newKeys(workspace string) (*resource.WorkspaceKeys, error) {
	k := &resource.WorkspaceKeys{Workspace: workspace, EncryptionKey: make([]byte, 32)}
	k.Name = "keys"
	if _, err := rand.Read(k.EncryptionKey); err != nil {
		return nil, err
	}
	var err error
	if k.CACert, k.CAKey, err = pki.NewCA("kubernetes"); err != nil {
		return nil, err
	}
	if k.SigningCACert, k.SigningCAKey, err = pki.NewCA("kubernetes-signing"); err != nil {
		return nil, err
	}
	if k.FrontProxyCACert, k.FrontProxyCAKey, err = pki.NewCA("front-proxy"); err != nil {
		return nil, err
	}
	k.ServiceAccountKey, err = pki.NewServiceAccountKey()
	return k, err
}

// remove takes a workspace away, machines first, the resource last. Nothing of
// it is left when the resource is gone.
func (c *Controller) remove(ctx context.Context, w *resource.Workspace) (time.Duration, error) {
	machines, _, _, err := store.Of[resource.Machine](c.cfg.Store).List(ctx, w.Key(), "", 0)
	if err != nil {
		return 0, err
	}
	left := 0
	for _, m := range machines {
		if m.Status.Conditions.Is(resource.MachineRemoved) {
			if err := store.Of[resource.Machine](c.cfg.Store).Delete(ctx, m); err != nil && !errors.Is(err, store.ErrNotFound) {
				return 0, err
			}
			continue
		}
		left++
		if err := c.markMachine(ctx, m, "WorkspaceDeleted"); err != nil {
			return 0, err
		}
		faultpoint.Reach("workspace/delete/machines-marked")
	}
	apps, _, _, err := store.Of[resource.App](c.cfg.Store).List(ctx, w.Key(), "", 0)
	if err != nil {
		return 0, err
	}
	for _, app := range apps {
		// The API does so too, but a server that was killed just before that would
		// have left the workspace to wait for apps that nobody takes away.
		if _, err := store.Of[resource.App](c.cfg.Store).MarkDeleted(ctx, app.Key()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return 0, err
		}
	}
	if left > 0 || len(apps) > 0 {
		return 0, c.deletingStatus(ctx, w, left, len(apps) > 0) // machines and apps announce their end
	}
	if id := w.Status.ID; id != "" {
		c.stop(id)
		faultpoint.Reach("workspace/delete/plane-stopped")
		if err := c.cfg.Planes.Remove(ctx, id); err != nil {
			return 0, fmt.Errorf("remove plane of %s: %w", w.Key(), err)
		}
		faultpoint.Reach("workspace/delete/plane-removed")
		if err := c.cfg.Networks.Detach(ctx, id); err != nil {
			return 0, fmt.Errorf("remove network of %s: %w", w.Key(), err)
		}
		faultpoint.Reach("workspace/delete/network-removed")
	}
	// The same pass again after a kill finds the three still there, or none.
	db := c.cfg.Store
	ops := []store.Op{store.Of[resource.Workspace](db).DeleteOp(w)}
	if w.Status.VNI != 0 {
		claim := &resource.VNI{}
		claim.Name = strconv.FormatUint(uint64(w.Status.VNI), 10)
		keys := &resource.WorkspaceKeys{Workspace: w.Key()}
		ops = append(ops, store.Of[resource.VNI](db).DeleteOp(claim), store.Of[resource.WorkspaceKeys](db).DeleteOp(keys))
	}
	if err := db.Commit(ctx, ops...); err != nil {
		return 0, fmt.Errorf("remove %s: %w", w.Key(), err)
	}
	faultpoint.Reach("workspace/delete/committed")
	c.setStarved(w.Key(), false)
	c.freed() // others may have waited for its room
	c.cfg.Log.Info("workspace removed", "workspace", w.Key(), "id", w.Status.ID)
	return 0, nil
}

// markMachine marks a machine for removal without draining it.
func (c *Controller) markMachine(ctx context.Context, m *resource.Machine, reason string) error {
	_, err := store.Of[resource.Machine](c.cfg.Store).Modify(ctx, m.Key(), func(x *resource.Machine) error {
		if x.UID != m.UID {
			return store.ErrSkip
		}
		changed := x.Status.Conditions.Set(resource.Condition{Type: resource.MachineDrained, Status: resource.True, Reason: reason})
		if !x.Deleting() {
			now := time.Now().UTC()
			x.DeletedAt, changed = &now, true
		}
		if !changed {
			return store.ErrSkip
		}
		x.Status.Phase = resource.Deleting
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// deletingStatus says what the removal still waits for.
func (c *Controller) deletingStatus(ctx context.Context, w *resource.Workspace, machines int, apps bool) error {
	message := ""
	switch {
	case machines > 0:
		message = fmt.Sprintf("%d machines are being taken away", machines)
		if away := c.awayHosts(w); away != "" {
			message += "; " + away
		}
	case apps:
		message = "apps are being taken away"
	}
	_, err := store.Of[resource.Workspace](c.cfg.Store).Modify(ctx, w.Key(), func(x *resource.Workspace) error {
		changed := x.Status.Conditions.Set(resource.Condition{Type: "MachinesRemoved", Status: boolStatus(machines == 0), Reason: "Removing", Message: message})
		if x.Status.Phase != resource.Deleting {
			x.Status.Phase, changed = resource.Deleting, true
		}
		if !changed {
			return store.ErrSkip
		}
		return nil
	})
	return err
}

func boolStatus(ok bool) resource.ConditionStatus {
	if ok {
		return resource.True
	}
	return resource.False
}

// awayHosts says that a host of the workspace's machines does not report. Which
// one is for the operator, who finds it among the problems of the status.
func (c *Controller) awayHosts(w *resource.Workspace) string {
	for _, m := range c.cfg.Machines.List(w.Key()) {
		if n, ok := c.cfg.Nodes.Get(m.Spec.Node); ok && n.Status.Phase == resource.Degraded {
			return "a host of them does not report; the operator sees which with: multipaas status"
		}
	}
	return ""
}
