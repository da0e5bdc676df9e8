package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// A newer program has written into a resource of each kind what this one does not
// know; this one writes it back.
func TestUnknownFieldsOfEachKindSurvive(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	etcd := storetest.Start(t)
	s := store.New(etcd.Client)
	for _, k := range resource.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			obj := k.New()
			must(t, json.Unmarshal([]byte(`{"name":"x","account":"acme","organization":"web","workspace":"shop"}`), obj))
			kind := store.Any(s, k)
			must(t, kind.Create(ctx, obj))
			path := "/multipaas/" + k.Name + "/" + obj.Key()
			stored := func() (v map[string]any) {
				resp, err := etcd.Client.Get(ctx, path)
				must(t, err)
				must(t, json.Unmarshal(resp.Kvs[0].Value, &v))
				return v
			}
			newer := stored()
			newer["fromTheFuture"] = map[string]any{"a": []any{"b"}}
			for _, part := range []string{"spec", "status"} {
				if m, ok := newer[part].(map[string]any); ok {
					m["fromTheFuture"] = 1.0
				}
			}
			value, err := json.Marshal(newer)
			must(t, err)
			_, err = etcd.Client.Put(ctx, path, string(value))
			must(t, err)

			_, err = kind.MarkDeleted(ctx, obj.Key())
			must(t, err)
			got := stored()
			if got["deletedAt"] == nil {
				t.Fatalf("it is not marked: %v", got)
			}
			delete(got, "deletedAt")
			if fmt.Sprint(got) != fmt.Sprint(newer) {
				t.Errorf("written back:\n %v\nwant what was there:\n %v", got, newer)
			}
		})
	}
}

// The list of kinds is what everybody loops over: it is right about each.
func TestKindsAreWhatTheySay(t *testing.T) {
	t.Parallel()
	var names []string
	for _, k := range resource.Kinds() {
		obj := k.New()
		if obj.Kind() != k.Name || obj.Scope() != k.Scope {
			t.Errorf("%s: %T says it is %s in a %s", k.Name, obj, obj.Kind(), obj.Scope())
		}
		names = append(names, k.Name)
	}
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Errorf("a name stands for two kinds: %v", names)
	}
	a := app("acme/web/shop/hello", 1)
	for scope, want := range map[resource.Scope]string{
		resource.Platform: "", resource.OfAccount: "acme", resource.OfOrganization: "acme/web", resource.OfWorkspace: "acme/web/shop",
	} {
		if got := scope.Parent(a.Key()); got != want {
			t.Errorf("the %s of %s: %q, want %q", scope, a.Key(), got, want)
		}
	}
	if got := resource.OfWorkspace.Parent("acme/web/shop"); got != "" {
		t.Errorf("the workspace of a key without one: %q", got)
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	apps := store.Of[resource.App](storetest.New(t))
	key := "acme/web/shop/hello"
	see := func(seen *resource.App, phase resource.Phase) resource.Phase {
		t.Helper()
		must(t, apps.Observe(ctx, seen, func(now *resource.App) { now.Status.Phase = phase }))
		now, err := apps.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			return "none"
		}
		must(t, err)
		return now.Status.Phase
	}
	first := app(key, 1)
	must(t, apps.Create(ctx, first))
	if got := see(first, resource.Ready); got != resource.Ready {
		t.Errorf("what was seen is not written: %q", got)
	}
	// Another status meanwhile is no reason to keep quiet, another wish is.
	if got := see(first, resource.Degraded); got != resource.Degraded {
		t.Errorf("what was seen after somebody else's look is not written: %q", got)
	}
	scaled, err := apps.Modify(ctx, key, func(a *resource.App) error { a.Spec.Instances = 2; return nil })
	must(t, err)
	if got := see(first, resource.Ready); got != resource.Degraded {
		t.Errorf("what was seen of generation 1 is said of generation 2: %q", got)
	}
	if _, err = apps.MarkDeleted(ctx, key); err != nil {
		t.Fatal(err)
	}
	if got := see(scaled, resource.Ready); got != resource.Degraded {
		t.Errorf("what was seen before deletion was asked for is written: %q", got)
	}
	must(t, apps.Delete(ctx, app(key, 1)))
	if got := see(first, resource.Ready); got != "none" {
		t.Errorf("after the end: %q", got)
	}
	must(t, apps.Create(ctx, app(key, 1)))
	if got := see(first, resource.Ready); got != "" {
		t.Errorf("what was seen of one is said of the next of its name: %q", got)
	}
}

// Whoever asks a cache late is told what is there, and misses nothing.
func TestCacheTellsWhoAsksLate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	apps := store.Of[resource.App](storetest.New(t))
	must(t, apps.Create(ctx, app("acme/web/shop/a", 1)))
	cache := apps.Cache(nil)
	ready := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wg.Go(func() { _ = cache.Run(ctx, func() { close(ready) }) })
	<-ready
	told := make(chan string, 10)
	cache.OnChange(func(key string) { told <- strings.TrimPrefix(key, "acme/web/shop/") })
	if got := <-told; got != "a" {
		t.Errorf("told of %q, want a, which was there", got)
	}
	must(t, apps.Create(t.Context(), app("acme/web/shop/b", 1)))
	if got := <-told; got != "b" {
		t.Errorf("told of %q, want b, which came", got)
	}
}
