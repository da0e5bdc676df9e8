package store_test

import (
	"maps"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

func TestClear(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := storetest.New(t)
	apps, machines, orgs := store.Of[resource.App](s), store.Of[resource.Machine](s), store.Of[resource.Organization](s)
	shop := marked(t, store.Of[resource.Workspace](s), newShop())
	acme := marked(t, store.Of[resource.Account](s), newAcme())
	must(t, apps.Create(ctx, app("acme/web/shop/hello", 1)))
	must(t, apps.Create(ctx, app("acme/web/shop2/hello", 1)))
	must(t, machines.Create(ctx, &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}))
	clear := func(place resource.Object, want map[string]int) {
		t.Helper()
		left, err := s.Clear(ctx, place)
		must(t, err)
		if !maps.Equal(left, want) {
			t.Errorf("%s: %v are left, want %v", place.Key(), left, want)
		}
	}
	for range 2 { // a controller has an app to take away until it has done so
		clear(shop, map[string]int{"apps": 1})
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
	clear(shop, nil)

	must(t, orgs.Create(ctx, &resource.Organization{InAccount: resource.NewInAccount("acme", "web")}))
	clear(acme, nil) // nobody works for one: it is gone
	if left, _, err := orgs.List(ctx, "acme", "", 0); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A call that was held up finds another place of the same name, or one whose
// deletion nobody asked for: it leaves alone what stands there.
func TestClearIsOfOnePlace(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := storetest.New(t)
	workspaces, apps := store.Of[resource.Workspace](s), store.Of[resource.App](s)
	accounts, orgs := store.Of[resource.Account](s), store.Of[resource.Organization](s)

	shop, acme := newShop(), newAcme()
	must(t, workspaces.Create(ctx, shop))
	must(t, accounts.Create(ctx, acme))
	must(t, apps.Create(ctx, app("acme/web/shop/hello", 1)))
	must(t, orgs.Create(ctx, &resource.Organization{InAccount: resource.NewInAccount("acme", "web")}))
	untouched := func(when string) {
		t.Helper()
		for _, place := range []resource.Object{shop, acme} {
			if left, err := s.Clear(ctx, place); err != nil || len(left) != 0 {
				t.Errorf("%s: %v are left of %s, %v", when, left, place.Key(), err)
			}
		}
		if a, err := apps.Get(ctx, "acme/web/shop/hello"); err != nil || a.Deleting() {
			t.Errorf("%s: the app: %+v, %v", when, a, err)
		}
		if _, err := orgs.Get(ctx, "acme/web"); err != nil {
			t.Errorf("%s: the organization: %v", when, err)
		}
	}
	untouched("nobody asked")
	must(t, workspaces.Delete(ctx, shop))
	must(t, accounts.Delete(ctx, acme))
	untouched("they are gone")
	must(t, workspaces.Create(ctx, newShop()))
	must(t, accounts.Create(ctx, newAcme()))
	untouched("they were made anew")
	_, err := workspaces.MarkDeleted(ctx, shop.Key())
	must(t, err)
	_, err = accounts.MarkDeleted(ctx, acme.Key())
	must(t, err)
	untouched("those are marked too")
}

func newShop() *resource.Workspace {
	return &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
}

func newAcme() *resource.Account { return &resource.Account{Meta: resource.Meta{Name: "acme"}} }

// marked makes a place that is being deleted.
func marked[T resource.Object](t *testing.T, kind store.Kind[T], place T) T {
	t.Helper()
	must(t, kind.Create(t.Context(), place))
	place, err := kind.MarkDeleted(t.Context(), place.Key())
	must(t, err)
	return place
}

// TestClearKeeps: volumes that hold something go into the trash with their workspace, as one, unless that says otherwise.
func TestClearKeeps(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := storetest.New(t)
	volumes, trash := store.Of[resource.Volume](s), store.Of[resource.Trash](s)
	volume := func(workspace, name string, size int64) *resource.Volume {
		t.Helper()
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace(workspace, name), Spec: resource.VolumeSpec{Class: "local", SizeBytes: 1 << 30}}
		v.Status.SizeBytes = size
		must(t, volumes.Create(ctx, v))
		return v
	}
	shop := marked(t, store.Of[resource.Workspace](s), newShop())
	made := volume(shop.Key(), "made", 1<<30)
	volume(shop.Key(), "new", 0)
	left, err := s.Clear(ctx, shop)
	must(t, err)
	if !maps.Equal(left, map[string]int{"volumes": 1}) {
		t.Errorf("%v are left", left)
	}
	all, _, err := trash.List(ctx, "", "", 0)
	must(t, err)
	if len(all) != 1 || all[0].UID != made.UID || all[0].Was().Key() != made.Key() {
		t.Errorf("in the trash are %+v", all)
	}
	if _, err := volumes.Get(ctx, made.Key()); err == nil {
		t.Error("it is a volume still")
	}

	other := newShop()
	other.Name, other.Status.PurgeVolumes = "other", true
	other = marked(t, store.Of[resource.Workspace](s), other)
	purged := volume(other.Key(), "made", 1<<30)
	_, err = s.Clear(ctx, other)
	must(t, err)
	if v, err := volumes.Get(ctx, purged.Key()); err != nil || !v.Deleting() {
		t.Errorf("purged: %+v, %v", v, err)
	}
}
