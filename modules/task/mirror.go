package task

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// pruneEvery: a task is a few KiB, and 10 minutes of one busy account are some
// hundred of them.
const pruneEvery = 10 * time.Minute

// target is a resource that tasks are about.
type target struct{ kind, key string }

// ended is what is known, without reading it, about a task that has ended.
type ended struct {
	account string
	at      time.Time
}

func (t target) String() string { return t.kind + "/" + t.key }

// Run mirrors conditions into tasks and drops old ones until ctx is done. It is
// ready once it knows all tasks. Call it once.
func (ts *Tasks) Run(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for name, k := range ts.kinds {
		wg.Go(func() {
			for e := range k.Watch(ctx, "") {
				// If the task of the same commit is not here yet, it will look for
				// itself when it comes: the resource is read anew then.
				if t := (target{name, e.Key}); len(ts.waiting(t)) > 0 {
					ts.loop.Add(t)
				}
			}
		})
	}
	wg.Go(func() { ts.loop.Run(ctx) })
	wg.Go(func() {
		tick := time.NewTicker(pruneEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				if err := ts.prune(ctx, now); err != nil && ctx.Err() == nil {
					ts.cfg.Log.Error("drop old tasks", "err", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return ts.cache.Run(ctx, ready)
}

// changed is told each task that comes, changes or goes.
func (ts *Tasks) changed(id string) {
	t, ok := ts.cache.Get(id)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if was, ok := ts.running[id]; ok {
		delete(ts.running, id)
		if delete(ts.about[was], id); len(ts.about[was]) == 0 {
			delete(ts.about, was)
		}
	}
	delete(ts.ended, id)
	switch {
	case !ok:
	case t.Status.State == resource.TaskRunning:
		about := target{t.Spec.Kind, t.Spec.Target}
		ts.running[id] = about
		if ts.about[about] == nil {
			ts.about[about] = map[string]bool{}
		}
		ts.about[about][id] = true
		ts.loop.Add(about)
	default:
		e := ended{account: t.Spec.Account}
		if t.Status.EndedAt != nil {
			e.at = *t.Status.EndedAt
		}
		ts.ended[id] = e
	}
}

// mirror brings the open tasks of one resource up to date.
func (ts *Tasks) mirror(ctx context.Context, t target) (again time.Duration, err error) {
	ids := ts.waiting(t)
	if len(ids) == 0 {
		return 0, nil
	}
	k, ok := ts.kinds[t.kind]
	if !ok {
		return 0, nil // of a newer version, which will see to it
	}
	var now resource.Stateful // nil: it is gone
	switch obj, err := k.Get(ctx, t.key); {
	case err == nil:
		now = obj.(resource.Stateful)
	case !errors.Is(err, store.ErrNotFound):
		return 0, err
	}
	for _, id := range ids {
		after, err := store.Of[resource.Task](ts.cfg.Store).Modify(ctx, id, func(t *resource.Task) error {
			if t.Ended() {
				return store.ErrSkip
			}
			t.Status = progress(t, now, time.Now())
			return nil
		})
		if err != nil {
			return 0, err
		}
		if after.Ended() {
			ts.cfg.Log.Info("task ended", "task", id, "operation", after.Spec.Operation, "target", after.Spec.Target,
				"state", after.Status.State, "message", after.Status.Message, "after", time.Since(after.CreatedAt))
		}
	}
	return 0, nil
}

// prune drops ended tasks that are too old or too many.
func (ts *Tasks) prune(ctx context.Context, now time.Time) error {
	ts.mu.Lock()
	ended := maps.Clone(ts.ended)
	ts.mu.Unlock()
	kept := map[string]int{}                                              // by account
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(ended))) { // the newest first
		e := ended[id]
		if kept[e.account]++; kept[e.account] <= ts.cfg.KeepEnded && now.Sub(e.at) <= ts.cfg.KeepFor {
			continue
		}
		t := &resource.Task{}
		t.Name = id
		if err := store.Of[resource.Task](ts.cfg.Store).Delete(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// waiting returns the running tasks about t, the oldest first.
func (ts *Tasks) waiting(t target) []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return slices.Sorted(maps.Keys(ts.about[t]))
}
