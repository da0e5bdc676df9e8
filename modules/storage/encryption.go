package storage

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// volumeKeyBytes is how many random bytes a volume's key has: no fewer than the cipher's own.
const volumeKeyBytes = 64

// able are the nodes that can have a volume encrypted, or write a file into it, if that shall be: all others can have.
func able(v *resource.Volume, nodes []*resource.Node) []*resource.Node {
	copied := v.Filled() && !v.Status.Conditions.Is(resource.VolumeServed) // by a host that leads, and may be any of them
	if !v.Spec.Encrypted && !copied && !v.Importing() {
		return nodes
	}
	return slices.DeleteFunc(slices.Clone(nodes), func(n *resource.Node) bool {
		return v.Spec.Encrypted && !n.Encrypts() || copied && !n.CopiesShared() || v.Importing() && !n.FilesShared()
	})
}

const noBlocks = "no host that could have it can show pods raw blocks: the operator has to upgrade it, or it gives machines no " +
	"users of their own (multipaas doctor)"

const noEncryption = "no host that could have it can encrypt volumes: their kernels have no dm-crypt. " +
	"Ask the operator for such a host, or for a volume that isn't encrypted"

// otherSeal is OtherSeal for tenants.
const otherSeal = "keys of encrypted volumes can't be kept now: the operator is told, and it is tried again"

// sealLook is for how long it is known that there are keys that this server can't open: to know that all are read.
const sealLook = time.Minute

// opens is whether this server has been seen to open all keys.
type opens struct {
	mu   sync.Mutex // held while that is looked at: one reads for all
	all  bool
	last time.Time // when it was seen that it can't
}

// canSeal returns a *shortError if a volume is to have a key and there are keys that this server can't open: once the file is
// back that they were sealed with, one of now could not be. It may read all keys: nobody calls it alone.
func (c *Controller) canSeal(ctx context.Context, v *resource.Volume) error {
	if !v.Spec.Encrypted {
		return nil
	}
	c.opens.mu.Lock()
	defer c.opens.mu.Unlock()
	if c.opens.all {
		return nil
	}
	if time.Since(c.opens.last) < sealLook {
		return &shortError{otherSeal}
	}
	err := c.CheckKeys(ctx)
	if errors.Is(err, seal.ErrOtherKey) {
		c.opens.last = time.Now()
		return &shortError{otherSeal}
	}
	c.opens.all = err == nil
	return err
}

// newKey is the write of the key of a volume that gets its place with the same commit; the zero Op for one
// that is not encrypted. The volume has its UID by then, and canSeal was asked.
func (c *Controller) newKey(v *resource.Volume) store.Op {
	if !v.Spec.Encrypted {
		return store.Op{}
	}
	key := make([]byte, volumeKeyBytes)
	_, _ = rand.Read(key) // it never fails
	defer clear(key)
	organization := path.Dir(v.WorkspaceKey())
	return c.createKey(organization, v.UID, c.cfg.Seal.Seal(key, organization))
}

// copyKey is newKey of a copy of what has the UID from: the key is that one's.
func (c *Controller) copyKey(
	ctx context.Context, workspace string, encrypted bool, from string, of *resource.Meta,
) (store.Op, error) {
	if !encrypted {
		return store.Op{}, nil
	}
	key, err := store.Of[resource.VolumeKey](c.cfg.Store).Get(ctx, path.Dir(workspace)+"/"+from)
	if errors.Is(err, store.ErrNotFound) {
		return store.Op{}, &shortError{"what it is made from is being deleted, and its key is destroyed"}
	}
	if err != nil {
		return store.Op{}, err
	}
	of.UID = cmp.Or(of.UID, store.NewUID())
	return c.createKey(path.Dir(workspace), of.UID, key.Sealed), nil
}

func (c *Controller) createKey(organization, uid string, sealed []byte) store.Op {
	return store.Of[resource.VolumeKey](c.cfg.Store).CreateOp(&resource.VolumeKey{
		InOrganization: resource.NewInOrganization(organization, uid), Sealed: sealed})
}

// dropKey destroys the key of a volume or snapshot, before its host is told to destroy it: what is left
// somewhere then, nobody reads, once no copy of it has the same key any more. None there is no error.
func (c *Controller) dropKey(ctx context.Context, workspace, uid string) error {
	key := &resource.VolumeKey{InOrganization: resource.NewInOrganization(path.Dir(workspace), uid)}
	if err := store.Of[resource.VolumeKey](c.cfg.Store).Delete(ctx, key); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("destroy the key of %s: %w", uid, err)
	}
	return nil
}

// CheckEncryption says with an *access.Refusal that no host of the platform can encrypt a volume.
func (c *Controller) CheckEncryption(v *resource.Volume) error {
	if v.Spec.Encrypted && !slices.ContainsFunc(c.cfg.Nodes.List(""), (*resource.Node).Encrypts) {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be made: " + noEncryption + "."}
	}
	return nil
}

// OtherSeal is raised while CheckKeys says so.
var OtherSeal = problem.Problem{
	Code:     "volume-keys-sealed",
	Title:    "Encrypted volumes can't be read: this server has another file than their keys were sealed with",
	Severity: problem.High,
	Text:     "Volumes that are mounted go on until their hosts start anew. No other encrypted volume is made until then.",
	Remedy: "Put the former file pki/volumes.key back into the data directory, and restart the server; " +
		"without it what these volumes hold is lost, and once they are deleted, and purged, others can be made.",
}

// CheckKeys returns an error if there are keys of volumes that can't be opened here. It reads all.
func (c *Controller) CheckKeys(ctx context.Context) error {
	keys, _, err := store.Of[resource.VolumeKey](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return fmt.Errorf("look at the keys of encrypted volumes: %w", err)
	}
	other := 0
	for _, k := range keys {
		if !c.cfg.Seal.Made(k.Sealed) {
			other++
		}
	}
	if other == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d keys: %w", other, len(keys), seal.ErrOtherKey)
}
