package api_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// made is a volume of acme/web/shop that its host has made.
func (s *site) made(name string) *resource.Volume {
	s.t.Helper()
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name), Spec: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: 2 << 30},
		Status: resource.VolumeStatus{State: resource.State{Phase: resource.Ready}, Node: "secret-host", NodeUID: "secret-uid", FirstUID: 1 << 28, SizeBytes: 2 << 30}}
	if err := store.Of[resource.Volume](s.store).Create(s.t.Context(), v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// TestTrash: a volume that is deleted is one volume all the time, and comes back as it was.
func TestTrash(t *testing.T) {
	s := newSite(t)
	s.people()
	volumes, trash := store.Of[resource.Volume](s.store), store.Of[resource.Trash](s.store)
	v := s.made("db")
	said := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusOK, dev, "DELETE", inShop+"/volumes/db", ""))
	name := said.Resource.Status.Trash
	if name != "db-"+v.UID[:8] || said.Task != "" || !said.Resource.Deleting() {
		t.Errorf("the answer is %+v", said)
	}
	if _, err := volumes.Get(t.Context(), v.Key()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the volume is there still: %v", err)
	}
	got := into[resource.Trash](t, s.want(http.StatusOK, dev, "GET", inWeb+"/trash/"+name, ""))
	if got.UID != v.UID || got.Spec.Volume != "db" || got.Spec.Workspace != "shop" || got.Spec.Was != v.Spec || got.Status.Node != "" ||
		time.Until(got.Spec.Until) < resource.TrashLife-time.Minute {
		t.Errorf("in the trash it is %+v", got)
	}
	if asked := got.Asks(); asked != v.Asks() {
		t.Errorf("it counts as %+v, and was %+v", asked, v.Asks())
	}
	// Of an organization with trash it is said what keeps it.
	if p := s.want(http.StatusConflict, owner, "DELETE", inWeb, "").problem(t); !strings.Contains(p.Detail, name) {
		t.Errorf("the organization goes with its trash: %+v", p)
	}
	refused := func(status int, body string, says string) {
		t.Helper()
		if got := s.want(status, dev, "POST", inWeb+"/trash/"+name+"/restore", body); !strings.Contains(got.body, says) {
			t.Errorf("%s: %q is missing in %s", body, says, got.body)
		}
	}
	refused(404, `{"workspace":"none"}`, `no workspace \"none\" in the organization`)
	refused(409, `{"volume":"data"}`, "--as NAME")
	refused(422, `{"volume":"pvc-1"}`, "were made for claims")
	refused(422, `{"volume":"A"}`, "not a valid name")

	back := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "POST", inWeb+"/trash/"+name+"/restore", `{"volume":"old"}`))
	now := mustGet(t, volumes, inShopKey+"old")
	if now.UID != v.UID || now.Status.NodeUID != "secret-uid" || now.Status.FirstUID != 1<<28 || now.Status.SizeBytes != 2<<30 || now.Spec != v.Spec ||
		now.Status.Conditions.Is(resource.VolumeReady) || back.Task == "" {
		t.Errorf("it came back as %+v, task %q", now, back.Task)
	}
	if _, err := trash.Get(t.Context(), "acme/web/"+name); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is in the trash still: %v", err)
	}
	// Purged, it is marked, as one of which nothing was ever made.
	never := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "never"), Spec: v.Spec}
	if err := volumes.Create(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	for path, key := range map[string]string{"/volumes/old?purge=true": "old", "/volumes/never": "never"} {
		if got := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusAccepted, dev, "DELETE", inShop+path, "")); got.Task == "" || got.Resource.Status.Trash != "" {
			t.Errorf("%s: %+v", path, got)
		}
		if v := mustGet(t, volumes, inShopKey+key); !v.Deleting() {
			t.Errorf("%s is not being deleted", key)
		}
	}
	// What is being purged doesn't come back; nor does what its host has taken along.
	s.want(http.StatusAccepted, dev, "DELETE", inWeb+"/trash/old-1", "")
	name = "old-1"
	refused(409, `{}`, "is being deleted")
	lost := s.made("lost")
	said = into[resource.Accepted[resource.Volume]](t, s.want(http.StatusOK, dev, "DELETE", inShop+"/volumes/lost", ""))
	name = said.Resource.Status.Trash
	if _, err := trash.Modify(t.Context(), "acme/web/"+name, func(t *resource.Trash) error {
		t.Status.Conditions.Set(resource.Condition{Type: resource.VolumeKept, Status: resource.False, Final: true, Message: "the host is gone"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	refused(409, `{}`, "The host is gone.")
	if lost.UID == v.UID {
		t.Error("two volumes have one UID")
	}
}

// TestTrashOfShared: a shared volume goes to the trash and comes back as GlusterFS has it, and its hosts are not for tenants.
func TestTrashOfShared(t *testing.T) {
	s := newSite(t)
	s.people()
	volumes := store.Of[resource.Volume](s.store)
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "share"), Spec: resource.VolumeSpec{Class: resource.SharedVolume, SizeBytes: 2 << 30}}
	v.Status.SizeBytes, v.Status.Bricks = 2<<30, []resource.VolumeBrick{{UID: "b1", Node: "secret-host", NodeUID: "secret-uid"}}
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.True})
	if err := volumes.Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	copied := *v
	copied.Meta = resource.Meta{Name: "copied"}
	if err := volumes.Create(t.Context(), &copied); err != nil {
		t.Fatal(err)
	}
	if got := s.want(http.StatusConflict, dev, "DELETE", inShop+"/volumes/copied", ""); !strings.Contains(got.body, "being made from it") {
		t.Errorf("it is refused by %s", got.body)
	}
	said := into[resource.Accepted[resource.Volume]](t, s.want(http.StatusOK, dev, "DELETE", inShop+"/volumes/share", ""))
	got := s.want(http.StatusOK, dev, "GET", inWeb+"/trash/"+said.Resource.Status.Trash, "")
	if in := into[resource.Trash](t, got); in.UID != v.UID || in.Asks() != v.Asks() || !in.Status.Conditions.Is(resource.VolumeServed) ||
		in.Status.Conditions.Get(resource.VolumeReady) != nil || strings.Contains(got.body, "secret") {
		t.Errorf("in the trash it is %s", got.body)
	}
	s.want(http.StatusAccepted, dev, "POST", inWeb+"/trash/"+said.Resource.Status.Trash+"/restore", `{"volume":"back"}`)
	now := mustGet(t, volumes, inShopKey+"back")
	if now.UID != v.UID || !now.CreatedAt.Equal(v.CreatedAt) || len(now.Status.Bricks) != 1 || !now.Status.Conditions.Is(resource.VolumeServed) || now.Status.Conditions.Is(resource.VolumeReady) {
		t.Errorf("it came back as %+v", now)
	}
}

