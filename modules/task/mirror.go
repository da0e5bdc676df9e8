package task

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// pruneEvery is for tasks that have become too old. Those that are too many go at once.
const pruneEvery = 10 * time.Minute

// target is a resource that tasks are about.
type target struct{ kind, key string }

func (t target) String() string { return t.kind + "/" + t.key }

// Run mirrors conditions into tasks and drops old ones until ctx is done. It is
// ready once it knows all tasks. Call it once.
func (ts *Tasks) Run(ctx context.Context, ready func()) error {
	tasks := store.Of[resource.Task](ts.cfg.Store)
	// An old task that nobody can read is no reason to be without all new ones, and one
	// that can't be moved now is moved later.
	left := !ts.rehome(ctx)
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
			case <-tick.C:
				left = left && !ts.rehome(ctx)
			case <-ts.pruned:
			case <-ctx.Done():
				return
			}
			if err := ts.prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
				ts.cfg.Log.Error("drop old tasks", "err", err)
			}
		}
	})
	for e := range tasks.Watch(ctx, "") {
		switch e.Type {
		case store.Put:
			ts.changed(e.Key, e.Object)
		case store.Deleted:
			ts.changed(e.Key, nil)
		case store.Synced:
			ready()
		}
	}
	return nil
}

// rehome moves what an earlier version has left, and says whether all of it is moved.
func (ts *Tasks) rehome(ctx context.Context) bool {
	err := store.Of[resource.Task](ts.cfg.Store).Rehome(ctx, earlier, rename)
	if err != nil && ctx.Err() == nil {
		ts.cfg.Log.Error("tasks of an earlier version stay where they are for now", "err", err)
	}
	return err == nil
}

// earlier says that a task was kept by an earlier version, under no account.
func earlier(key string) bool { return !strings.Contains(key, "/") }

func rename(t *resource.Task) bool {
	t.Name = cmp.Or(t.Spec.Account, resource.PlatformTasks) + "-" + t.Name
	return true
}

// changed is told each task that comes, changes or goes; then it is nil.
func (ts *Tasks) changed(key string, t *resource.Task) {
	account, _, _ := strings.Cut(key, "/")
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if was, ok := ts.running[key]; ok {
		delete(ts.running, key)
		if delete(ts.about[was], key); len(ts.about[was]) == 0 {
			delete(ts.about, was)
		}
	}
	if delete(ts.ended[account], key); len(ts.ended[account]) == 0 {
		delete(ts.ended, account)
	}
	switch {
	case t == nil:
	case !t.Ended():
		about := target{t.Spec.Kind, t.Spec.Target}
		ts.running[key] = about
		if ts.about[about] == nil {
			ts.about[about] = map[string]bool{}
		}
		ts.about[about][key] = true
		ts.loop.Add(about)
	default:
		if ts.ended[account] == nil {
			ts.ended[account] = map[string]time.Time{}
		}
		var at time.Time
		if t.Status.EndedAt != nil {
			at = *t.Status.EndedAt
		}
		ts.ended[account][key] = at
		if len(ts.ended[account]) > ts.cfg.KeepEnded+ts.cfg.KeepEnded/4 {
			select {
			case ts.pruned <- struct{}{}:
			default:
			}
		}
	}
}

// together is how many tasks are written in one commit, of 64 that it can have.
const together = 32

// mirror brings the open tasks of one resource up to date. All but the latest end:
// that one goes on in their place.
func (ts *Tasks) mirror(ctx context.Context, t target) (again time.Duration, err error) {
	keys := ts.waiting(t)
	if len(keys) == 0 {
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
	tasks := store.Of[resource.Task](ts.cfg.Store)
	latest, err := ts.latest(ctx, keys, now)
	if err != nil {
		return 0, err
	}
	for some := range slices.Chunk(keys, together) {
		ops := make([]store.Op, len(some))
		after := make([]*resource.Task, len(some))
		for i, key := range some {
			ops[i] = tasks.ModifyOp(key, func(t *resource.Task) error {
				after[i] = nil
				if t.Ended() {
					return store.ErrSkip
				}
				at := time.Now()
				t.Status = progress(t, now, at)
				if key != latest && !t.Ended() {
					t.Status = replaced(t, latest, at)
				}
				after[i] = t
				return nil
			})
		}
		if err := ts.cfg.Store.Commit(ctx, ops...); err != nil {
			return 0, err
		}
		for _, t := range after {
			if t != nil && t.Ended() {
				ts.cfg.Log.Info("task ended", "task", t.Name, "operation", t.Spec.Operation, "target", t.Spec.Target,
					"state", t.Status.State, "message", t.Status.Message, "after", time.Since(t.CreatedAt))
			}
		}
	}
	return 0, nil
}

// latest is which of a target's tasks goes on: not the one that was begun last, for its
// commit may have come first, but the one whose change is the target's last. now is the
// target, nil if it is gone.
func (ts *Tasks) latest(ctx context.Context, keys []string, now resource.Stateful) (string, error) {
	if len(keys) == 1 {
		return keys[0], nil
	}
	var last *resource.Task
	for _, key := range keys {
		t, err := store.Of[resource.Task](ts.cfg.Store).Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue // dropped meanwhile
		}
		if err != nil {
			return "", err
		}
		rank := func(t *resource.Task) (n [3]int64) {
			if now != nil && t.Spec.TargetUID == now.Metadata().UID {
				n[0] = 1 // of this one, and not of one that had its name before
			}
			if t.Spec.Gone {
				n[1] = 1
			}
			n[2] = t.Spec.Generation
			return n
		}
		if last == nil {
			last = t
			continue
		}
		if a, b := rank(last), rank(t); slices.Compare(a[:], b[:]) <= 0 {
			last = t
		}
	}
	if last == nil {
		return keys[len(keys)-1], nil
	}
	return last.Key(), nil
}

// prune drops ended tasks that are too old or too many.
func (ts *Tasks) prune(ctx context.Context, now time.Time) error {
	tasks := store.Of[resource.Task](ts.cfg.Store)
	var drop []store.Op
	ts.mu.Lock()
	for _, ended := range ts.ended {
		for i, key := range slices.Backward(slices.Sorted(maps.Keys(ended))) {
			if newer := len(ended) - 1 - i; newer >= ts.cfg.KeepEnded || now.Sub(ended[key]) > ts.cfg.KeepFor {
				drop = append(drop, tasks.DeleteOp(&resource.Task{Meta: resource.Meta{Name: nameOf(key)}}))
			}
		}
	}
	ts.mu.Unlock()
	for some := range slices.Chunk(drop, together) {
		if err := ts.cfg.Store.Commit(ctx, some...); err != nil {
			return err
		}
	}
	return nil
}

// nameOf is the name of the task with that key; see resource.TaskKey.
func nameOf(key string) string { return strings.Replace(key, "/", "-", 1) }

// waiting returns the keys of the running tasks about t, the oldest first: all are of
// one account.
func (ts *Tasks) waiting(t target) []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return slices.Sorted(maps.Keys(ts.about[t]))
}
