package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// volumeKey tells a node the key of an encrypted volume that is on it, or of which a brick is. The store
// is asked: once a volume is being destroyed there is no key.
func (h *Hub) volumeKey(ctx context.Context, node *resource.Node, req wire.VolumeKeyRequest) (res wire.VolumeKey, err error) {
	none := refuse(http.StatusNotFound, "node %s has no encrypted volume %q with this UID, or its key was destroyed",
		node.Name, req.Key)
	v, err := h.storedVolume(ctx, req.Key)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrInvalidKey):
		return res, none
	case err != nil:
		return res, err
	case !v.Spec.Encrypted || !v.IsOn(node.UID) || v.UID != req.UID && v.Brick(req.UID) == nil:
		return res, none
	}
	organization := resource.OfOrganization.Parent(v.Key())
	key, err := store.Of[resource.VolumeKey](h.cfg.Store).Get(ctx, organization+"/"+v.UID)
	if errors.Is(err, store.ErrNotFound) {
		return res, none
	}
	if err != nil {
		return res, err
	}
	if res.Key, err = h.cfg.Seal.Open(key.Sealed, organization); err != nil {
		return res, fmt.Errorf("key of volume %s: %w", v.Key(), err)
	}
	return res, nil
}

// storedVolume is a volume from the store, be it in the trash.
func (h *Hub) storedVolume(ctx context.Context, key string) (*resource.Volume, error) {
	if !inTrash(key) {
		return store.Of[resource.Volume](h.cfg.Store).Get(ctx, key)
	}
	t, err := store.Of[resource.Trash](h.cfg.Store).Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return t.Was(), nil
}
