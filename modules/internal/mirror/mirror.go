package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// listEvery is when a list is read anew: what a watch may have missed is mended
	// then, and what there was no room for may have some. Lists take at most one of
	// listShare parts of the time.
	listEvery = 5 * time.Minute
	listShare = 20
	// Planes are on this host or the next, and a pod that leaves must be seen: so ask
	// again soon, unlike client-go's informers, which wait for up to a minute.
	retryFirst = 100 * time.Millisecond
	retryMost  = 2 * time.Second
	// fat is an event after which the watch is begun anew: what client-go reads events
	// into grows with the largest and stays, and thousands of watches lie in this
	// process. It also means at most ten of them a second.
	fat      = 256 << 10
	fatPause = 100 * time.Millisecond
)

// Config is what a Mirror needs.
type Config[K any] struct {
	// What names the objects, for the log: "nodes of acme/web/shop".
	What string
	Log  *slog.Logger
	// Open returns where the objects are. It is called whenever an error made an end
	// of the last one. It must not block.
	Open    func(ctx context.Context) (Source, error)
	Options metav1.ListOptions // selectors
	// Slim returns what is kept of an object; nil: nothing. It must hold none of the
	// object's memory that has no bound. It is called by one goroutine.
	Slim func(o runtime.Object) *K
	// Size says how much of Max an object takes; nil: 1. What takes 0 has always room.
	Size func(*K) int
	Max  int
	// Changed is called when something is kept of an object for the first time (old is
	// nil), anew, or no more (now is nil). Listed is called after each list, and when
	// Whole has become false since. Both are called by one goroutine, must not block,
	// and may be nil.
	Changed func(old, now *K)
	Listed  func()
}

// Mirror keeps what Slim leaves of one kind of object of a cluster. While the cluster
// doesn't answer, it keeps what it had. Its methods are safe for concurrent use.
type Mirror[K any] struct {
	cfg     Config[K]
	perPage int64
	synced  chan struct{} // closed after the first list

	mu   sync.Mutex
	kept map[string]kept[K] // by namespace/name
	size int
	full bool // something was left out since the last list
}

type kept[K any] struct {
	it       *K // nil: nothing
	revision string
	size     int
}

// New makes a Mirror. It is empty before Run.
func New[K any](cfg Config[K]) *Mirror[K] {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Size == nil {
		cfg.Size = func(*K) int { return 1 }
	}
	return &Mirror[K]{cfg: cfg, synced: make(chan struct{}), kept: map[string]kept[K]{}}
}

// Synced is closed once all objects were listed.
func (m *Mirror[K]) Synced() <-chan struct{} { return m.synced }

// IsSynced says whether all objects were listed.
func (m *Mirror[K]) IsSynced() bool {
	select {
	case <-m.synced:
		return true
	default:
		return false
	}
}

// Whole says whether nothing was left out. What was comes in with one of the next lists,
// once there is room.
func (m *Mirror[K]) Whole() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.full
}

// Get returns what is kept of an object, or nil. Objects without a namespace have "".
func (m *Mirror[K]) Get(namespace, name string) *K {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[key(namespace, name)].it
}

// All returns what is kept, in no order.
func (m *Mirror[K]) All() []*K {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*K, 0, len(m.kept))
	for _, k := range m.kept {
		all = append(all, k.it)
	}
	return all
}

