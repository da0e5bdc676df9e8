package store_test

import (
	"errors"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// TestReserve: when only the reserve is left, nothing new is made but by who has it,
// and what is there can be changed and deleted.
func TestReserve(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := storetest.New(t)
	apps := store.Of[resource.App](st)
	there, gone := app("acme/web/shop/there", 1), app("acme/web/shop/gone", 1)
	must(t, st.Commit(ctx, apps.CreateOp(there), apps.CreateOp(gone)))
	st.Tighten(true)
	fresh := app("acme/web/shop/fresh", 1)
	for what, err := range map[string]error{
		"create":                 apps.Create(ctx, fresh),
		"create beside a change": st.Commit(ctx, apps.MarkDeletedOp(gone.Key()), apps.CreateOp(fresh)),
	} {
		if !errors.Is(err, store.ErrFull) {
			t.Errorf("%s: got %v, want ErrFull", what, err)
		}
	}
	if fresh.UID != "" || fresh.Generation != 0 {
		t.Errorf("what was refused is changed: %+v", fresh.Meta)
	}
	there.Spec.Instances = 2
	must(t, apps.Update(ctx, there))
	must(t, apps.Delete(ctx, gone))
	if err := apps.Create(ctx, gone); !errors.Is(err, store.ErrFull) {
		t.Errorf("made again after it was deleted: got %v, want ErrFull", err)
	}
	must(t, apps.Create(store.WithReserve(ctx), fresh))
	st.Tighten(false)
	gone.UID = ""
	must(t, apps.Create(ctx, gone))
}
