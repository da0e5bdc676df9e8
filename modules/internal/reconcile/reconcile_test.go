package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/multipaas/multipaas/modules/store"
)

// run runs a loop in virtual time until the test's function returns.
func run[K comparable](t *testing.T, cfg Config[K], test func(l *Loop[K])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx) })
		test(l)
		cancel()
		wg.Wait()
	})
}

// settle lets time go by, until all that was to happen by then has.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func tenantOf(key string) string { return key[:1] }

// looks notes which keys are being looked at.
type looks struct {
	mu    sync.Mutex
	now   map[string]bool
	count map[string]int
	most  map[string]int // at once, by tenant
}

func (l *looks) begin(key string) (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now == nil {
		l.now, l.count, l.most = map[string]bool{}, map[string]int{}, map[string]int{}
	}
	if l.now[key] {
		panic(key + " is looked at twice at once")
	}
	l.now[key] = true
	l.count[key]++
	n := 0
	for k := range l.now {
		if tenantOf(k) == tenantOf(key) {
			n++
		}
	}
	l.most[tenantOf(key)] = max(l.most[tenantOf(key)], n)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.now, key)
	}
}

func (l *looks) of(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[key]
}

func TestOneTenantHoldsOneWorker(t *testing.T) {
	var seen looks
	run(t, Config[string]{Name: "app", Tenant: tenantOf, Workers: 4, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if tenantOf(key) == "a" { // his cluster takes its time
			time.Sleep(10 * time.Second)
		}
		return 0, nil
	}}, func(l *Loop[string]) {
		for i := range 20 {
			l.Add(fmt.Sprintf("a%d", i))
		}
		l.Add("b")
		settle(time.Second)
		if seen.of("b") != 1 {
			t.Error("b waits behind the twenty keys of a")
		}
		if n := l.Len(); n != 19 {
			t.Errorf("%d keys wait, want 19", n)
		}
		settle(200 * time.Second)
		for i := range 20 {
			if n := seen.of(fmt.Sprintf("a%d", i)); n != 1 {
				t.Errorf("a%d was looked at %d times, want once", i, n)
			}
		}
	})
	if seen.most["a"] != 1 {
		t.Errorf("a held %d workers at once, want 1", seen.most["a"])
	}
}

func TestTenantsOfOneAccountHoldTheirShare(t *testing.T) {
	var mu sync.Mutex
	busy, most, done := map[string]int{}, map[string]int{}, map[string]int{}
	hangs := func(key string) bool { return strings.HasPrefix(key, "a/w0/") }
	run(t, Config[string]{
		Name:    "app",
		Tenant:  func(key string) string { return key[:strings.LastIndex(key, "/")] },
		Share:   3,
		Workers: 8,
		Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
			account := accountOf(key)
			mu.Lock()
			busy[account]++
			most[account] = max(most[account], busy[account])
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				busy[account]--
				done[key]++
			}()
			if hangs(key) {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			time.Sleep(10 * time.Second)
			return 0, nil
		}}, func(l *Loop[string]) {
		for i := range 20 {
			l.Add(fmt.Sprintf("a/w%d/1", i))
			l.Add(fmt.Sprintf("a/w%d/2", i))
		}
		l.Add("b/w/1")
		settle(11 * time.Second)
		mu.Lock()
		if done["b/w/1"] != 1 {
			t.Error("b waits behind the workspaces of a")
		}
		mu.Unlock()
		settle(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		for i := 1; i < 20; i++ {
			for _, n := range []string{"1", "2"} {
				if key := fmt.Sprintf("a/w%d/%s", i, n); done[key] != 1 {
					t.Errorf("%s was looked at %d times, want once", key, done[key])
				}
			}
		}
		if done["a/w0/1"] < 2 || done["a/w0/2"] < 2 {
			t.Errorf("the one that hangs was looked at %d and %d times", done["a/w0/1"], done["a/w0/2"])
		}
		if l.Len() > 2 || len(l.accounts) > 1 || len(l.tenants) > 1 {
			t.Errorf("%d keys, %d accounts and %d tenants are kept", l.Len(), len(l.accounts), len(l.tenants))
		}
	})
	if most["a"] != 3 {
		t.Errorf("a held %d workers at once, want 3", most["a"])
	}
}

