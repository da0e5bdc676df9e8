package workspace

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
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

// usersOf is the first of the host's users that are the workspace's; 0 of one that was
// made when there were no such ranges.
func usersOf(w *resource.Workspace) uint32 {
	if w.Status.VNI < firstVNI || w.Status.VNI > lastVNI {
		return 0
	}
	return firstUID + (w.Status.VNI-firstVNI)*resource.MachineUIDs
}

// allocate gives a new workspace its network identifier and its keys, in one
// write with the claim that makes the identifier unique.
func (c *Controller) allocate(ctx context.Context, w *resource.Workspace) error {
	keys, err := newKeys(w.Key())
	if err != nil {
		return fmt.Errorf("keys of %s: %w", w.Key(), err)
	}
	// Random, so that identifiers are not used again soon: a host that was away
	// may still hold the network of a workspace deleted meanwhile.
	w.Status.VNI = firstVNI + mathrand.Uint32N(lastVNI-firstVNI+1)
	w.Status.ID = fmt.Sprintf("%06x", w.Status.VNI)
	w.Status.APIHost = w.Status.ID + "." + resource.KubeDomain(c.cfg.Domain)
	w.Status.Server = c.cfg.Server
	w.Status.Phase = resource.Creating
	claim := &resource.VNI{Workspace: w.Key(), UID: w.UID}
	claim.Name = strconv.FormatUint(uint64(w.Status.VNI), 10)
	db := c.cfg.Store
	err = db.Commit(ctx,
		store.Of[resource.VNI](db).CreateOp(claim),
		store.Of[resource.WorkspaceKeys](db).CreateOp(keys),
		store.Of[resource.Workspace](db).UpdateOp(w))
	failpoint.Reach("workspace/create/allocated")
	if errors.Is(err, store.ErrExists) {
		return store.ErrConflict // another workspace has this number: draw again
	}
	return err
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
