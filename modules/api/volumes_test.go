package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// TestVolumesRefuse: what can't be is refused in words, and what holds a volume is named
// with the way to let go.
func TestVolumesRefuse(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Limits = resource.Limits{Volumes: 5, VolumeBytes: 5 << 30} })
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
	refused(422, "PUT", "db", sized(1<<48+1), "is too large")
	refused(422, "PUT", "db", sized(-1))
	refused(422, "PUT", "db", `{"spec":{}}`)
	refused(422, "PUT", "db", `{"spec":{"class":"gold","sizeBytes":1073741824}}`)
	refused(422, "PUT", "db", `{"spec":{"sizeBytes":1073741824,"replicas":3}}`, "class local has one copy")
	refused(422, "PUT", "db", `{"spec":{"class":"shared","sizeBytes":1073741824,"replicas":2}}`, "split brain")
	refused(422, "PUT", "pvc-1", sized(1<<30), "were made for claims")
	refused(409, "PUT", "db", `{"spec":{"sizeBytes":1073741824,"encrypted":true}}`, "can't be made")
	refused(409, "PUT", "db", sized(4<<30), "Storage: at most 5Gi, in use 2Gi, asked for 4Gi more")

	// Sizes are whole MiB; who writes says neither claim nor status.
	got := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "PUT", path+"db",
		`{"spec":{"sizeBytes":1073741825,"claim":"default/mine"},"status":{"node":"host1","phase":"Ready"}}`))
	if v := got.Resource; v.Spec != (resource.VolumeSpec{Class: "local", SizeBytes: 1<<30 + 1<<20}) || v.Status.Phase != resource.Pending || got.Task == "" {
		t.Errorf("made %+v, %+v, task %q", v.Spec, v.Status, got.Task)
	}
	refused(422, "PATCH", "db", sized(1<<30), "less than the volume has, 1025Mi: it can't shrink")
	refused(409, "PATCH", "db", sized(4<<30), "Storage: at most 5Gi")
	refused(404, "PATCH", "none", sized(1<<30))
	refused(422, "PUT", "db", `{"spec":{"sizeBytes":1074790400,"encrypted":true}}`, "body.spec.encrypted", "can't be changed")
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
	refused(409, "DELETE", "db", "", "The claim staging/files has the volume. It is in use in namespace staging by: writer-1, writer-2.",
		"mp volumes unbind db")
	change("db", func(v *resource.Volume) { v.Spec.Claim = "" })
	first := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "DELETE", path+"db", ""))
	again := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "DELETE", path+"db", ""))
	if first.Task == "" || first.Task != again.Task {
		t.Errorf("deleted twice: tasks %q, %q", first.Task, again.Task)
	}
	refused(409, "PATCH", "db", sized(3<<30), "is being deleted")
}

// TestVolumesSayWhereTheyAre: to a sysadmin, not to a tenant.
func TestVolumesSayWhereTheyAre(t *testing.T) {
	s := newSite(t)
	s.people()
	for user, host := range map[string]string{dev: "", root: "secret-host"} {
		one := into[resource.Volume](t, s.want(http.StatusOK, user, "GET", inShop+"/volumes/data", ""))
		list := into[resource.List[resource.Volume]](t, s.want(http.StatusOK, user, "GET", inShop+"/volumes", ""))
		for _, v := range append(list.Items, one) {
			if v.Status.Node != host || (v.Status.NodeUID != "") != (host != "") {
				t.Errorf("%s sees host %q (%s)", user, v.Status.Node, v.Status.NodeUID)
			}
		}
	}
}