// The second key of a tenant who is left alone must not keep the account's place
// from those who come after it.
func TestWhoIsLeftAloneKeepsNoPlace(t *testing.T) {
	var done atomic.Bool
	run(t, Config[string]{
		Name:    "app",
		Tenant:  func(key string) string { return key[:strings.LastIndex(key, "/")] },
		Share:   1,
		Workers: 2,
		Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
			if strings.HasPrefix(key, "a/hangs/") {
				<-ctx.Done()
				return 0, Slow(ctx.Err())
			}
			time.Sleep(10 * time.Second)
			done.Store(done.Load() || key == "a/last/1")
			return 0, nil
		}}, func(l *Loop[string]) {
		for _, key := range []string{"a/first/1", "a/hangs/1", "a/hangs/2", "a/last/1"} {
			l.Add(key)
			settle(time.Millisecond)
		}
		settle(81 * time.Second) // 10 of the first, 60 of the one that hangs, 10 of the last
		if !done.Load() {
			t.Error("the last waits for more than one that hangs")
		}
	})
}

func TestHangingTenantIsLeftAloneForLonger(t *testing.T) {
	var seen looks
	var well atomic.Bool
	run(t, Config[string]{Name: "app", Tenant: tenantOf, Timeout: time.Minute, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if tenantOf(key) == "a" && !well.Load() {
			<-ctx.Done()
			return 0, Slow(ctx.Err())
		}
		return 0, nil
	}}, func(l *Loop[string]) {
		l.Add("a")
		settle(2 * time.Hour)
		// 1, 2, 4... 256 s of pause, then 300: 20 or so in two hours, of a minute each.
		if n := seen.of("a"); n < 15 || n > 35 {
			t.Errorf("a hanging cluster was looked at %d times in two hours", n)
		}
		began := seen.of("b")
		l.Add("b")
		settle(61 * time.Second) // the one worker may be with a
		if seen.of("b") != began+1 {
			t.Error("b waits although a is left alone")
		}
		well.Store(true)
		settle(7 * time.Minute)
		n := seen.of("a")
		l.Add("a")
		settle(time.Second)
		if seen.of("a") != n+1 {
			t.Error("a is well again and still left alone")
		}
	})
}

// A tenant whose cluster hangs can't talk himself out of being left alone by things
// of his that are well.
func TestGoodLooksBetweenDoNotForgive(t *testing.T) {
	var seen looks
	run(t, Config[string]{Name: "app", Tenant: tenantOf, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if key == "a1" {
			time.Sleep(time.Second)
			return 0, fmt.Errorf("app: %w", Slow(context.DeadlineExceeded))
		}
		return 0, nil
	}}, func(l *Loop[string]) {
		l.Add("a1")
		for range 7200 {
			l.Add("a2")
			settle(time.Second)
		}
		if n := seen.of("a1"); n < 15 || n > 40 {
			t.Errorf("a hanging cluster was looked at %d times in two hours", n)
		}
	})
}

// What the platform is slow at is nobody's fault.
func TestTimeOfThePlatformIsNobodysFault(t *testing.T) {
	var seen looks
	var well atomic.Bool
	run(t, Config[string]{Name: "app", Tenant: tenantOf, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if well.Load() {
			return 0, nil
		}
		<-ctx.Done() // the datastore doesn't answer
		return 0, ctx.Err()
	}}, func(l *Loop[string]) {
		l.Add("a")
		settle(time.Hour)
		well.Store(true)
		settle(2 * time.Minute) // the look under way, and one pause of the key's own
		n := seen.of("a")
		l.Add("a")
		settle(time.Second)
		if seen.of("a") != n+1 {
			t.Error("the tenant is left alone for what the platform was slow at")
		}
	})
}

// A webhook that fails after ten seconds, and not never, doesn't keep a worker busy either.
func TestFailingLateIsSlow(t *testing.T) {
	var seen looks
	var held time.Duration
	run(t, Config[string]{Name: "app", Tenant: tenantOf, MaxBackoff: 15 * time.Second, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		began := time.Now()
		if key == "b" { // fails at once
			return 0, SlowSince(began, errors.New("not found"))
		}
		time.Sleep(10 * time.Second)
		held += time.Since(began)
		return 0, SlowSince(began, errors.New("failed calling webhook"))
	}}, func(l *Loop[string]) {
		for i := range 20 {
			l.Add(fmt.Sprintf("a%d", i))
		}
		l.Add("b")
		settle(time.Hour)
		if held > 5*time.Minute {
			t.Errorf("it held the worker for %v of an hour", held)
		}
		if n := seen.of("b"); n < 100 {
			t.Errorf("who fails at once was looked at %d times in an hour: he is not slow", n)
		}
	})
}

func TestUrgeDoesNotWait(t *testing.T) {
	var seen looks
	var deleted atomic.Bool
	run(t, Config[string]{Name: "app", Tenant: tenantOf, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if deleted.Load() {
			return 0, nil
		}
		return 0, Slow(context.DeadlineExceeded)
	}}, func(l *Loop[string]) {
		l.Add("a")
		settle(time.Hour)
		n := seen.of("a")
		deleted.Store(true)
		l.Add("a")
		settle(time.Second)
		if seen.of("a") != n {
			t.Fatal("he is not left alone any more after an hour: nothing is tried here")
		}
		l.Urge("a")
		settle(time.Second)
		if seen.of("a") != n+1 {
			t.Error("what is urgent waits")
		}
	})
}

