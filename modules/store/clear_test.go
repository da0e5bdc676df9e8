package store_test

import (
	"maps"
	"testing"

	"github.com/multipaas/multipaas/modules/internal/storetest"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

func TestClear(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := storetest.New(t)
	apps, machines, orgs := store.Of[resource.App](s), store.Of[resource.Machine](s), store.Of[resource.Organization](s)
	must(t, apps.Create(ctx, app("acme/web/shop/hello", 1)))
	must(t, apps.Create(ctx, app("acme/web/shop2/hello", 1)))
	must(t, machines.Create(ctx, &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}))
	clear := func(scope resource.Scope, place string, want map[string]int) {
		t.Helper()
		left, err := s.Clear(ctx, scope, place)
		must(t, err)
		if !maps.Equal(left, want) {
			t.Errorf("%s: %v are left, want %v", place, left, want)
		}
	}
	for range 2 { // a controller has an app to take away until it has done so
		clear(resource.OfWorkspace, "acme/web/shop", map[string]int{"apps": 1})
	}
	for key, want := range map[string]bool{"acme/web/shop/hello": true, "acme/web/shop2/hello": false} {
		a, err := apps.Get(ctx, key)
		must(t, err)
		if a.Deleting() != want {
			t.Errorf("%s is being deleted: %v, want %v", key, a.Deleting(), want)
		}
	}
	if m, err := machines.Get(ctx, "acme/web/shop/shop-1"); err != nil || m.Deleting() {
		t.Errorf("a machine is the workspace's own: %+v, %v", m, err)
	}
	must(t, apps.Delete(ctx, app("acme/web/shop/hello", 1)))
	clear(resource.OfWorkspace, "acme/web/shop", nil)

	must(t, orgs.Create(ctx, &resource.Organization{InAccount: resource.NewInAccount("acme", "web")}))
	clear(resource.OfAccount, "acme", nil) // nobody works for one: it is gone
	if left, _, _, err := orgs.List(ctx, "acme", "", 0); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
