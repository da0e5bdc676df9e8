// Package task shows what the platform is doing: who asked for what, its steps
// with their times, its outcome. A task drives nothing. It is written together
// with the resource that was asked for, then mirrors the conditions which that
// resource's controller sets, and ends when the resource is as wanted, can't
// become so, or is gone. A lost task therefore loses nothing else, and a
// restart goes on where it was.
//
// Parties: the API begins tasks and streams them; Run, one part of a server,
// mirrors. Several servers may mirror at once. Only appliance and, through an
// interface of its own, the API use this package.
package task

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Config is what tasks need.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// KeepEnded is how many ended tasks are kept for each account, KeepFor how
	// long. 0 is 1000 and 30 days.
	KeepEnded int
	KeepFor   time.Duration
}

// Tasks begins, mirrors, lists and follows tasks. Its methods are safe for
// concurrent use.
type Tasks struct {
	cfg   Config
	kinds []kind
	cache *store.Cache[*resource.Task]

	mu    sync.Mutex
	index map[string]entry               // by id
	open  map[target]map[string]struct{} // ids of running tasks
}

// New returns the tasks of a store. List shows any only while Run runs; Begin,
// Get and Follow need no Run.
func New(cfg Config) *Tasks {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.KeepEnded == 0 {
		cfg.KeepEnded = 1000
	}
	if cfg.KeepFor == 0 {
		cfg.KeepFor = 30 * 24 * time.Hour
	}
	return &Tasks{
		cfg:   cfg,
		kinds: kindsOf(cfg.Store),
		cache: cfg.Store.Tasks().Cache(cfg.Log),
		index: map[string]entry{},
		open:  map[target]map[string]struct{}{},
	}
}

// Begin returns a task for what was asked, and the write to commit to the right
// of the one of target:
//
//	t, begin := tasks.Begin(resource.TaskSpec{Operation: "workspace.create", By: user}, w)
//	err := store.Commit(ctx, store.Workspaces().CreateOp(w), begin)
//
// Kind, Target and Account are target's, and UID and Generation those that the
// commit leaves it with; the task ends when that generation is reached, or with
// spec.Gone when target is gone. Begin panics for a kind that has no tasks.
func (ts *Tasks) Begin(spec resource.TaskSpec, target resource.Object) (*resource.Task, store.Op) {
	spec.Kind = ts.kindFor(target).name
	spec.Target = target.Key()
	spec.Account = accountOf(target.Key())
	t := &resource.Task{Spec: spec}
	t.Name = newID(time.Now())
	t.Status.State = resource.TaskRunning
	return t, ts.cfg.Store.Tasks().CreateOp(t).Before(func() {
		// Known only now: the store gives a new resource its UID, and counts.
		t.Spec.TargetUID = target.Metadata().UID
		t.Spec.Generation = target.Metadata().Generation
	})
}

// Get returns one task. store.ErrNotFound.
func (ts *Tasks) Get(ctx context.Context, id string) (*resource.Task, error) {
	return ts.cfg.Store.Tasks().Get(ctx, id)
}

// Follow returns the task as it is now and then after each change, until it has
// ended, was dropped, or ctx is done; then the channel is closed. It waits for a
// reader who is slow: end ctx to end it early. store.ErrNotFound.
func (ts *Tasks) Follow(ctx context.Context, id string) (<-chan *resource.Task, error) {
	if _, err := ts.Get(ctx, id); err != nil {
		return nil, err
	}
	followed := make(chan *resource.Task)
	go func() {
		defer close(followed)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for e := range ts.cfg.Store.Tasks().WatchKey(ctx, id, 0) {
			switch e.Type {
			case store.Put:
				select {
				case followed <- e.Object:
				case <-ctx.Done():
					return
				}
				if Ended(e.Object) {
					return
				}
			case store.Deleted:
				return
			}
		}
	}()
	return followed, nil
}

// Ended says whether anything of t can still change.
func Ended(t *resource.Task) bool {
	return t.Status.State == resource.TaskDone || t.Status.State == resource.TaskFailed
}

// Filter says which tasks List returns. Zero fields don't filter.
type Filter struct {
	Account string
	// Platform lists the tasks that belong to no account.
	Platform bool
	Kind     string // "workspaces"
	Target   string // key of a resource; lists also what is below it
	State    resource.TaskState
	After    string // id: go on behind this one
	Limit    int    // 0: no limit
}

// List returns tasks, the newest first, and what to pass as After to get more;
// that is "" if there are no more.
func (ts *Tasks) List(f Filter) (tasks []*resource.Task, next string) {
	for _, id := range slices.Backward(ts.ids(f.matches)) {
		if f.After != "" && id >= f.After {
			continue
		}
		if f.Limit > 0 && len(tasks) == f.Limit {
			return tasks, tasks[f.Limit-1].Name
		}
		if t, ok := ts.cache.Get(id); ok {
			tasks = append(tasks, t)
		}
	}
	return tasks, ""
}

func (f Filter) matches(e entry) bool {
	return (f.Account == "" || f.Account == e.account) &&
		(!f.Platform || e.account == "") &&
		(f.Kind == "" || f.Kind == e.target.kind) &&
		(f.Target == "" || f.Target == e.target.key || strings.HasPrefix(e.target.key, f.Target+"/")) &&
		(f.State == "" || f.State == e.state)
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

// newID returns an id that sorts by time and can't be guessed: 48 bits of
// milliseconds and 80 by chance, 26 letters and digits without those that are
// easily mistaken.
func newID(now time.Time) string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(id[6:]) // never fails
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(id[:])
}