// A key that waits for its account and is added anew when there is a place doesn't
// take the place of another afterwards.
func TestKeyThatComesUpTwiceWaitsOnce(t *testing.T) {
	var seen looks
	run(t, Config[string]{Name: "app", Tenant: func(key string) string { return "acme/" + key }, Share: 1, Workers: 4,
		Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
			defer seen.begin(key)()
			time.Sleep(10 * time.Second)
			return 0, nil
		}}, func(l *Loop[string]) {
		for _, key := range []string{"a", "b", "c", "d"} {
			l.Add(key)
			settle(time.Second)
		}
		l.Add("c")
		settle(8 * time.Second) // the place is free
		if n := l.Len(); n > 3 {
			t.Errorf("%d keys wait, of three", n)
		}
		settle(29 * time.Second)
		for _, key := range []string{"a", "b", "c", "d"} {
			if n := seen.of(key); n != 1 {
				t.Errorf("%s was looked at %d times, want once", key, n)
			}
		}
	})
}

func TestFailuresArePausedAndForgotten(t *testing.T) {
	var at []time.Duration
	var began time.Time
	fail := 5
	run(t, Config[string]{Name: "x", Backoff: time.Second, MaxBackoff: 4 * time.Second, Reconcile: func(context.Context, string) (time.Duration, error) {
		if began.IsZero() {
			began = time.Now()
		}
		at = append(at, time.Since(began).Round(time.Second))
		if fail--; fail >= 0 {
			return time.Hour, errors.New("not yet")
		}
		return 0, nil
	}}, func(l *Loop[string]) {
		l.Add("k")
		settle(time.Minute)
		if got, want := fmt.Sprint(at), "[0s 1s 3s 7s 11s 15s]"; got != want {
			t.Errorf("looked at %s, want %s", got, want)
		}
		at, began, fail = nil, time.Time{}, 1
		l.Add("k")
		settle(time.Minute)
		if got, want := fmt.Sprint(at), "[0s 1s]"; got != want {
			t.Errorf("after a good look, %s, want %s", got, want)
		}
	})
}

func TestAgain(t *testing.T) {
	var seen looks
	run(t, Config[string]{Name: "x", Reconcile: func(_ context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		return time.Minute, nil
	}}, func(l *Loop[string]) {
		l.Add("k")
		settle(10*time.Minute + time.Second)
		if n := seen.of("k"); n != 11 {
			t.Errorf("looked at %d times in ten minutes, want 11", n)
		}
	})
}

func TestSaysWhatChanges(t *testing.T) {
	var log strings.Builder
	errs := []error{errors.New("a"), errors.New("a"), store.ErrConflict, Expected(errors.New("starting")), errors.New("b"), nil}
	metrics := prometheus.NewRegistry()
	run(t, Config[string]{Name: "x", Log: slog.New(slog.NewTextHandler(&log, nil)), Registerer: metrics, Reconcile: func(context.Context, string) (time.Duration, error) {
		err := errs[0]
		errs = errs[1:]
		return 0, err
	}}, func(l *Loop[string]) {
		l.Add("k")
		settle(time.Minute)
	})
	if got := strings.Count(log.String(), "\n"); got != 2 || !strings.Contains(log.String(), "x=k err=a") || !strings.Contains(log.String(), "x=k err=b") {
		t.Errorf("log:\n%swant one line for a and one for b", log.String())
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "multipaas_reconcile_total" {
				for _, l := range m.GetLabel() {
					if l.GetName() == "result" {
						got[l.GetValue()] = m.GetCounter().GetValue()
					}
				}
			}
		}
	}
	if got["ok"] != 1 || got["error"] != 5 {
		t.Errorf("counted %v, want 1 ok and 5 errors", got)
	}
}

// A key that comes up while it is looked at is looked at once more.
func TestAddDuringALook(t *testing.T) {
	var seen looks
	var l *Loop[string]
	cfg := Config[string]{Name: "x", Tenant: tenantOf, Workers: 2, Reconcile: func(_ context.Context, key string) (time.Duration, error) {
		defer seen.begin(key)()
		if seen.of(key) == 1 {
			l.Add(key)
			l.Add(key)
			time.Sleep(time.Second)
		}
		return 0, nil
	}}
	run(t, cfg, func(made *Loop[string]) {
		l = made
		l.Add("k")
		settle(time.Minute)
		if n := seen.of("k"); n != 2 {
			t.Errorf("looked at %d times, want 2", n)
		}
	})
}
