// Package reconcile is the loop of every controller: keys of what has to be looked
// at, workers that look, and what follows from how a look ended. It promises that
// one key is looked at by one worker at a time, that a failed look is repeated
// with growing pauses which a good one forgets, that each look has a time limit,
// and that one tenant holds at most one worker, whatever his cluster does, and
// one account its share of them.
//
// Parties: a controller makes a Loop, adds keys when caches and watches tell of
// changes, and runs it. Only modules import this package.
package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"k8s.io/client-go/util/workqueue"

	"github.com/multipaas/multipaas/modules/store"
)

// Config is what a Loop needs.
type Config[K comparable] struct {
	// Name is one noun for logs and metrics: "workspace".
	Name string
	Log  *slog.Logger
	// Reconcile takes what key names one look further. again is after how long to
	// look anew although nothing will tell of a change; 0 is never. It is called by several
	// workers at once, for one key by one at a time, and returns soon after ctx is
	// done.
	Reconcile func(ctx context.Context, key K) (again time.Duration, err error)
	// Tenant says whose key is: one tenant holds at most one worker. Nil: nobody's.
	// It is called often, and for one key it always answers the same.
	Tenant func(key K) string
	// Share is how many workers the tenants of one account hold together: those
	// whose names are the same up to the first slash. 0 is no limit.
	Share int
	// Workers look at the same time; 0 is 1.
	Workers int
	// Timeout bounds one look; 0 is a minute.
	Timeout time.Duration
	// Backoff is the first pause after a failed look and MaxBackoff the longest;
	// 0 is 100 ms and 30 s.
	Backoff, MaxBackoff time.Duration
	// Ended is called after each look with its error, before the key can be looked
	// at again. May be nil.
	Ended func(key K, err error)
	// Registerer takes the loop's metrics; nil: they are not kept.
	Registerer prometheus.Registerer
}

// A tenant of whom a look ends Slow is left alone for slowBackoff, and twice as long
// each time, up to maxSlowBackoff; it takes as long again without one to be forgotten.
// Of 32 workers with a limit of a minute, some 190 such tenants at once leave one
// free: each holds one for 60 of 360 seconds.
const (
	slowBackoff    = 2 * time.Second
	maxSlowBackoff = 5 * time.Minute
)

// Loop is a work queue and its workers. Its methods are safe for concurrent use.
type Loop[K comparable] struct {
	cfg   Config[K]
	queue workqueue.TypedRateLimitingInterface[K]

	mu       sync.Mutex
	tenants  map[string]*tenant[K]  // those with a worker, or left alone
	accounts map[string]*account[K] // those with a worker
	said     map[K]string           // the last error of each key

	passes  *prometheus.CounterVec
	seconds prometheus.Histogram
}

// tenant is what a loop knows of somebody whose keys it looks at.
type tenant[K comparable] struct {
	busy    bool    // a worker has one of his keys
	waiting line[K] // his others
	slow    int     // how many looks ended Slow of late
	until   time.Time
}

// account is the tenants who share workers.
type account[K comparable] struct {
	busy    int     // workers that have one of their keys
	waiting line[K] // keys that came up when the whole share was busy
}

// line is keys in the order they came, each once: a tenant may have thousands.
type line[K comparable] struct {
	keys []K
	in   map[K]struct{}
}

func (q *line[K]) add(key K) {
	if _, ok := q.in[key]; ok {
		return
	}
	if q.in == nil {
		q.in = map[K]struct{}{}
	}
	q.in[key] = struct{}{}
	q.keys = append(q.keys, key)
}

// remove takes key out; next skips what is left of it in keys.
func (q *line[K]) remove(key K) { delete(q.in, key) }

func (q *line[K]) next() (key K, ok bool) {
	for len(q.keys) > 0 && !ok {
		key, q.keys = q.keys[0], q.keys[1:]
		_, ok = q.in[key]
	}
	delete(q.in, key)
	return key, ok
}

