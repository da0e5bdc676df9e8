package store_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// TestSurvey finds what of a workspace that is gone was left, of every kind that
// workspaces have, and removes it only while the workspace is not there.
func TestSurvey(t *testing.T) {
	ctx, s := t.Context(), storetest.New(t)
	create := func(obj resource.Object) {
		t.Helper()
		for _, k := range resource.Kinds() {
			if k.Name == obj.Kind() {
				if err := store.Any(s, k).Create(ctx, obj); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	workspace := func(name string, vni uint32) *resource.Workspace {
		w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", name)}
		w.Status.VNI, w.Status.UserRange = vni, 7000
		return w
	}
	create(workspace("shop", 4096))
	create(&resource.VNI{Meta: resource.Meta{Name: "4096"}, Workspace: "acme/web/shop"})
	create(&resource.VNI{Meta: resource.Meta{Name: "5000"}, Workspace: "acme/web/gone"})
	create(&resource.VNI{Meta: resource.Meta{Name: "6000"}, Workspace: "acme/web/gone", Retired: true, Lost: map[string]string{"1": "n1"}})
	create(&resource.VNI{Meta: resource.Meta{Name: "7000"}, Workspace: "acme/web/shop"})
	create(&resource.WorkspaceKeys{Meta: resource.Meta{Name: "keys"}, Workspace: "acme/web/shop"})
	create(&resource.WorkspaceKeys{Meta: resource.Meta{Name: "keys"}, Workspace: "acme/web/gone"})
	create(&resource.Account{Meta: resource.Meta{Name: "acme"}})
	wantStrays := []string{"/multipaas/vnis/5000", "/multipaas/workspacekeys/acme/web/gone"}
	counts := map[string]int64{"workspaces": 1, "vnis": 4, "workspacekeys": 2, "accounts": 1}
	for _, k := range resource.Kinds() {
		if k.Scope != resource.OfWorkspace {
			continue
		}
		for _, of := range []string{"shop", "gone"} {
			obj := k.New()
			if err := json.Unmarshal([]byte(`{"name":"x","account":"acme","organization":"web","workspace":"`+of+`"}`), obj); err != nil {
				t.Fatal(err)
			}
			create(obj)
			counts[k.Name]++
		}
		wantStrays = append(wantStrays, "/multipaas/"+k.Name+"/acme/web/gone/x")
	}
	slices.Sort(wantStrays)

	v, err := s.Survey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var strays []string
	for _, x := range v.Strays {
		strays = append(strays, x.Path)
	}
	slices.Sort(strays)
	if !slices.Equal(strays, wantStrays) {
		t.Errorf("got %q\nwant %q", strays, wantStrays)
	}
	for kind, n := range counts {
		if v.Counts[kind] != n {
			t.Errorf("%s: counted %d, want %d", kind, v.Counts[kind], n)
		}
	}

	create(workspace("gone", 5000)) // again: its things are not strays any more
	for _, x := range v.Strays {
		err := s.RemoveStray(ctx, x)
		if removed := err == nil; removed != (x.Path == "/multipaas/vnis/5000") {
			t.Errorf("remove %s: %v", x.Path, err)
		}
	}
}