// TestBind: which claim has a volume is written while something of it may be in the
// cluster, and no longer.
func TestBind(t *testing.T) {
	s := newSite(t)
	s.people()
	const path = inShop + "/volumes/data/claim"
	claim := func(want string) {
		t.Helper()
		if v := mustGet(t, store.Of[resource.Volume](s.store), inShopKey+"data"); v.Spec.Claim != want {
			t.Errorf("claim is %q, want %q", v.Spec.Claim, want)
		}
	}
	refused := func(status int, method, body string, says ...string) {
		t.Helper()
		got := s.want(status, dev, method, path, body)
		for _, say := range says {
			if !strings.Contains(got.body, say) {
				t.Errorf("%s %s: %q is missing in %s", method, body, say, got.body)
			}
		}
	}
	// The cluster says no: nothing is left. It doesn't answer: the claim stays.
	s.clusters.claimsErr = &access.Refusal{Reason: access.ErrDenied, Text: "The cluster refuses it: not yours."}
	refused(403, "PUT", `{"namespace":"secret"}`, "The cluster refuses it: not yours")
	claim("")
	s.clusters.claimsErr = fmt.Errorf("%w: connection refused", resource.ErrNotReady)
	s.want(409, dev, "PUT", path, `{}`)
	claim("default/data")
	s.clusters.claimsErr = nil
	s.clusters.bindErr = &access.Refusal{Reason: access.ErrDenied, Text: "The cluster refuses it: a quota is full since."}
	refused(403, "PUT", `{}`, "a quota is full since", "mp volumes unbind data")
	claim("default/data")
	s.clusters.bindErr = nil
	got := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "PUT", path, `{}`)) // the same again
	if got.Task == "" || got.Resource.Spec.Claim != "default/data" {
		t.Errorf("bound: %+v", got)
	}
	refused(409, "PUT", `{"claim":"other"}`, "The claim default/data has the volume", "mp volumes unbind data")
	s.want(http.StatusConflict, dev, "DELETE", inShop+"/volumes/data", "")

	s.clusters.claimsErr = &access.Refusal{Reason: access.ErrExists, Text: "The claim is in use by pod a in namespace default."}
	refused(409, "DELETE", "", "in use by pod a")
	claim("default/data")
	s.clusters.claimsErr = nil
	if _, err := store.Of[resource.Volume](s.store).Modify(t.Context(), inShopKey+"data", func(v *resource.Volume) error {
		v.Spec.Provisioned = true // for the claim that a person takes it from
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.want(http.StatusOK, admin, "DELETE", path, "")
	claim("")
	if mustGet(t, store.Of[resource.Volume](s.store), inShopKey+"data").Spec.Provisioned {
		t.Error("it would still go with a claim")
	}
	s.want(http.StatusOK, admin, "DELETE", path, "") // there is nothing to do
	if want := []string{"multipaas:" + dev + " multipaas:org-developer", "multipaas:" + admin + " multipaas:org-admin"}; s.clusters.users[0] != want[0] || s.clusters.users[len(s.clusters.users)-1] != want[1] {
		t.Errorf("it was done as %v", s.clusters.users)
	}

	// One that isn't ready can't be had yet, and says why.
	is := func(phase resource.Phase, c resource.Condition) {
		t.Helper()
		if _, err := store.Of[resource.Volume](s.store).Modify(t.Context(), inShopKey+"data", func(v *resource.Volume) error {
			v.Status.Phase = phase
			v.Status.Conditions.Set(c)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	is(resource.Pending, resource.Condition{Type: resource.VolumePlaced, Status: resource.False, Message: "no host has room"})
	refused(409, "PUT", `{}`, "not there yet: no host has room")
	// One that has a copy missing can, as long as it is read and written.
	is(resource.Degraded, resource.Condition{Type: resource.VolumePlaced, Status: resource.True})
	is(resource.Degraded, resource.Condition{Type: resource.VolumeReady, Status: resource.False, Message: "two of three copies are missing"})
	refused(409, "PUT", `{}`, "not there yet: two of three copies are missing")
	is(resource.Degraded, resource.Condition{Type: resource.VolumeReady, Status: resource.True})
	s.want(http.StatusAccepted, dev, "PUT", path, `{}`)
	claim("default/data")
	s.want(http.StatusOK, dev, "DELETE", path, "")
	claim("")

	// Nor does it grow beyond what its host has.
	refused = func(status int, method, body string, says ...string) {
		t.Helper()
		if got := s.want(status, dev, method, inShop+"/volumes/data", body); !strings.Contains(got.body, says[0]) {
			t.Errorf("%q is missing in %s", says[0], got.body)
		}
	}
	refused(409, "PATCH", `{"spec":{"sizeBytes":214748364800}}`, "its host is full")
	refused(202, "PATCH", `{"spec":{"sizeBytes":21474836480}}`, `"sizeBytes":21474836480`)

	// Of a claim that is there, one that asks for less is content.
	s.want(http.StatusOK, dev, "PUT", inShop+"/namespaces/default/claims/data", `{"spec":{"sizeBytes":1073741824}}`)
	s.want(http.StatusConflict, dev, "PUT", inShop+"/namespaces/default/claims/data", `{"spec":{"sizeBytes":1073741825}}`)
	s.want(http.StatusPreconditionFailed, dev, "PUT", inShop+"/namespaces/default/claims/data", `{"spec":{"sizeBytes":1}}`, "If-None-Match", "*")
}

// TestNodesKeepVolumes: a node with volumes is removed only if it is given up.
func TestNodesKeepVolumes(t *testing.T) {
	s := newSite(t)
	s.people()
	host := mustGet(t, store.Of[resource.Node](s.store), "host1")
	for i := range 6 {
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", fmt.Sprint("v", i)),
			Status: resource.VolumeStatus{Node: host.Name, NodeUID: host.UID}}
		if err := store.Of[resource.Volume](s.store).Create(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	got := s.want(http.StatusConflict, root, "DELETE", "/v1/nodes/host1", "").problem(t)
	if !strings.Contains(got.Detail, "6 volumes and snapshots are on node host1, among them acme/web/shop/v0,") || strings.Contains(got.Detail, "v5") ||
		!strings.Contains(got.Remedy, "mp nodes remove host1 --lost") {
		t.Errorf("got %+v", got)
	}
	s.want(http.StatusAccepted, root, "DELETE", "/v1/nodes/host1?lost=true", "")
	s.want(http.StatusAccepted, root, "DELETE", "/v1/nodes/host1", "") // it is on its way
}

const inShopKey = "acme/web/shop/"

// TestSourceStays: what a volume is made from is the same after a change that does not speak of it.
func TestSourceStays(t *testing.T) {
	was := &resource.Volume{Spec: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: resource.MinVolumeBytes,
		Source: &resource.VolumeSource{Volume: "db", UID: "its"}}}
	now := *was // as a change begins
	now.Spec.SizeBytes *= 2
	api.CompleteVolume(&now, was)
	if now.Spec.Source == nil || now.Spec.Source.UID != "its" || was.Spec.Source.UID != "its" {
		t.Errorf("it is made from %+v, was from %+v", now.Spec.Source, was.Spec.Source)
	}
	now = *was
	now.Spec.Source = &resource.VolumeSource{Volume: "db", UID: "another's"}
	api.CompleteVolume(&now, was)
	if now.Spec.Source.UID != "its" {
		t.Errorf("a caller says that it is made from %+v", now.Spec.Source)
	}
}
