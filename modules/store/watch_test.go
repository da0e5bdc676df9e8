package store_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// next returns the next event as text.
func next(t *testing.T, events <-chan store.Event[*resource.App]) string {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			return "closed"
		}
		text := map[store.EventType]string{store.Put: "put", store.Deleted: "deleted", store.Synced: "synced"}[e.Type]
		if e.Key != "" {
			text += " " + e.Key
		}
		if e.Object != nil {
			text += fmt.Sprintf(" %d", e.Object.Spec.Instances)
		}
		if e.Previous != nil {
			text += fmt.Sprintf(" was %d", e.Previous.Spec.Instances)
		}
		return text
	case <-time.After(15 * time.Second):
		t.Fatal("no event within 15 s")
		return ""
	}
}

func expect(t *testing.T, events <-chan store.Event[*resource.App], want ...string) {
	t.Helper()
	for _, w := range want {
		if got := next(t, events); got != w {
			t.Fatalf("event %q, want %q", got, w)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	apps := store.Of[resource.App](storetest.New(t))
	a, b := app("acme/web/shop/a", 1), app("acme/web/shop/b", 1)
	must(t, apps.Create(ctx, a))
	must(t, apps.Create(ctx, app("acme/web/shop2/x", 1)))
	must(t, apps.Create(ctx, b))

	all := apps.Watch(ctx, "acme/web/shop")
	expect(t, all, "put acme/web/shop/a 1", "put acme/web/shop/b 1", "synced")
	one := apps.WatchKey(ctx, a.Key())
	expect(t, one, "put acme/web/shop/a 1", "synced")

	b.Spec.Instances = 2
	must(t, apps.Update(ctx, b))
	a.Spec.Instances = 3
	must(t, apps.Update(ctx, a))
	must(t, apps.Delete(ctx, a))
	expect(t, all, "put acme/web/shop/b 2 was 1", "put acme/web/shop/a 3 was 1", "deleted acme/web/shop/a was 3")
	expect(t, one, "put acme/web/shop/a 3 was 1", "deleted acme/web/shop/a was 3")
}

func TestWatchOutlivesRestartAndCompaction(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	e := storetest.Start(t)
	apps := store.Of[resource.App](store.New(e.Client))
	a, b := app("acme/web/shop/a", 1), app("acme/web/shop/b", 1)
	must(t, apps.Create(ctx, a))
	must(t, apps.Create(ctx, b))
	events := apps.Watch(ctx, "")
	expect(t, events, "put acme/web/shop/a 1", "put acme/web/shop/b 1", "synced")

	e.Stop()
	e.Start()
	a.Spec.Instances = 2
	must(t, apps.Update(ctx, a))
	expect(t, events, "put acme/web/shop/a 2 was 1")
}

// TestWatchAcrossCompaction has a watch miss changes that etcd has forgotten
// when it comes back.
func TestWatchAcrossCompaction(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	e := storetest.Start(t)
	apps := store.Of[resource.App](store.New(e.Client))
	a, b := app("acme/web/shop/a", 1), app("acme/web/shop/b", 1)
	must(t, apps.Create(ctx, a))
	must(t, apps.Create(ctx, b))
	// Read just so much that the watch stands still: its buffer takes 64 events.
	events := apps.Watch(ctx, "")
	expect(t, events, "put acme/web/shop/a 1", "put acme/web/shop/b 1", "synced")

	// Changes behind the watch's back: etcd is stopped, so the watch is away, and
	// a store of its own on the same data changes and compacts.
	e.Stop()
	e.Start()
	must(t, apps.Delete(ctx, a))
	b.Spec.Instances = 5
	must(t, apps.Update(ctx, b))
	c := app("acme/web/shop/c", 1)
	must(t, apps.Create(ctx, c))
	_, err := e.Client.Compact(ctx, c.Revision)
	must(t, err)

	// Whether it saw each change or only their outcome is its own affair.
	state := map[string]int{"acme/web/shop/a": 1, "acme/web/shop/b": 1}
	want := map[string]int{"acme/web/shop/b": 5, "acme/web/shop/c": 1}
	for !maps.Equal(state, want) {
		select {
		case ev := <-events:
			switch ev.Type {
			case store.Put:
				state[ev.Key] = ev.Object.Spec.Instances
			case store.Deleted:
				delete(state, ev.Key)
			}
		case <-ctx.Done():
			t.Fatalf("the watch told %v, want %v", state, want)
		}
	}
}

// TestCacheIsTheStore does random things to the store, restarts and compactions
// among them, and wants the cache to show the same in the end.
func TestCacheIsTheStore(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	e := storetest.Start(t)
	apps := store.Of[resource.App](store.New(e.Client))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	keys := make([]string, 12)
	for i := range keys {
		keys[i] = fmt.Sprintf("acme/web/s%d/a%d", i%3, i)
	}
	for _, key := range keys[:4] {
		must(t, apps.Create(ctx, app(key, 0)))
	}

	cache := apps.Cache(nil)
	var mu sync.Mutex
	changed := map[string]int{}
	wake := make(chan struct{}, 1)
	cache.OnChange(func(key string) {
		mu.Lock()
		changed[key]++
		mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	ready := make(chan struct{})
	go cache.Run(ctx, func() { close(ready) })
	<-ready
	if cache.Len() != 4 {
		t.Fatalf("ready with %d resources, want 4", cache.Len())
	}

	for i := range 400 {
		key := keys[rnd.IntN(len(keys))]
		switch n := rnd.IntN(100); {
		case n < 40:
			_ = apps.Create(ctx, app(key, i)) // may be there
		case n < 75:
			_, _ = apps.Modify(ctx, key, func(a *resource.App) error { a.Spec.Instances = i; return nil }) // may not be there
		case n < 97:
			must(t, apps.Delete(ctx, app(key, 0)))
		default:
			resp, err := e.Client.Get(ctx, "x")
			must(t, err)
			_, _ = e.Client.Compact(ctx, resp.Header.Revision) // may be compacted to there already
		}
		if i == 200 {
			e.Stop() // takes 5 s: etcd is polite to those who watch
			e.Start()
		}
	}
	must(t, apps.Create(ctx, app("acme/web/s9/end", 1)))

	truth, _, err := apps.List(ctx, "", "", 0)
	must(t, err)
	describe := func(list []*resource.App) (text []string) {
		for _, a := range list {
			text = append(text, fmt.Sprintf("%s=%d@%d", a.Key(), a.Spec.Instances, a.Revision))
		}
		return text
	}
	want := describe(truth)
	for !slices.Equal(describe(cache.List("")), want) {
		select {
		case <-wake:
		case <-ctx.Done():
			t.Fatalf("the cache has\n%v, want\n%v", describe(cache.List("")), want)
		}
	}
	for _, key := range keys {
		got, ok := cache.Get(key)
		i := slices.IndexFunc(truth, func(a *resource.App) bool { return a.Key() == key })
		if ok != (i >= 0) || ok && got.Spec.Instances != truth[i].Spec.Instances {
			t.Errorf("cache.Get(%s) = %v, %v", key, got, ok)
		}
	}
	if got, err := len(cache.List("acme/web/s9")), 1; got != err {
		t.Errorf("%d below acme/web/s9, want 1", got)
	}
	// What it gives out is the caller's.
	mine, _ := cache.Get("acme/web/s9/end")
	mine.Spec.Instances = 77
	if again, _ := cache.Get("acme/web/s9/end"); again.Spec.Instances != 1 {
		t.Error("a change of what Get returned changed the cache")
	}
	mu.Lock()
	defer mu.Unlock()
	if changed["acme/web/s9/end"] == 0 {
		t.Error("OnChange wasn't called for the last one")
	}
}

// TestCacheTellsOfAPart: who looks at a part is told when that changes, and of each resource that
// came or went.
func TestCacheTellsOfAPart(t *testing.T) {
	ctx, db := deadline(t), storetest.New(t)
	apps := store.Of[resource.App](db)
	cache := apps.Cache(nil)
	told, all := make(chan string, 9), make(chan string, 9)
	cache.OnChangeOf(func(a *resource.App) any { return a.Spec.Instances }, func(key string) { told <- key })
	cache.OnChange(func(key string) { all <- key })
	go cache.Run(ctx, func() {})
	want := func(what string, part bool) {
		t.Helper()
		<-all // it comes after
		if got := len(told) == 1; got != part {
			t.Errorf("%s: told %v, want %v", what, got, part)
		}
		if part {
			<-told
		}
	}
	must(t, apps.Create(ctx, app("acme/web/shop/a", 1)))
	want("it came", true)
	change := func(change func(*resource.App)) {
		t.Helper()
		_, err := apps.Modify(ctx, "acme/web/shop/a", func(a *resource.App) error { change(a); return nil })
		must(t, err)
	}
	change(func(a *resource.App) { a.Status.Phase = resource.Ready })
	want("something else", false)
	change(func(a *resource.App) { a.Spec.Instances = 2 })
	want("that part", true)
	must(t, apps.Delete(ctx, app("acme/web/shop/a", 0)))
	want("it went", true)
}
