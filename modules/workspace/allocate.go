package workspace

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// The network identifiers, of which each has its range of the host's users and
// groups: so many workspaces there can be. RFC 7348 gives an identifier 24 bits; the low ones are left to the
// site's own networks. The users are the upper part of what systemd leaves to
// containers (systemd.io/UIDS-GIDS), beyond what subuid(5) commonly gives away.
const (
	firstVNI = 1 << 12
	lastVNI  = firstVNI + (lastUID-firstUID)/resource.MachineUIDs
	firstUID = 0x1000_0000
	lastUID  = 0x6ffe_ffff
)

// draws is how many numbers one look at a workspace tries. When half of all are taken,
// one of a thousand looks finds none and is repeated.
const draws = 10

// usersOf is the first of the host's users that are the workspace's; 0 of one that was
// made when there were no such ranges and has none yet.
func usersOf(w *resource.Workspace) uint32 {
	number := cmp.Or(w.Status.UserRange, w.Status.VNI)
	if number < firstVNI || number > lastVNI {
		return 0
	}
	return firstUID + (number-firstVNI)*resource.MachineUIDs
}

// allocate gives a new workspace its network identifier and its keys, in one
// write with the claim that makes the identifier unique: a host that was away may
// still hold the network of a workspace deleted meanwhile.
func (c *Controller) allocate(ctx context.Context, w *resource.Workspace) error {
	keys, err := newKeys(w.Key())
	if err != nil {
		return fmt.Errorf("keys of %s: %w", w.Key(), err)
	}
	w.Status.Server = c.cfg.Server
	w.Status.Phase = resource.Creating
	db := c.cfg.Store
	err = c.claim(ctx, w, &w.Status.VNI, func() []store.Op {
		w.Status.ID = fmt.Sprintf("%06x", w.Status.VNI)
		w.Status.APIHost = w.Status.ID + "." + resource.KubeDomain(c.cfg.Domain)
		return []store.Op{store.Of[resource.WorkspaceKeys](db).CreateOp(keys), store.Of[resource.Workspace](db).UpdateOp(w)}
	})
	failpoint.Reach("workspace/create/allocated")
	return err
}

// giveUsers gives a workspace that was made when there were no ranges of users one of its
// own, by a claim on a number that no network has: its own can't change while it runs.
// Machines that are there keep what their disks were made with. w stays as it is: what was
// drawn in vain is another's. It may use the datastore's reserve, for it makes nothing that
// anybody asked for.
func (c *Controller) giveUsers(ctx context.Context, w *resource.Workspace) error {
	given := *w
	return c.claim(store.WithReserve(ctx), &given, &given.Status.UserRange, func() []store.Op {
		return []store.Op{store.Of[resource.Workspace](c.cfg.Store).UpdateOp(&given)}
	})
}

// claim draws a number that nobody has, in one commit with what with returns once it
// is drawn. They are random, so that none is used again soon.
func (c *Controller) claim(ctx context.Context, w *resource.Workspace, number *uint32, with func() []store.Op) error {
	draw := c.draw
	if draw == nil {
		draw = func() uint32 { return firstVNI + mathrand.Uint32N(lastVNI-firstVNI+1) }
	}
	for range draws {
		*number = draw()
		ops := with()
		claim := &resource.VNI{Workspace: w.Key(), UID: w.UID, Network: w.Status.ID, Servers: []string{c.cfg.Server}}
		claim.Name = strconv.FormatUint(uint64(*number), 10)
		err := c.cfg.Store.Commit(ctx, append(ops, store.Of[resource.VNI](c.cfg.Store).CreateOp(claim))...)
		if !errors.Is(err, store.ErrExists) {
			return err
		}
	}
	return fmt.Errorf("%d numbers of networks were drawn for %s and all are taken, if only for disks of hosts that were given up "+
		"with --lost: delete workspaces, or bring such hosts back, which then wipe themselves", draws, w.Key())
}

// hold sees to it that the claims of a workspace name who may have something of it:
// this server, and the nodes of its machines. Those that are placed are written in one
// commit with it; this is for what older versions have left.
func (c *Controller) hold(ctx context.Context, w *resource.Workspace, machines []*resource.Machine) error {
	if _, done := c.held.Load(w.UID); done {
		return nil
	}
	nodes := map[string]string{}
	for _, m := range machines {
		if n, ok := c.cfg.Nodes.Get(m.Spec.Node); ok {
			nodes[n.UID] = n.Name
		}
	}
	ops, err := c.onClaims(ctx, w, func(v *resource.VNI) bool {
		changed := v.Network != w.Status.ID
		v.Network = w.Status.ID
		if !slices.Contains(v.Servers, c.cfg.Server) {
			v.Servers, changed = append(v.Servers, c.cfg.Server), true
		}
		for uid, name := range nodes {
			changed = holdOn(v, uid, name) || changed
		}
		return changed
	})
	if err != nil {
		return err
	}
	if len(ops) > 0 {
		if err := c.cfg.Store.Commit(ctx, ops...); err != nil {
			return fmt.Errorf("claims of %s: %w", w.Key(), err)
		}
	}
	c.held.Store(w.UID, true)
	return nil
}

// holdOn notes that a node may have something, and says whether that is news.
func holdOn(v *resource.VNI, uid, name string) bool {
	if v.Nodes[uid] != "" {
		return false
	}
	if v.Nodes == nil {
		v.Nodes = map[string]string{}
	}
	v.Nodes[uid] = name
	return true
}

// onClaims are writes of the workspace's claims, as far as they are there and change.
func (c *Controller) onClaims(ctx context.Context, w *resource.Workspace, change func(*resource.VNI) bool) ([]store.Op, error) {
	claims := store.Of[resource.VNI](c.cfg.Store)
	var ops []store.Op
	for _, name := range w.Status.Claims() {
		if _, err := claims.Get(ctx, name); errors.Is(err, store.ErrNotFound) {
			continue // somebody has deleted it by hand: it must not hold up anything
		} else if err != nil {
			return nil, err
		}
		ops = append(ops, claims.ModifyOp(name, func(v *resource.VNI) error {
			if v.UID != w.UID || !change(v) {
				return store.ErrSkip
			}
			return nil
		}))
	}
	return ops, nil
}

func newKeys(workspace string) (*resource.WorkspaceKeys, error) {
	k := &resource.WorkspaceKeys{Workspace: workspace, EncryptionKey: make([]byte, 32)}
	k.Name = "keys"
	_, err := rand.Read(k.EncryptionKey)
	if err != nil {
		return nil, err
	}
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
