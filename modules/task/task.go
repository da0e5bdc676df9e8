// Package task shows what the platform is doing: who asked for what, its steps
// with their times, its outcome. A task drives nothing. It is written together
// with the resource that was asked for, then mirrors the conditions which that
// resource's controller sets, and ends when the resource is as wanted, can't
// become so, or is gone, or when a later task for it goes on in its place: of each
// resource one task runs. A lost task therefore loses nothing else, and a
// restart goes on where it was.
//
// Parties: the API begins tasks and streams them; Run, one part of a server,
// mirrors. Several servers may mirror at once. Only appliance and, through an
// interface of its own, the API use this package.
package task

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Config is what tasks need.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// KeepEnded is how many ended tasks are kept for each account, at most a quarter
	// more, and KeepFor how long. 0 is 200 and 30 days.
	KeepEnded int
	KeepFor   time.Duration
	// Registerer takes the metrics of the work queue. May be nil.
	Registerer prometheus.Registerer
}

// mirrors is how many resources are mirrored at once, of one account one: it takes a
// read and a write of the store, some milliseconds.
const mirrors = 4

// Tasks begins, mirrors and follows tasks. Its methods are safe for concurrent
// use.
type Tasks struct {
	cfg    Config
	kinds  map[string]store.Kind[resource.Object] // those that a controller works for, by name
	loop   *reconcile.Loop[target]
	pruned chan struct{} // somebody has too many ended tasks

	// Of the tasks themselves nothing is kept: those of a thousand accounts are
	// hundreds of megabytes.
	mu      sync.Mutex
	last    int64                           // milliseconds in the last ID
	running map[string]target               // by key
	about   map[target]map[string]bool      // keys of running tasks: asked for at each change of a resource
	ended   map[string]map[string]time.Time // when, by account and key
}

// New returns the tasks of a store. Begin and Follow need no Run.
func New(cfg Config) *Tasks {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.KeepEnded = cmp.Or(cfg.KeepEnded, 200)
	cfg.KeepFor = cmp.Or(cfg.KeepFor, 30*24*time.Hour)
	ts := &Tasks{
		cfg:     cfg,
		kinds:   map[string]store.Kind[resource.Object]{},
		pruned:  make(chan struct{}, 1),
		running: map[string]target{},
		about:   map[target]map[string]bool{},
		ended:   map[string]map[string]time.Time{},
	}
	for _, k := range resource.Kinds() {
		if _, ok := k.New().(resource.Stateful); ok {
			ts.kinds[k.Name] = store.Any(cfg.Store, k)
		}
	}
	ts.loop = reconcile.New(reconcile.Config[target]{
		Name:       "task",
		Log:        cfg.Log,
		Reconcile:  ts.mirror,
		Tenant:     func(t target) string { return accountOf(t.key) },
		Workers:    mirrors,
		Backoff:    50 * time.Millisecond,
		Registerer: cfg.Registerer,
	})
	return ts
}

// Begin returns a task for what by asked for, and the write to commit behind
// the one of obj:
//
//	t, begin := tasks.Begin("workspace.create", user, w)
//	err := store.Commit(ctx, store.Of[resource.Workspace](store).CreateOp(w), begin)
//
// The task ends when obj's Generation, as that commit leaves it, is reached; if
// obj's deletion was asked for, when it is gone; or when a later one for obj has
// replaced it. operation is KIND.VERB. Begin
// panics for a kind that has no tasks.
func (ts *Tasks) Begin(operation, by string, obj resource.Object) (*resource.Task, store.Op) {
	if _, ok := ts.kinds[obj.Kind()]; !ok {
		panic(fmt.Sprintf("task: %T has no tasks", obj))
	}
	t := &resource.Task{Spec: resource.TaskSpec{
		Operation: operation,
		Kind:      obj.Kind(),
		Target:    obj.Key(),
		Account:   accountOf(obj.Key()),
		By:        by,
		Gone:      obj.Metadata().Deleting(),
	}}
	t.Name = cmp.Or(t.Spec.Account, resource.PlatformTasks) + "-" + newID(ts.clock())
	t.Status.State = resource.TaskRunning
	return t, store.Of[resource.Task](ts.cfg.Store).CreateOp(t).Before(func() {
		// Known only now: the store gives a new resource its UID, and counts.
		t.Spec.TargetUID = obj.Metadata().UID
		if !t.Spec.Gone {
			t.Spec.Generation = obj.Metadata().Generation
		}
	})
}

// Follow gives the task as it is now, and again each time it changes, and ends
// behind the one that has ended. An error ends it too: store.ErrNotFound, also
// when the task is dropped meanwhile, or ctx's.
func (ts *Tasks) Follow(ctx context.Context, id string) iter.Seq2[*resource.Task, error] {
	return func(yield func(*resource.Task, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		tasks := store.Of[resource.Task](ts.cfg.Store)
		found := false
		for e := range tasks.WatchKey(ctx, resource.TaskKey(id)) {
			switch {
			case e.Type == store.Put:
				found = true
				if !yield(e.Object, nil) || e.Object.Ended() {
					return
				}
			case e.Type == store.Deleted, e.Type == store.Synced && !found:
				yield(nil, fmt.Errorf("task %s: %w", id, store.ErrNotFound))
				return
			}
		}
		yield(nil, fmt.Errorf("follow task %s: %w", id, ctx.Err()))
	}
}

// accountOf is the first name on the way to a tenant's resource. The
// platform's own resources, nodes, have no way.
func accountOf(key string) string {
	account, _, nested := strings.Cut(key, "/")
	if !nested {
		return ""
	}
	return account
}

// clock is the time to the millisecond, and never the same twice: of two tasks for one
// resource, the later one has the greater ID.
func (ts *Tasks) clock() time.Time {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.last = max(ts.last+1, time.Now().UnixMilli())
	return time.UnixMilli(ts.last)
}

// newID returns an id that sorts by time and can't be guessed: 48 bits of
// milliseconds and 80 by chance, 26 letters and digits without those that are
// easily mistaken.
func newID(now time.Time) string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(id[6:]) // never fails
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(id[:])
}