// New makes a Loop. Add works before Run does.
func New[K comparable](cfg Config[K]) *Loop[K] {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Workers = max(cfg.Workers, 1)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	cfg.Backoff = cmp.Or(cfg.Backoff, 100*time.Millisecond)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, 30*time.Second)
	l := &Loop[K]{
		cfg: cfg,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[K](cfg.Backoff, cfg.MaxBackoff)),
		tenants:  map[string]*tenant[K]{},
		accounts: map[string]*account[K]{},
		said:     map[K]string{},
	}
	labels := prometheus.Labels{"loop": cfg.Name}
	metrics := promauto.With(cfg.Registerer)
	l.passes = metrics.NewCounterVec(prometheus.CounterOpts{
		Name:        "multipaas_reconcile_total",
		Help:        "Looks at what is wanted and what is, by how they ended.",
		ConstLabels: labels,
	}, []string{"result"})
	l.seconds = metrics.NewHistogram(prometheus.HistogramOpts{
		Name:        "multipaas_reconcile_seconds",
		Help:        "How long a look took.",
		ConstLabels: labels,
		Buckets:     []float64{.001, .01, .1, 1, 10, 60},
	})
	metrics.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "multipaas_reconcile_queued",
		Help:        "Keys that wait for a look.",
		ConstLabels: labels,
	}, func() float64 { return float64(l.Len()) })
	return l
}

// Add has key looked at soon. A key that waits already waits once; one that is
// being looked at is looked at again. It does not block.
func (l *Loop[K]) Add(key K) { l.queue.Add(key) }

// AddAfter has key looked at when d has passed. It does not block.
func (l *Loop[K]) AddAfter(key K, d time.Duration) { l.queue.AddAfter(key, d) }

// Urge is Add for what its tenant must not wait for although his cluster hangs,
// since it doesn't need the cluster: that something is taken away, say.
func (l *Loop[K]) Urge(key K) {
	if l.cfg.Tenant != nil {
		l.mu.Lock()
		if t := l.tenants[l.cfg.Tenant(key)]; t != nil {
			t.until = time.Time{}
		}
		l.mu.Unlock()
	}
	l.queue.Add(key)
}

// Len is how many keys wait for a look.
func (l *Loop[K]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.queue.Len()
	for _, t := range l.tenants {
		n += len(t.waiting.in)
	}
	for _, a := range l.accounts {
		n += len(a.waiting.in)
	}
	return n
}

// Run looks until ctx is done and returns when the last look has ended. Call it
// once.
func (l *Loop[K]) Run(ctx context.Context) {
	var workers sync.WaitGroup
	for range l.cfg.Workers {
		workers.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	workers.Wait()
}

// next takes one key and looks at it, or has it wait for its tenant.
func (l *Loop[K]) next(ctx context.Context) bool {
	key, quit := l.queue.Get()
	if quit {
		return false
	}
	defer l.queue.Done(key)
	if !l.begin(key) {
		return true
	}
	began := time.Now()
	look, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	again, err := l.cfg.Reconcile(look, key)
	cancel()
	result := "ok"
	if err != nil {
		result = "error"
	}
	l.passes.WithLabelValues(result).Inc()
	l.seconds.Observe(time.Since(began).Seconds())
	if l.cfg.Ended != nil {
		l.cfg.Ended(key, err)
	}
	_, slow := errors.AsType[*slowError](err)
	l.end(key, slow)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		l.say(ctx, key, err)
		l.queue.AddRateLimited(key)
	default:
		l.forget(key)
		l.queue.Forget(key)
		if again > 0 {
			l.queue.AddAfter(key, again)
		}
	}
	return true
}

// begin says whether key may be looked at now. If not, it waits for its tenant or
// for its account.
func (l *Loop[K]) begin(key K) bool {
	if l.cfg.Tenant == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := l.cfg.Tenant(key)
	t := l.tenants[name]
	if t == nil {
		t = &tenant[K]{}
	}
	a := l.accounts[accountOf(name)]
	if a == nil {
		a = &account[K]{}
	}
	rest := time.Until(t.until)
	switch {
	case t.busy:
		t.waiting.add(key)
		l.wake(a) // key may have been woken to take the place of another
		return false
	case rest > 0:
		l.queue.AddAfter(key, rest)
		l.wake(a)
		return false
	case l.cfg.Share > 0 && a.busy >= l.cfg.Share:
		a.waiting.add(key)
		return false
	}
	t.busy = true
	a.busy++
	t.waiting.remove(key) // it was added anew while it waited
	a.waiting.remove(key)
	l.tenants[name], l.accounts[accountOf(name)] = t, a
	return true
}

