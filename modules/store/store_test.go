package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

func app(path string, instances int) *resource.App {
	p := strings.Split(path, "/")
	a := &resource.App{InWorkspace: resource.InWorkspace{Account: p[0], Organization: p[1], Workspace: p[2]}}
	a.Name = p[3]
	a.Spec.Instances = instances
	return a
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLifeOfAResource(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	apps := store.Of[resource.App](storetest.New(t))

	a := app("acme/web/shop/hello", 1)
	must(t, apps.Create(ctx, a))
	if a.UID == "" || a.Generation != 1 || a.Revision == 0 || a.CreatedAt.IsZero() {
		t.Fatalf("after create: %+v, want UID, Generation 1, Revision and CreatedAt", a.Meta)
	}
	if err := apps.Create(ctx, app("acme/web/shop/hello", 1)); !errors.Is(err, store.ErrExists) {
		t.Fatalf("second create: %v, want ErrExists", err)
	}
	got, err := apps.Get(ctx, a.Key())
	must(t, err)
	if got.Meta != a.Meta {
		t.Errorf("read %+v, want %+v", got.Meta, a.Meta)
	}

	// Status alone doesn't count as a change of what is wanted; spec does.
	got.Status.Phase = resource.Ready
	must(t, apps.Update(ctx, got))
	if got.Generation != 1 {
		t.Errorf("generation after a change of status: %d, want 1", got.Generation)
	}
	got.Spec.Instances = 2
	got.UID, got.CreatedAt, got.Generation = "forged", time.Time{}, 99
	must(t, apps.Update(ctx, got))
	if got.Generation != 2 || got.UID != a.UID || !got.CreatedAt.Equal(a.CreatedAt) {
		t.Errorf("after a change of spec: %+v, want generation 2 and UID and CreatedAt as they were", got.Meta)
	}

	a.Spec.Instances = 3
	if err := apps.Update(ctx, a); !errors.Is(err, store.ErrConflict) {
		t.Errorf("update of an old revision: %v, want ErrConflict", err)
	}
	if err := apps.Delete(ctx, a); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete of an old revision: %v, want ErrConflict", err)
	}

	// Nothing changed: nothing written.
	same, err := apps.Modify(ctx, a.Key(), func(*resource.App) error { return nil })
	must(t, err)
	if same.Revision != got.Revision {
		t.Errorf("revision after a Modify without a change: %d, want %d", same.Revision, got.Revision)
	}

	marked, err := apps.MarkDeleted(ctx, a.Key())
	must(t, err)
	if !marked.Deleting() || marked.Generation != 2 {
		t.Errorf("marked: %+v, want DeletedAt and generation 2", marked.Meta)
	}
	again, err := apps.Modify(ctx, a.Key(), func(a *resource.App) error {
		a.DeletedAt = nil
		a.Status.Phase = resource.Deleting
		return nil
	})
	must(t, err)
	if !again.Deleting() {
		t.Error("a deletion was taken back; want it kept")
	}

	must(t, apps.Delete(ctx, again))
	if _, err := apps.Get(ctx, a.Key()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("get after delete: %v, want ErrNotFound", err)
	}
	if err := apps.Delete(ctx, again); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: %v, want ErrNotFound", err)
	}
	must(t, apps.Delete(ctx, app("acme/web/shop/hello", 0)))
	if _, err := apps.Modify(ctx, a.Key(), func(*resource.App) error { return nil }); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("modify of nothing: %v, want ErrNotFound", err)
	}
}

func TestModifyReturnsTheCallersError(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	apps := store.Of[resource.App](storetest.New(t))
	must(t, apps.Create(ctx, app("acme/web/shop/hello", 1)))
	mine := errors.New("mine")
	_, err := apps.Modify(ctx, "acme/web/shop/hello", func(a *resource.App) error { a.Spec.Instances = 7; return mine })
	if err != mine {
		t.Errorf("got %v, want the very error", err)
	}
	a, err := apps.Modify(ctx, "acme/web/shop/hello", func(a *resource.App) error { a.Spec.Instances = 7; return store.ErrSkip })
	must(t, err)
	if got, err := apps.Get(ctx, a.Key()); err != nil || got.Spec.Instances != 1 {
		t.Errorf("after ErrSkip: %v instances, %v; want 1", got.Spec.Instances, err)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := storetest.New(t)
	for _, key := range []string{"", "/", "a//b", "a/", "a\n", strings.Repeat("x", 1025)} {
		if _, err := store.Of[resource.App](st).Get(ctx, key); !errors.Is(err, store.ErrInvalidKey) {
			t.Errorf("key %q: %v, want ErrInvalidKey", key, err)
		}
	}
	if err := store.Of[resource.Account](st).Create(ctx, &resource.Account{}); !errors.Is(err, store.ErrInvalidKey) {
		t.Errorf("account without a name: %v, want ErrInvalidKey", err)
	}
	big := app("acme/web/shop/big", 1)
	big.Spec.Env = map[string]string{"X": strings.Repeat("x", store.MaxBytes)}
	if err := store.Of[resource.App](st).Create(ctx, big); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("a resource over the limit: %v, want ErrTooLarge", err)
	}
	if big.UID != "" || big.Generation != 0 {
		t.Errorf("a refused create left %+v behind", big.Meta)
	}
	// The largest that is allowed has to fit into a request of etcd.
	big.Spec.Env["X"] = strings.Repeat("x", store.MaxBytes-1024)
	must(t, store.Of[resource.App](st).Create(ctx, big))
	for _, after := range []string{"x,", ",1", "x,-1", "a//b"} {
		if _, _, err := store.Of[resource.App](st).List(ctx, "", after, 1); !errors.Is(err, store.ErrInvalidPage) {
			t.Errorf("after %q: %v, want ErrInvalidPage", after, err)
		}
	}
}

func TestCommitIsAllOrNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := storetest.New(t)
	a := app("acme/web/shop/hello", 1)
	task := func() *resource.Task {
		t := &resource.Task{}
		t.Name = "t1"
		return t
	}
	first := task()
	must(t, st.Commit(ctx, store.Of[resource.App](st).CreateOp(a), store.Of[resource.Task](st).CreateOp(first).Before(func() {
		first.Spec.TargetUID, first.Spec.Generation = a.UID, a.Generation
	}), store.Op{}))
	if a.Revision != first.Revision {
		t.Errorf("revisions %d and %d, want the same", a.Revision, first.Revision)
	}
	stored, err := store.Of[resource.Task](st).Get(ctx, "t1")
	must(t, err)
	if stored.Spec.TargetUID != a.UID || stored.Spec.Generation != 1 {
		t.Errorf("task: %+v, want the app's UID and generation", stored.Spec)
	}

	a.Spec.Instances = 2
	before := a.Meta
	err = st.Commit(ctx, store.Of[resource.App](st).UpdateOp(a), store.Of[resource.Task](st).CreateOp(task()))
	if !errors.Is(err, store.ErrExists) || !strings.Contains(err.Error(), "create tasks t1") {
		t.Fatalf("got %v, want ErrExists about the task", err)
	}
	if a.Meta != before {
		t.Errorf("after a refused commit: %+v, want %+v", a.Meta, before)
	}
	got, err := store.Of[resource.App](st).Get(ctx, a.Key())
	must(t, err)
	if got.Spec.Instances != 1 {
		t.Errorf("the app was changed by a refused commit")
	}
	got.Spec.Instances = 5
	must(t, st.Commit(ctx, store.Of[resource.App](st).UpdateOp(got), store.Of[resource.Task](st).MarkDeletedOp("t1")))
	if got.Generation != 2 || got.UID != a.UID {
		t.Errorf("after an update: %+v, want generation 2 and the UID of %+v", got.Meta, a.Meta)
	}
}

func TestConcurrentModify(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	apps := store.Of[resource.App](storetest.New(t))
	must(t, apps.Create(ctx, app("acme/web/shop/hello", 0)))
	const workers, times = 8, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range times {
				if _, err := apps.Modify(ctx, "acme/web/shop/hello", func(a *resource.App) error {
					a.Spec.Instances++
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	a, err := apps.Get(ctx, "acme/web/shop/hello")
	must(t, err)
	if a.Spec.Instances != workers*times || a.Generation != workers*times+1 {
		t.Errorf("%d instances, generation %d; want %d and one more", a.Spec.Instances, a.Generation, workers*times)
	}
}

func TestOnlyOneCreates(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	vnis := store.Of[resource.VNI](storetest.New(t))
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for i := range 16 {
		wg.Go(func() {
			v := &resource.VNI{Workspace: fmt.Sprint(i)}
			v.Name = "42"
			err := vnis.Create(ctx, v)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case !errors.Is(err, store.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d created it, want 1", won)
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	e := storetest.Start(t)
	apps := store.Of[resource.App](store.New(e.Client))
	var want []string
	for i := range 7 {
		a := app(fmt.Sprintf("acme/web/shop/a%d", i), 1)
		must(t, apps.Create(ctx, a))
		want = append(want, a.Key())
	}
	must(t, apps.Create(ctx, app("acme/web/shop2/x", 1)))
	must(t, apps.Create(ctx, app("acme/web2/shop/x", 1)))

	walk := func(between func()) []string {
		var got []string
		after := ""
		for {
			items, next, err := apps.List(ctx, "acme/web/shop", after, 3)
			must(t, err)
			for _, a := range items {
				got = append(got, a.Key())
			}
			if next == "" {
				return got
			}
			after = next
			if between != nil {
				between()
				between = nil
			}
		}
	}
	if got := walk(nil); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// A walk shows one state, whatever happens meanwhile.
	got := walk(func() { must(t, apps.Create(ctx, app("acme/web/shop/a55", 1))) })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// ... until that state is forgotten.
	got = walk(func() {
		must(t, apps.Create(ctx, app("acme/web/shop/a56", 1)))
		resp, err := e.Client.Get(ctx, "x")
		must(t, err)
		_, err = e.Client.Compact(ctx, resp.Header.Revision)
		must(t, err)
	})
	if len(got) != len(want)+2 {
		t.Errorf("after compaction: %v, want the two new ones in it", got)
	}
	if items, next, err := apps.List(ctx, "acme/web/shop", "acme/web/shop/a4", 0); err != nil || len(items) != 4 || next != "" {
		t.Errorf("behind a4: %d items, next %q, %v; want 4 and no next", len(items), next, err)
	}
	if items, _, err := apps.List(ctx, "acme/web/shop", "acme/zoo", 0); err != nil || len(items) != 0 {
		t.Errorf("behind the range: %d items, %v; want none", len(items), err)
	}
	if items, _, err := apps.List(ctx, "", "", 0); err != nil || len(items) != 11 {
		t.Errorf("all: %d items, %v; want 11", len(items), err)
	}
	if items, _, err := apps.List(ctx, "acme/we", "", 0); err != nil || len(items) != 0 {
		t.Errorf("half a name: %d items, %v; want none", len(items), err)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}
