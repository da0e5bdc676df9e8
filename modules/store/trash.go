package store

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

// TrashOps put a volume, as it was read, into the trash.
func (s *Store) TrashOps(v *resource.Volume, t *resource.Trash) []Op {
	return []Op{Of[resource.Volume](s).DeleteOp(v), Of[resource.Trash](s).CreateOp(t)}
}

// OnHosts are all volumes that have room on hosts, those in the trash as they were before.
func (s *Store) OnHosts(ctx context.Context) ([]*resource.Volume, error) {
	all := map[string]*resource.Volume{}
	add := func(v *resource.Volume) {
		if was := all[v.UID]; was == nil || was.Revision < v.Revision {
			all[v.UID] = v
		}
	}
	// The trash twice: what goes there, or comes back, between two lists is in one of them.
	for _, list := range []func() error{
		func() error { return each(ctx, Of[resource.Trash](s), func(t *resource.Trash) { add(t.Was()) }) },
		func() error { return each(ctx, Of[resource.Volume](s), add) },
		func() error { return each(ctx, Of[resource.Trash](s), func(t *resource.Trash) { add(t.Was()) }) },
	} {
		if err := list(); err != nil {
			return nil, err
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *resource.Volume) int { return strings.Compare(a.Key(), b.Key()) }), nil
}

func each[T resource.Object](ctx context.Context, kind Kind[T], do func(T)) error {
	all, _, err := kind.List(ctx, "", "", 0)
	for _, obj := range all {
		do(obj)
	}
	return err
}
