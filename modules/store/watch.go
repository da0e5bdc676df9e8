package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/modules/resource"
)

// EventType says what happened.
type EventType int

const (
	// Put: the resource was created or changed; Object is what it is now.
	Put EventType = iota + 1
	// Deleted: it is gone for good.
	Deleted
	// Synced: everything that was there when the watch began has been told. Comes
	// once.
	Synced
)

// Event is one change that a watch tells.
type Event[T resource.Object] struct {
	Type EventType
	Key  string
	// Object is the resource as it is now (Put).
	Object T
	// Previous is what it was before (Put, Deleted), or nil if that is not
	// known: it was created, or a change before it was missed.
	Previous T
}

// Watch tells what is there below prefix (see List), then Synced, then what
// changes, until ctx is done; then it closes the channel. It waits for a reader
// who is slow.
//
// A watch outlives lost connections and restarts of etcd. If it was away for
// longer than etcd remembers, it tells the difference between what it told last
// and what is there now.
func (k Kind[T]) Watch(ctx context.Context, prefix string) <-chan Event[T] {
	from, to := k.span(prefix)
	return k.watch(ctx, from, to)
}

// WatchKey is Watch for the one resource called key.
func (k Kind[T]) WatchKey(ctx context.Context, key string) <-chan Event[T] {
	from := k.path(key)
	return k.watch(ctx, from, from+"\x00")
}

func (k Kind[T]) watch(ctx context.Context, from, to string) <-chan Event[T] {
	w := &watcher[T]{kind: k, from: from, to: to, events: make(chan Event[T], 64)}
	go func() {
		defer close(w.events)
		w.run(ctx)
	}()
	return w.events
}

type watcher[T resource.Object] struct {
	kind     Kind[T]
	from, to string
	events   chan Event[T]
	// revision is what has been told up to.
	revision int64
	// known maps the keys that were told, and are still there, to the revision
	// at which they were. nil: nothing was told yet.
	known map[string]int64
}

// run goes through list and follow until ctx is done.
func (w *watcher[T]) run(ctx context.Context) {
	relist := true
	for failures := 0; ctx.Err() == nil; {
		var err error
		if relist {
			err = w.list(ctx)
			relist = err != nil
		} else {
			err = w.follow(ctx)
		}
		switch {
		case err == nil:
			failures = 0
		case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
			relist = true
		default:
			// 0.1 s at first, 6.4 s in the end: half of it for sure, the other by chance.
			wait := 50 * time.Millisecond << min(failures, 6)
			failures++
			select {
			case <-time.After(wait + rand.N(wait)):
			case <-ctx.Done():
			}
		}
	}
}

// list tells what is there and differs from what was told.
func (w *watcher[T]) list(ctx context.Context) error {
	// The whole range is read before any of it is told, so that a failure on the
	// way changes nothing.
	all, rev, err := w.kind.store.walk(ctx, w.from, w.to)
	if err != nil {
		return err
	}
	there := make(map[string]int64, len(all))
	for _, kv := range all {
		there[string(kv.Key)] = kv.ModRevision
	}
	for path := range w.known {
		if _, ok := there[path]; !ok && !w.send(ctx, Event[T]{Type: Deleted, Key: w.kind.key(path)}) {
			return ctx.Err()
		}
	}
	for _, kv := range all {
		if w.known[string(kv.Key)] == kv.ModRevision {
			continue
		}
		obj, err := w.kind.decode(kv.Value, kv.ModRevision)
		if err != nil {
			continue // see event
		}
		if !w.send(ctx, Event[T]{Type: Put, Key: w.kind.key(string(kv.Key)), Object: obj}) {
			return ctx.Err()
		}
	}
	first := w.known == nil
	w.known, w.revision = there, rev
	if first {
		w.send(ctx, Event[T]{Type: Synced})
	}
	return nil
}

// follow tells changes until the watch breaks.
func (w *watcher[T]) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := w.kind.store.client.Watch(clientv3.WithRequireLeader(ctx), w.from,
		clientv3.WithRange(w.to), clientv3.WithRev(w.revision+1),
		clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithFragment())
	for resp := range changes {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, e := range resp.Events {
			if event, ok := w.event(e); ok && !w.send(ctx, event) {
				return ctx.Err()
			}
			w.revision = e.Kv.ModRevision
		}
		// The header's revision is the store's, and a watch that catches up may be
		// far behind it. Only a progress notice says that nothing lies between.
		if resp.IsProgressNotify() {
			w.revision = max(w.revision, resp.Header.Revision)
		}
	}
	return errors.New("the watch ended")
}

// event reports false for a value that is not of this kind. One such value must
// not stop everybody who watches; Get and List say what is wrong with it.
func (w *watcher[T]) event(e *clientv3.Event) (Event[T], bool) {
	path := string(e.Kv.Key)
	event := Event[T]{Type: Put, Key: w.kind.key(path)}
	if e.PrevKv != nil {
		if previous, err := w.kind.decode(e.PrevKv.Value, e.PrevKv.ModRevision); err == nil {
			event.Previous = previous
		}
	}
	if e.Type == clientv3.EventTypeDelete {
		event.Type = Deleted
		delete(w.known, path)
		return event, true
	}
	w.known[path] = e.Kv.ModRevision
	object, err := w.kind.decode(e.Kv.Value, e.Kv.ModRevision)
	event.Object = object
	return event, err == nil
}

func (w *watcher[T]) send(ctx context.Context, e Event[T]) bool {
	select {
	case w.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}