// end lets a key come up that waited for its tenant, and one that waited for its
// account.
func (l *Loop[K]) end(key K, slow bool) {
	if l.cfg.Tenant == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := l.cfg.Tenant(key)
	t := l.tenants[name]
	t.busy = false
	if slow {
		pause := min(slowBackoff<<min(t.slow, 10), maxSlowBackoff)
		t.slow++
		t.until = time.Now().Add(pause)
		l.cfg.Log.Warn("a tenant's cluster hangs: he is left alone for a while", "tenant", name, "for", pause)
		l.sweep()
	} else if time.Since(t.until) > maxSlowBackoff {
		// Not at the first good look: it may have been at another of his keys, which
		// he can have looked at as often as he likes.
		t.slow = 0
	}
	if next, ok := t.waiting.next(); ok {
		l.queue.Add(next) // one of them: the others come up after it
	} else if t.slow == 0 {
		delete(l.tenants, name)
	}
	a := l.accounts[accountOf(name)]
	a.busy--
	l.wake(a)
	if a.busy == 0 && len(a.waiting.in) == 0 {
		delete(l.accounts, accountOf(name))
	}
}

// sweep forgets tenants who hung once and have not been heard of since.
func (l *Loop[K]) sweep() {
	for name, t := range l.tenants {
		if !t.busy && len(t.waiting.in) == 0 && time.Since(t.until) > maxSlowBackoff {
			delete(l.tenants, name)
		}
	}
}

// wake lets the next key come up that waits for its account, if there is a place.
func (l *Loop[K]) wake(a *account[K]) {
	if a.busy >= l.cfg.Share {
		return
	}
	if next, ok := a.waiting.next(); ok {
		l.queue.Add(next)
	}
}

func accountOf(tenant string) string {
	account, _, _ := strings.Cut(tenant, "/")
	return account
}

// say logs an error that is new for key. Others wrote meanwhile, or it will pass
// by itself: then it is no warning.
func (l *Loop[K]) say(ctx context.Context, key K, err error) {
	text := err.Error()
	l.mu.Lock()
	same := l.said[key] == text
	l.said[key] = text
	l.mu.Unlock()
	if same {
		return
	}
	level := slog.LevelWarn
	if _, expected := errors.AsType[*expectedError](err); expected || errors.Is(err, store.ErrConflict) {
		level = slog.LevelDebug
	}
	l.cfg.Log.Log(ctx, level, "not as wanted yet", l.cfg.Name, fmt.Sprint(key), "err", err)
}

func (l *Loop[K]) forget(key K) {
	l.mu.Lock()
	_, failed := l.said[key]
	delete(l.said, key)
	l.mu.Unlock()
	if failed {
		l.cfg.Log.Debug("as wanted again", l.cfg.Name, fmt.Sprint(key))
	}
}

// Expected marks an error that will pass by itself, such as that of a cluster
// which is still starting: it is repeated like any other, and logged at Debug.
func Expected(err error) error {
	if err == nil {
		return nil
	}
	return &expectedError{err}
}

type expectedError struct{ error }

func (e *expectedError) Unwrap() error { return e.error }

// Slow marks the error of a look that waited in vain for what its tenant has in
// his hand, such as his cluster behind a webhook of his: he is left alone for a
// while. What the platform itself was slow at is nobody's fault and not marked.
func Slow(err error) error {
	if err == nil {
		return nil
	}
	return &slowError{err}
}

// patience is what a cluster may take to refuse something; those that do it by a webhook
// that doesn't answer take ten seconds, unless it says otherwise.
const patience = 5 * time.Second

// SlowSince is Slow for the error of what began long ago and mostly asked the tenant's
// cluster, and err for what didn't take long.
func SlowSince(began time.Time, err error) error {
	if time.Since(began) < patience {
		return err
	}
	return Slow(err)
}

type slowError struct{ error }

func (e *slowError) Unwrap() error { return e.error }

// Soonest is the earlier of two times to look again; 0 is never.
func Soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