// TestWorkspaceLeavesTrash: what is in volumes outlives their workspace, unless that is asked for.
func TestWorkspaceLeavesTrash(t *testing.T) {
	for _, purge := range []bool{false, true} {
		s := newSite(t)
		s.people()
		path := inShop
		if purge {
			path += "?purgeVolumes=true"
		}
		v := s.made("db")
		if _, err := store.Of[resource.Volume](s.store).Modify(t.Context(), v.Key(), func(v *resource.Volume) error { v.Spec.Claim = "default/db"; return nil }); err != nil {
			t.Fatal(err)
		}
		s.want(http.StatusAccepted, admin, "DELETE", path, "")
		now, err := store.Of[resource.Volume](s.store).Get(t.Context(), v.Key())
		kept, err2 := store.Of[resource.Trash](s.store).Get(t.Context(), "acme/web/db-"+v.UID[:8])
		switch {
		case purge && (err != nil || !now.Deleting() || err2 == nil):
			t.Errorf("purged: %+v, %v, in the trash %+v", now, err, kept)
		case !purge && (err == nil || err2 != nil || kept.Spec.WorkspaceUID != "uid-acme" || kept.Spec.Was.Claim != "default/db"):
			t.Errorf("kept: %+v, %v, volume %+v", kept, err2, now)
		}
	}
}
