package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// TestVolumesRefuse: what can't be is refused in words, and what holds a volume is named
// with the way to let go.
func TestVolumesRefuse(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Limits = resource.Limits{Volumes: 4, VolumeBytes: 4 << 30} })
	s.people()
	volumes := store.Of[resource.Volume](s.store)
	const path = inShop + "/volumes/"
	refused := func(status int, method, name, body string, says ...string) {
		t.Helper()
		got := s.want(status, dev, method, path+name, body)
		for _, say := range says {
			if !strings.Contains(got.body, say) {
				t.Errorf("%s %s %s: %q is missing in %s", method, name, body, say, got.body)
			}
		}
	}
	sized := func(n int64) string { return fmt.Sprintf(`{"spec":{"sizeBytes":%d}}`, n) }

	refused(422, "PUT", "db", sized(299<<20), "299Mi is too small: a volume has at least 300Mi")
	refused(422, "PUT", "db", sized(1<<50+1), "is too large")
	refused(422, "PUT", "db", sized(-1))
	refused(422, "PUT", "db", `{"spec":{}}`)
	refused(422, "PUT", "db", `{"spec":{"class":"shared","sizeBytes":1073741824}}`)
	refused(422, "PUT", "pvc-1", sized(1<<30), "were made for claims")
	refused(409, "PUT", "db", sized(4<<30), "Storage: at most 4Gi, in use 1Gi, asked for 4Gi more")

	// Sizes are whole MiB; who writes says neither claim nor status.
	got := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "PUT", path+"db",
		`{"spec":{"sizeBytes":1073741825,"claim":"default/mine"},"status":{"node":"host1","phase":"Ready"}}`))
	if v := got.Resource; v.Spec != (resource.VolumeSpec{Class: "local", SizeBytes: 1<<30 + 1<<20}) || v.Status.Phase != resource.Pending || got.Task == "" {
		t.Errorf("made %+v, %+v, task %q", v.Spec, v.Status, got.Task)
	}
	refused(422, "PATCH", "db", sized(1<<30), "less than the volume has, 1025Mi: it can't shrink")
	refused(409, "PATCH", "db", sized(4<<30), "Storage: at most 4Gi")
	refused(404, "PATCH", "none", sized(1<<30))
	s.want(http.StatusAccepted, dev, "PATCH", path+"db", sized(2<<30))
	was := mustGet(t, volumes, inShopKey+"db")
	s.want(http.StatusAccepted, dev, "PUT", path+"db", sized(2<<30), "If-Match", "*") // the task goes on
	if now := mustGet(t, volumes, inShopKey+"db"); now.Revision != was.Revision {
		t.Error("the same again is a change")
	}

	// A claim has it, and says how large it is.
	change := func(name string, change func(*resource.Volume)) {
		t.Helper()
		if _, err := volumes.Modify(t.Context(), inShopKey+name, func(v *resource.Volume) error { change(v); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	change("db", func(v *resource.Volume) { v.Spec.Claim = "staging/files" })
	refused(409, "PATCH", "db", sized(3<<30), "The claim staging/files has the volume", "kubectl -n staging edit pvc files")
	refused(409, "DELETE", "db", "", "The claim staging/files has the volume", "kubectl -n staging delete pvc files")
	change("db", func(v *resource.Volume) {
		v.Status.Attachments = []resource.VolumeAttachment{{Machine: "shop-2", MachineUID: "2"}, {Machine: "shop-1", MachineUID: "1", Attached: true}}
	})
	refused(409, "DELETE", "db", "", "in use on shop-1, shop-2", "Delete the pods")
	change("db", func(v *resource.Volume) { v.Spec.Claim, v.Status.Attachments = "", nil })
	first := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "DELETE", path+"db", ""))
	again := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "DELETE", path+"db", ""))
	if first.Task == "" || first.Task != again.Task {
		t.Errorf("deleted twice: tasks %q, %q", first.Task, again.Task)
	}
	refused(409, "PATCH", "db", sized(3<<30), "is being deleted")
}

// TestVolumesSayWhereTheyAre: to a tenant, which machines of his are near; to a sysadmin,
// the host.
func TestVolumesSayWhereTheyAre(t *testing.T) {
	s := newSite(t)
	s.people()
	other := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-2"), Spec: resource.MachineSpec{Node: "another"}}
	if err := store.Of[resource.Machine](s.store).Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for user, host := range map[string]string{dev: "", root: "secret-host"} {
		one := into[resource.Volume](t, s.want(http.StatusOK, user, "GET", inShop+"/volumes/data", ""))
		list := into[resource.List[resource.Volume]](t, s.want(http.StatusOK, user, "GET", inShop+"/volumes", ""))
		for _, v := range append(list.Items, one) {
			if v.Status.Node != host || len(v.Status.Near) != 1 || v.Status.Near[0] != "shop-1" {
				t.Errorf("%s sees host %q, near %v", user, v.Status.Node, v.Status.Near)
			}
		}
	}
	if v := mustGet(t, store.Of[resource.Volume](s.store), inShopKey+"data"); v.Status.Near != nil {
		t.Errorf("stored: near %v", v.Status.Near)
	}
}

const inShopKey = "acme/web/shop/"