func key(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// Run follows the objects until ctx is done.
func (m *Mirror[K]) Run(ctx context.Context) {
	wait := retryFirst
	for ctx.Err() == nil {
		err := m.follow(ctx, func() { wait = retryFirst })
		if err == nil || ctx.Err() != nil {
			continue
		}
		m.cfg.Log.Debug("a cluster is not followed now", "what", m.cfg.What, "err", err)
		pause(ctx, wait)
		wait = min(2*wait, retryMost)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// follow lists once and watches until it is time for the next list.
func (m *Mirror[K]) follow(ctx context.Context, listed func()) error {
	s, err := m.cfg.Open(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	revision, err := m.list(ctx, s)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	listed()
	next := time.Now().Add(max(listEvery, listShare*time.Since(began)))
	for ctx.Err() == nil && time.Until(next) > 0 {
		began := time.Now()
		if revision, err = m.watch(ctx, s, revision, time.Until(next)); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if time.Since(began) < fatPause {
			pause(ctx, fatPause)
		}
	}
	return nil
}

// list makes what is kept what a list says, as far as there is room.
func (m *Mirror[K]) list(ctx context.Context, s Source) (revision string, err error) {
	fresh, size, full := map[string]kept[K]{}, 0, false
	revision, all, err := each(ctx, s, m.cfg.Options, &m.perPage, maxListed, func(o runtime.Object) bool {
		name, k := m.slim(o)
		switch {
		case k.it == nil:
		case size+k.size > m.cfg.Max:
			full = true
		default:
			fresh[name], size = k, size+k.size
		}
		return true
	})
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	old := m.kept
	m.kept, m.size, m.full = fresh, size, full || !all
	m.mu.Unlock()
	if changed := m.cfg.Changed; changed != nil {
		for name, now := range fresh {
			if was := old[name]; was.it == nil || was.revision != now.revision {
				changed(was.it, now.it)
			}
		}
		for name, was := range old {
			if fresh[name].it == nil {
				changed(was.it, nil)
			}
		}
	}
	if !m.IsSynced() {
		close(m.synced)
	}
	m.tellListed()
	return revision, nil
}

func (m *Mirror[K]) tellListed() {
	if m.cfg.Listed != nil {
		m.cfg.Listed()
	}
}

// slim returns the name of an object and what is to be kept of it.
func (m *Mirror[K]) slim(o runtime.Object) (string, kept[K]) {
	about, err := meta.Accessor(o)
	if err != nil {
		return "", kept[K]{}
	}
	k := kept[K]{it: m.cfg.Slim(o)}
	if k.it != nil {
		k.revision, k.size = strings.Clone(about.GetResourceVersion()), m.cfg.Size(k.it)
	}
	return key(about.GetNamespace(), about.GetName()), k
}

// watch follows what changes from a revision on, for a time at most, and returns the
// revision up to which it has.
func (m *Mirror[K]) watch(ctx context.Context, s Source, revision string, most time.Duration) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := m.cfg.Options
	o.ResourceVersion, o.AllowWatchBookmarks, o.TimeoutSeconds = revision, true, new(int64(most.Seconds())+1)
	w, err := s.Watch(ctx, o)
	if err != nil {
		return "", err
	}
	defer w.Stop()
	for e := range w.ResultChan() { // closed when ctx is done
		about, err := meta.Accessor(e.Object)
		if e.Type == watch.Error || err != nil {
			return "", fmt.Errorf("the watch has ended: %v", e.Object)
		}
		revision = strings.Clone(about.GetResourceVersion())
		if e.Type == watch.Bookmark {
			continue
		}
		m.event(e)
		if o, ok := e.Object.(interface{ Size() int }); ok && o.Size() > fat {
			pause(ctx, fatPause)
			return revision, nil
		}
	}
	if revision == "" {
		return "", errors.New("it names no revision")
	}
	return revision, nil
}

// event keeps what one says.
func (m *Mirror[K]) event(e watch.Event) {
	name, now := m.slim(e.Object)
	if e.Type == watch.Deleted {
		now = kept[K]{}
	}
	m.mu.Lock()
	was, wasFull := m.kept[name], m.full
	if now.it != nil && m.size-was.size+now.size > m.cfg.Max {
		now, m.full = kept[K]{}, true
	}
	m.size += now.size - was.size
	if now.it != nil {
		m.kept[name] = now
	} else {
		delete(m.kept, name)
	}
	overflows := m.full && !wasFull
	m.mu.Unlock()
	if m.cfg.Changed != nil && (was.it != nil || now.it != nil) {
		m.cfg.Changed(was.it, now.it)
	}
	if overflows {
		m.tellListed()
	}
}
