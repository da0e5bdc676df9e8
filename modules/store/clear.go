package store

import (
	"context"
	"errors"

	"github.com/multipaas/multipaas/modules/resource"
)

// Clear removes what tenants have made in a place that goes: what has a
// controller is marked as deleted, the rest is deleted. It returns how many of
// each kind are left, for their controllers to take away. Call it once the place
// itself is marked, and again until nothing is left.
func (s *Store) Clear(ctx context.Context, scope resource.Scope, place string) (left map[string]int, err error) {
	left = map[string]int{}
	for _, k := range resource.Counted() {
		if k.Scope != scope {
			continue
		}
		kind := Any(s, k)
		items, _, _, err := kind.List(ctx, place, "", 0)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			if _, ok := item.(resource.Stateful); !ok {
				item.Metadata().Revision = 0 // whatever it is now
				err = kind.Delete(ctx, item)
			} else if left[k.Name]++; !item.Metadata().Deleting() {
				_, err = kind.MarkDeleted(ctx, item.Key())
			}
			if err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
		}
	}
	return left, nil
}
