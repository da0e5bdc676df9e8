package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/multipaas/multipaas/modules/resource"
)

// errGone: the place of a Clear isn't there any more, as it was.
var errGone = errors.New("the place is gone")

// Clear removes what tenants have made in a place that goes: volumes go into the trash, unless the
// workspace says otherwise, what else has a controller is marked as deleted, the rest is deleted. It returns how many of
// each kind are left, for their controllers to take away. Call it once the place
// itself is marked, and again until nothing is left.
//
// A call may come late, when the place is gone and another one has its name: what
// stands there is not touched.
func (s *Store) Clear(ctx context.Context, place resource.Object) (left map[string]int, err error) {
	left = map[string]int{}
	for _, k := range resource.Counted() {
		in, ok := k.Scope.Place()
		if !ok || in.Name != place.Kind() {
			continue
		}
		kind, going := Any(s, k), goingOp(Any(s, in), place)
		items, _, err := kind.List(ctx, place.Key(), "", 0)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			if kept := kept(item, place); kept != nil {
				err = s.Commit(WithReserve(ctx), append(s.TrashOps(item.(*resource.Volume), kept), going)...)
				if errors.Is(err, ErrConflict) { // it was written to: the next call has it
					left[k.Name]++
					continue
				}
			} else if _, ok := item.(resource.Stateful); !ok {
				item.Metadata().Revision = 0 // whatever it is now
				err = s.Commit(ctx, going, kind.DeleteOp(item))
			} else if left[k.Name]++; !item.Metadata().Deleting() {
				err = s.Commit(ctx, going, kind.MarkDeletedOp(item.Key()))
			}
			if errors.Is(err, errGone) {
				return nil, nil // and all that was in it
			}
			if err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
		}
	}
	return left, nil
}

// kept is what becomes of a volume whose workspace goes; nil: of this nothing is kept.
func kept(item, place resource.Object) *resource.Trash {
	v, ok := item.(*resource.Volume)
	ws, in := place.(*resource.Workspace)
	if !ok || !in || ws.Status.PurgeVolumes {
		return nil
	}
	return v.ToTrash(ws, time.Now())
}

// goingOp writes nothing. The commit fails with errGone unless place is still
// there, and being deleted, when it happens.
func goingOp(kind Kind[resource.Object], place resource.Object) Op {
	return kind.op("clear", place.Key(), true, func(stored *mvccpb.KeyValue) (write, error) {
		if stored == nil {
			return write{}, errGone
		}
		now, err := kind.decode(stored.Value, stored.ModRevision)
		if err != nil {
			return write{}, err
		}
		if meta := now.Metadata(); meta.UID != place.Metadata().UID || !meta.Deleting() {
			return write{}, errGone
		}
		return write{skip: true}, nil
	})
}
