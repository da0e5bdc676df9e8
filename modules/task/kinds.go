package task

import (
	"context"
	"errors"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// kindsOf are the kinds that have tasks: those that a controller works for.
func kindsOf(st *store.Store) map[string]kind {
	kinds := map[string]kind{}
	for _, k := range resource.Kinds() {
		if _, ok := k.New().(resource.Stateful); ok {
			kinds[k.Name] = kind{store.Any(st, k)}
		}
	}
	return kinds
}

// kind is one of them.
type kind struct{ store.Kind[resource.Object] }

// load returns nil if there is none.
func (k kind) load(ctx context.Context, key string) (resource.Stateful, error) {
	obj, err := k.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return obj.(resource.Stateful), nil
}

// watch calls changed with the key of each resource that changes, and of each
// that is there at first, until ctx is done.
func (k kind) watch(ctx context.Context, changed func(key string)) {
	for e := range k.Watch(ctx, "", 0) {
		if e.Key != "" {
			changed(e.Key)
		}
	}
}
