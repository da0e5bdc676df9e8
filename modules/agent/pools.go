package agent

import (
	"context"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// PoolHost makes the pools in which volumes are. Implemented by modules/volume. See VolumeHost. Errors are for operators.
type PoolHost interface {
	// EnsurePool makes a pool, or has it be as it was.
	EnsurePool(ctx context.Context, p wire.Pool) error
	// RemovePool lets go of one. No volume may be in it, unless it is lost.
	RemovePool(ctx context.Context, p wire.Pool) error
	// Pools are the host's own and these, there or not. Nothing keeps it waiting for long.
	Pools(wanted []wire.Pool) []resource.Pool
}

// Pools drives pools. It comes before volumes, which are looked for in those that it has told of. One goes only by a wire.Pool
// that says so.
func Pools(host PoolHost) Driver { return pools{host} }

type pools struct{ host PoolHost }

const (
	poolKind  = "pool"
	poolEvery = 30 * time.Second // a disk may come back, under another name
)

func (pools) Kind() string { return poolKind }

func (d pools) Wanted(s *wire.State) (items []Item) {
	for _, p := range s.Pools {
		item := Item{
			Key:       p.UID,
			Workspace: p.UID, // nobody's: a disk that hangs holds up no other
			Every:     poolEvery,
			Ensure:    func(ctx context.Context) error { return d.host.EnsurePool(ctx, p) },
		}
		if p.Removing {
			item.Remove = func(ctx context.Context) error { return d.host.RemovePool(ctx, p) }
		}
		items = append(items, item)
	}
	return items
}

func (pools) Drop(context.Context, string) error { return nil }

func (pools) List(context.Context) ([]string, error) { return nil, nil }

func (d pools) Report(_ context.Context, s *wire.State, progress func(string) Progress, r *Report) (fallen []string, err error) {
	r.Pools = d.host.Pools(s.Pools)
	for _, p := range s.Pools {
		is := progress(p.UID)
		i := slices.IndexFunc(r.Pools, func(seen resource.Pool) bool { return seen.UID == p.UID })
		if i < 0 && !p.Removing {
			continue // the host has not looked for it yet
		}
		if i < 0 {
			i, r.Pools = len(r.Pools), append(r.Pools, resource.Pool{Name: p.Name, UID: p.UID, Path: p.Path,
				Message: "it is being taken away"})
		}
		seen := &r.Pools[i]
		if seen.Removed = is.Removed; p.Removing && is.Problem != "" {
			seen.Message = is.Problem
		}
		if is.Ready() && !p.Removing && seen.Message != "" {
			fallen = append(fallen, p.UID)
		}
	}
	return fallen, nil
}
