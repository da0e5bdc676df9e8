package task

import (
	"context"
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

// entry is what is known about a task without reading it.
type entry struct {
	account string
	target  target
	state   resource.TaskState
	ended   time.Time
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
			k.watch(ctx, func(key string) {
				// If the task of the same commit is not here yet, it will look for
				// itself when it comes: the resource is read anew then.
				if t := (target{name, key}); ts.isWaitedFor(t) {
					ts.loop.Add(t)
				}
			})
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
	if !ok {
		ts.forget(id)
		return
	}
	e := entry{account: t.Spec.Account, target: target{t.Spec.Kind, t.Spec.Target}, state: t.Status.State}
	if t.Status.EndedAt != nil {
		e.ended = *t.Status.EndedAt
	}
	ts.note(id, e)
	if e.state == resource.TaskRunning {
		ts.loop.Add(e.target)
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
	now, err := k.load(ctx, t.key)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		after, err := store.Of[resource.Task](ts.cfg.Store).Modify(ctx, id, func(t *resource.Task) error {
			if Ended(t) {
				return store.ErrSkip
			}
			t.Status = progress(t, now, time.Now())
			return nil
		})
		if err != nil {
			return 0, err
		}
		if Ended(after) {
			ts.cfg.Log.Info("task ended", "task", id, "operation", after.Spec.Operation, "target", after.Spec.Target,
				"state", after.Status.State, "message", after.Status.Message, "after", time.Since(after.CreatedAt))
		}
	}
	return 0, nil
}

// prune drops ended tasks that are too old or too many.
func (ts *Tasks) prune(ctx context.Context, now time.Time) error {
	kept := map[string]int{}
	ended := ts.ids(func(e entry) bool { return e.state != resource.TaskRunning })
	for _, id := range slices.Backward(ended) { // the newest first
		ts.mu.Lock()
		e := ts.index[id]
		ts.mu.Unlock()
		if kept[e.account]++; kept[e.account] <= ts.cfg.KeepEnded && now.Sub(e.ended) <= ts.cfg.KeepFor {
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

// ids returns the tasks that match, sorted by age, the oldest first.
func (ts *Tasks) ids(matches func(entry) bool) []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	var ids []string
	for id, e := range ts.index {
		if matches(e) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// waiting returns the running tasks about t, the oldest first.
func (ts *Tasks) waiting(t target) []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return slices.Sorted(maps.Keys(ts.open[t]))
}

func (ts *Tasks) isWaitedFor(t target) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.open[t]) > 0
}

func (ts *Tasks) note(id string, e entry) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.index[id] = e
	if e.state != resource.TaskRunning {
		ts.close(id, e.target)
		return
	}
	if ts.open[e.target] == nil {
		ts.open[e.target] = map[string]struct{}{}
	}
	ts.open[e.target][id] = struct{}{}
}

func (ts *Tasks) forget(id string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.close(id, ts.index[id].target)
	delete(ts.index, id)
}

// close takes a task off the running ones. ts.mu is held.
func (ts *Tasks) close(id string, t target) {
	delete(ts.open[t], id)
	if len(ts.open[t]) == 0 {
		delete(ts.open, t)
	}
}
