package api_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

func mustGet[T resource.Object](t *testing.T, kind store.Kind[T], key string) T {
	t.Helper()
	obj, err := kind.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

type (
	acceptedWorkspace = resource.Accepted[*resource.Workspace]
	acceptedApp       = resource.Accepted[*resource.App]
)

func TestWorkspace(t *testing.T) {
	s := newSite(t)
	s.people()
	const fresh = inWeb + "/workspaces/fresh"
	got := s.want(http.StatusAccepted, admin, "PUT", fresh, `{"spec":{"machines":2}}`)
	made := into[acceptedWorkspace](t, got)
	want := resource.WorkspaceSpec{KubernetesVersion: "1.36", Datastore: resource.Kine, Machines: 2, PodSecurity: "baseline",
		MachineSize: resource.Size{MilliCPU: 1000, MemoryBytes: 2 << 30, DiskBytes: 10 << 30}}
	if made.Resource.Spec != want || made.Task == "" || made.Resource.UID == "" || got.header.Get("ETag") != fmt.Sprintf("%q", fmt.Sprint(made.Resource.Revision)) {
		t.Errorf("got %s, ETag %s", got.body, got.header.Get("ETag"))
	}
	task := mustGet(t, store.Of[resource.Task](s.store), resource.TaskKey(made.Task))
	if task.Spec.Operation != "workspace.create" || task.Spec.Target != "acme/web/fresh" || task.Spec.TargetUID != made.Resource.UID || task.Spec.Generation != 1 || task.Spec.By != admin || task.Spec.Account != "acme" {
		t.Errorf("got task %+v", task.Spec)
	}
	// The same again changes nothing and leads to the task that runs.
	again := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "PUT", fresh, `{"spec":{"machines":2}}`))
	if again.Task != made.Task || again.Resource.Revision != made.Resource.Revision {
		t.Errorf("again: got %+v", again)
	}
	// What was got can be sent back.
	all := s.want(http.StatusOK, admin, "GET", fresh, "")
	s.want(http.StatusAccepted, admin, "PUT", fresh, all.body)
	if n := mustGet(t, store.Of[resource.Workspace](s.store), "acme/web/fresh").Revision; n != made.Resource.Revision {
		t.Errorf("revision %d, was %d", n, made.Resource.Revision)
	}
	// Without a running task there is nothing left to do.
	if _, err := store.Of[resource.Task](s.store).Modify(t.Context(), resource.TaskKey(made.Task), func(t *resource.Task) error { t.Status.State = resource.TaskDone; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := into[acceptedWorkspace](t, s.want(http.StatusOK, admin, "PUT", fresh, `{"spec":{"machines":2}}`)); got.Task != "" {
		t.Errorf("got task %s", got.Task)
	}
	s.want(http.StatusPreconditionFailed, admin, "PUT", fresh, `{"spec":{"machines":2}}`, "If-None-Match", "*")

	// Scale.
	scaled := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "PATCH", fresh, `{"spec":{"machines":3}}`, "Content-Type", "application/merge-patch+json", "If-Match", got.header.Get("ETag")))
	if scaled.Resource.Spec.Machines != 3 || scaled.Resource.Generation != 2 {
		t.Errorf("got %+v", scaled.Resource)
	}
	if task := mustGet(t, store.Of[resource.Task](s.store), resource.TaskKey(scaled.Task)); task.Spec.Operation != "workspace.scale" || task.Spec.Generation != 2 {
		t.Errorf("got task %+v", task.Spec)
	}
	s.want(http.StatusPreconditionFailed, admin, "PATCH", fresh, `{"spec":{"machines":4}}`, "If-Match", got.header.Get("ETag"))
	s.want(http.StatusPreconditionFailed, admin, "DELETE", fresh, "", "If-Match", got.header.Get("ETag"))

	// Limits, in the sentence.
	for body, words := range map[string][]string{
		`{"spec":{"machines":-1}}`:                                              {"body.spec.machines"},
		`{"spec":{"machines":10000}}`:                                           {"body.spec.machines", "10000", "100"},
		`{"spec":{"machines":1e400}}`:                                           nil,
		`{"spec":{"machines":1,"kubernetesVersion":"1.2"}}`:                     {"body.spec.kubernetesVersion", `\"1.2\"`, "1.9, 1.36, 1.35"},
		`{"spec":{"machineSize":{"milliCPU":1,"memoryBytes":1,"diskBytes":1}}}`: {"milliCPU", "200", "memoryBytes", "512 MiB", "diskBytes", "4096 MiB"},
		`{"spec":{"machineSize":{"milliCPU":9223372036854775807}}}`:             {"milliCPU"},
		`{"spec":{"datastore":"mongodb"}}`:                                      {"body.spec.datastore"},
		`{"spec":{"podSecurity":"restricted"}}`:                                 {"body.spec.podSecurity"},
		`{"spec":{"machines":"two"}}`:                                           {"body.spec.machines"},
		`{"spec":{"nodes":2}}`:                                                  {"body.spec.nodes"},
		`{"machines":2}`:                                                        {"body.machines"},
		`{"name":"other","spec":{}}`:                                            {"body.name"},
		`[]`:                                                                    nil, `null`: nil, `{`: nil, `{}{}`: nil, `"x"`: nil, ``: nil,
	} {
		got := s.do(admin, "PUT", inWeb+"/workspaces/wrong", body)
		if got.status != http.StatusUnprocessableEntity && got.status != http.StatusBadRequest {
			t.Errorf("%s: got %d %s", body, got.status, got.body)
			continue
		}
		got.problem(t)
		for _, w := range words {
			if !strings.Contains(got.body, w) {
				t.Errorf("%s: %q is missing in %s", body, w, got.body)
			}
		}
	}
	s.want(http.StatusUnprocessableEntity, admin, "PUT", inWeb+"/workspaces/Not_A_Name", `{}`)
	s.want(http.StatusUnprocessableEntity, admin, "PUT", inWeb+"/workspaces/"+strings.Repeat("a", 58), `{}`)
	s.want(http.StatusNotFound, owner, "PUT", inAcme+"/organizations/nothere/workspaces/x", `{}`)
	if _, err := store.Of[resource.Workspace](s.store).Get(t.Context(), "acme/web/wrong"); err == nil {
		t.Error("something half done is left")
	}
	// What can't change says so.
	p := s.want(http.StatusUnprocessableEntity, admin, "PATCH", fresh, `{"spec":{"machineSize":{}}}`)
	if !strings.Contains(p.body, "machineSize") {
		t.Errorf("got %s", p.body)
	}
	s.want(http.StatusUnprocessableEntity, admin, "PUT", fresh, `{"spec":{"machines":3,"datastore":"etcd","kubernetesVersion":"1.35"}}`)
	// Only a sysadmin lifts pod security; then it stays through a tenant's change.
	s.want(http.StatusForbidden, owner, "PATCH", fresh, `{"spec":{"podSecurity":"privileged"}}`)
	s.want(http.StatusForbidden, owner, "PUT", inWeb+"/workspaces/lifted", `{"spec":{"podSecurity":"privileged"}}`)
	s.want(http.StatusAccepted, root, "PATCH", fresh, `{"spec":{"podSecurity":"privileged"}}`)
	s.want(http.StatusAccepted, admin, "PATCH", fresh, `{"spec":{"machines":1}}`)
	s.want(http.StatusAccepted, admin, "PATCH", fresh, `{"spec":{"podSecurity":"baseline"}}`)
	s.want(http.StatusForbidden, admin, "PATCH", fresh, `{"spec":{"podSecurity":"privileged"}}`)
}

func TestDeletion(t *testing.T) {
	s := newSite(t)
	s.people()
	if p := s.want(http.StatusConflict, owner, "DELETE", inWeb, "").problem(t); p.Code != "in-use" || !strings.Contains(p.Detail, "shop") || !strings.Contains(p.Detail, "acme/web/hello") {
		t.Errorf("got %+v", p)
	}
	if p := s.want(http.StatusConflict, owner, "DELETE", inAcme, "").problem(t); p.Code != "in-use" || !strings.Contains(p.Detail, "spare, web") {
		t.Errorf("got %+v", p)
	}
	first := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "DELETE", inShop, ""))
	if first.Resource.DeletedAt == nil || !mustGet(t, store.Of[resource.Task](s.store), resource.TaskKey(first.Task)).Spec.Gone {
		t.Errorf("got %+v", first)
	}
	if !mustGet(t, store.Of[resource.App](s.store), "acme/web/shop/hello").Deleting() {
		t.Error("the app of the workspace stays")
	}
	if again := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "DELETE", inShop, "")); again.Task != first.Task {
		t.Errorf("again: task %s, was %s", again.Task, first.Task)
	}
	// Nothing is made or changed below what goes.
	for _, c := range [][3]string{{"PUT", inShop + "/apps/new", `{"spec":{"image":"hello:1"}}`}, {"PUT", inShop, `{"spec":{"machines":5}}`}, {"PATCH", inShop, `{"spec":{"machines":5}}`},
		{"PATCH", inShop + "/apps/hello", `{"spec":{"instances":5}}`}, {"PUT", inShop + "/namespaces/more", ""}} {
		if p := s.want(http.StatusConflict, admin, c[0], c[1], c[2]).problem(t); p.Code != "deleting" {
			t.Errorf("%v: got %+v", c, p)
		}
	}
	// The controllers have done their work: now the rest can go.
	for _, drop := range []error{
		store.Of[resource.App](s.store).Delete(t.Context(), mustGet(t, store.Of[resource.App](s.store), "acme/web/shop/hello")),
		store.Of[resource.Workspace](s.store).Delete(t.Context(), mustGet(t, store.Of[resource.Workspace](s.store), "acme/web/shop")),
	} {
		if drop != nil {
			t.Fatal(drop)
		}
	}
	s.images.names = nil
	// What the trash holds is somebody's, and is purged first.
	s.want(http.StatusConflict, owner, "DELETE", inWeb, "")
	trash := store.Of[resource.Trash](s.store)
	all, _, err := trash.List(t.Context(), "acme", "", 0)
	for _, in := range all {
		s.want(http.StatusAccepted, owner, "DELETE", inWeb+"/trash/"+in.Name, "")
		in.Revision = 0
		err = errors.Join(err, trash.Delete(t.Context(), in))
	}
	if err != nil || len(all) == 0 {
		t.Fatalf("in the trash are %d, %v", len(all), err)
	}
	s.want(http.StatusNoContent, owner, "DELETE", inWeb, "")
	s.want(http.StatusNoContent, owner, "DELETE", inAcme+"/organizations/spare", "")
	s.want(http.StatusNotFound, dev, "GET", inAcme, "")
	s.want(http.StatusNoContent, owner, "DELETE", inAcme, "")
	s.want(http.StatusNotFound, owner, "GET", inAcme, "")
	if left, _, _ := store.Of[resource.Membership](s.store).List(t.Context(), "acme", "", 0); len(left) != 0 {
		t.Errorf("%d roles are left", len(left))
	}
	// Last owner, last sysadmin.
	s.want(http.StatusConflict, rival, "DELETE", "/v1/accounts/rival/owners/"+rival, "")
	s.want(http.StatusConflict, root, "DELETE", "/v1/users/"+root, "")
	s.want(http.StatusConflict, root, "PATCH", "/v1/users/"+root, `{"spec":{"disabled":true}}`)
	s.want(http.StatusConflict, root, "DELETE", "/v1/users/"+rival, "")
}

// TestRaces: whoever comes at the same moment, everything is whole afterwards.
func TestRaces(t *testing.T) {
	s := newSite(t)
	s.people()
	var wg sync.WaitGroup
	var tasks sync.Map
	for range 16 {
		wg.Go(func() {
			got, err := s.try(s.tokens[admin], "PUT", inWeb+"/workspaces/raced", `{"spec":{"machines":1}}`)
			if err != nil || got.status != http.StatusAccepted {
				t.Errorf("got %d %s, %v", got.status, got.body, err)
				return
			}
			tasks.Store(into[acceptedWorkspace](t, got).Task, true)
		})
	}
	wg.Wait()
	n := 0
	tasks.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d tasks for one workspace", n)
	}
	// Scaling at once: every one is done, none is lost.
	before := mustGet(t, store.Of[resource.Workspace](s.store), "acme/web/raced").Generation
	for i := range 10 {
		wg.Go(func() {
			got, err := s.try(s.tokens[admin], "PATCH", inWeb+"/workspaces/raced", fmt.Sprintf(`{"spec":{"machines":%d}}`, i+10))
			if err != nil || got.status != http.StatusAccepted {
				t.Errorf("got %d %s, %v", got.status, got.body, err)
			}
		})
	}
	wg.Wait()
	if after := mustGet(t, store.Of[resource.Workspace](s.store), "acme/web/raced").Generation; after != before+10 {
		t.Errorf("generation %d, was %d", after, before)
	}
	// Deleting an organization while workspaces are made in it: never is there a
	// workspace without one.
	for round := range 15 {
		org := fmt.Sprintf("%s/organizations/race%d", inAcme, round)
		s.want(http.StatusCreated, owner, "PUT", org, "")
		var made, gone atomic.Bool
		wg.Go(func() {
			got, err := s.try(s.tokens[owner], "PUT", org+"/workspaces/x", `{}`)
			if err != nil || got.status >= 500 {
				t.Errorf("got %d %s, %v", got.status, got.body, err)
			}
			made.Store(got.status == http.StatusAccepted)
		})
		wg.Go(func() {
			got, err := s.try(s.tokens[owner], "DELETE", org, "")
			if err != nil || got.status >= 500 {
				t.Errorf("got %d %s, %v", got.status, got.body, err)
			}
			gone.Store(got.status == http.StatusNoContent)
		})
		wg.Wait()
		if made.Load() == gone.Load() {
			t.Errorf("made %v and gone %v", made.Load(), gone.Load())
		}
	}
}

func TestApp(t *testing.T) {
	s := newSite(t)
	s.people()
	const app = inShop + "/apps/web"
	made := into[acceptedApp](t, s.want(http.StatusAccepted, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:1","instances":2,"env":{"A":"b"}}}`))
	if made.Resource.Spec.Port != 8080 || made.Resource.Spec.Namespace != "default" || made.Task == "" {
		t.Errorf("got %+v", made)
	}
	s.want(http.StatusAccepted, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:1","instances":2,"env":{"A":"b"},"command":[],"namespace":"","release":1}}`)
	if got := mustGet(t, store.Of[resource.App](s.store), "acme/web/shop/web"); got.Generation != 1 {
		t.Errorf("generation %d", got.Generation)
	}
	// Who names the release that runs keeps it; who names none, or an image, deploys.
	for body, want := range map[string]struct {
		method string
		more   int64
	}{
		`{"spec":{"image":"acme/web/hello:1","instances":2,"env":{"A":"b"}}}`:              {"PUT", 1},
		`{"spec":{"image":"acme/web/hello:1","instances":2,"env":{"A":"c"},"release":%d}}`: {"PUT", 0},
		`{"spec":{"image":"acme/web/hello:1","instances":2,"env":{"A":"b"},"release":99}}`: {"PUT", 0},
		`{"spec":{"image":"acme/web/hello:2","instances":2,"env":{"A":"b"},"release":%d}}`: {"PUT", 1},
		`{"spec":{"image":"acme/web/hello:1"}}`:                                            {"PATCH", 1},
		`{"spec":{"instances":4}}`:                                                         {"PATCH", 0},
	} {
		was := mustGet(t, store.Of[resource.App](s.store), "acme/web/shop/web").Spec.Release
		s.want(http.StatusAccepted, dev, want.method, app, strings.ReplaceAll(body, "%d", fmt.Sprint(was)))
		if got := mustGet(t, store.Of[resource.App](s.store), "acme/web/shop/web").Spec.Release; got != was+want.more {
			t.Errorf("%s %s: release %d after %d, want %d more", want.method, body, got, was, want.more)
		}
	}
	scaled := into[acceptedApp](t, s.want(http.StatusAccepted, dev, "PATCH", app, `{"spec":{"instances":3}}`))
	if got := mustGet(t, store.Of[resource.Task](s.store), resource.TaskKey(scaled.Task)); got.Spec.Operation != "app.scale" {
		t.Errorf("got %+v", got.Spec)
	}
	for body, word := range map[string]string{
		`{"spec":{"instances":1}}`:                                                                                                   "image",
		`{"spec":{"image":"Not An Image"}}`:                                                                                          "image",
		`{"spec":{"image":"hello:1\nx"}}`:                                                                                            "image",
		`{"spec":{"image":"hello:1","instances":-1}}`:                                                                                "instances",
		`{"spec":{"image":"hello:1","instances":10000}}`:                                                                             "1000",
		`{"spec":{"image":"hello:1","port":70000}}`:                                                                                  "port",
		`{"spec":{"image":"hello:1","namespace":"kube-system"}}`:                                                                     "kube-",
		`{"spec":{"image":"hello:1","namespace":"No"}}`:                                                                              "namespace",
		`{"spec":{"image":"hello:1","env":{"1x":"y"}}}`:                                                                              "variable",
		`{"spec":{"image":"hello:1","env":{"X":"a\u0000b"}}}`:                                                                        "NUL",
		`{"spec":{"image":"hello:1","env":{"PORT":"8080"}}}`:                                                                         "--port",
		`{"spec":{"image":"hello:1","env":{"PORT":""}}}`:                                                                             "--port",
		`{"spec":{"image":"hello:1","healthPath":"x"}}`:                                                                              "healthPath",
		`{"spec":{"image":"hello:1","instances":2,"volumes":[{"claim":"a","path":"/a"}]}}`:                                           "no claim a",
		`{"spec":{"image":"hello:1","instances":2,"volumes":[{"claim":"data","path":"/a"}]}}`:                                        "one instance",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"a","path":"/a"},{"claim":"a","path":"/b"}]}}`:                               "twice",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"a","path":"/a"},{"claim":"b","path":"/a"}]}}`:                               "two volumes at /a",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"A/b","path":"/a"}]}}`:                                                       "name of a claim",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"a","path":"/"}]}}`:                                                          "a path like /data",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"a","path":"/a/../b"}]}}`:                                                    "a path like /data",
		`{"spec":{"image":"hello:1","volumes":[{"claim":"a","path":"a:b"}]}}`:                                                        "a path like /data",
		`{"spec":{"image":"hello:1","volumes":[` + strings.Repeat(`{"claim":"a","path":"/a"},`, 16) + `{"claim":"a","path":"/a"}]}}`: "16",
		`{"spec":{"image":"hello:1","milliCPU":-5}}`:                                                                                 "milliCPU",
		`{"spec":{"image":"hello:1","tags":["x"]}}`:                                                                                  "tags",
		`{"spec":{"image":"hello:1","env":{"X":"` + strings.Repeat("y", 33<<10) + `"}}}`:                                             "32768",
	} {
		if got := s.want(http.StatusUnprocessableEntity, dev, "PUT", inShop+"/apps/wrong", body); !strings.Contains(got.body, word) {
			t.Errorf("%.60s: %q is missing in %s", body, word, got.body)
		}
	}
	// All that several instances have is shared.
	s.want(http.StatusAccepted, dev, "PUT", inShop+"/apps/many",
		`{"spec":{"image":"acme/web/hello:1","instances":2,"volumes":[{"claim":"files","path":"/files"}]}}`)
	// An app that has a PORT from before that was refused can be changed as ever.
	s.want(http.StatusUnprocessableEntity, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:1","env":{"PORT":""}}}`)
	if _, err := store.Of[resource.App](s.store).Modify(t.Context(), "acme/web/shop/web", func(a *resource.App) error {
		a.Spec.Env = map[string]string{"PORT": "99"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.want(http.StatusAccepted, dev, "PATCH", app, `{"spec":{"instances":2}}`)
	s.want(http.StatusAccepted, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:2","env":{"PORT":"99","A":"b"}}}`)
	s.want(http.StatusUnprocessableEntity, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:2","env":{"PORT":"98"}}}`)
	s.want(http.StatusAccepted, dev, "PUT", app, `{"spec":{"image":"acme/web/hello:2","env":{"A":"b"}}}`)
	s.want(http.StatusRequestEntityTooLarge, dev, "PUT", inShop+"/apps/wrong", `{"spec":{"image":"`+strings.Repeat("y", 200<<10)+`"}}`)
	s.want(http.StatusUnprocessableEntity, dev, "PUT", app, `{"spec":{"image":"hello:1","namespace":"other"}}`)
	s.want(http.StatusNotFound, dev, "PUT", inWeb+"/workspaces/nothere/apps/x", `{"spec":{"image":"hello:1"}}`)
	if _, err := store.Of[resource.App](s.store).Get(t.Context(), "acme/web/shop/wrong"); err == nil {
		t.Error("something half done is left")
	}
}

func TestMembers(t *testing.T) {
	s := newSite(t)
	s.people()
	if p := s.want(http.StatusNotFound, root, "PUT", inWeb+"/members/new@acme.example", `{"role":"developer"}`).problem(t); !strings.Contains(p.Remedy, "users create") {
		t.Errorf("got %+v", p)
	}
	s.want(http.StatusForbidden, admin, "POST", "/v1/users", `{"email":"new@acme.example","password":"`+password+`"}`)
	s.want(http.StatusForbidden, owner, "POST", "/v1/users", `{"email":"new@acme.example","password":"`+password+`","sysadmin":true}`)
	s.want(http.StatusCreated, owner, "POST", "/v1/users", `{"email":"New@acme.example","password":"`+password+`"}`)
	s.want(http.StatusConflict, owner, "POST", "/v1/users", `{"email":"new@acme.example","password":"`+password+`"}`)
	s.want(http.StatusCreated, admin, "PUT", inWeb+"/members/NEW@acme.example", `{"role":"developer"}`)
	s.want(http.StatusOK, admin, "PUT", inWeb+"/members/new@acme.example", `{"role":"developer"}`)
	s.settle("new@acme.example")
	s.want(http.StatusForbidden, "new@acme.example", "PATCH", inShop, `{"spec":{"machines":1}}`)
	s.want(http.StatusOK, admin, "PUT", inWeb+"/members/new@acme.example", `{"role":"admin"}`)
	s.want(http.StatusAccepted, "new@acme.example", "PATCH", inShop, `{"spec":{"machines":1}}`)
	s.want(http.StatusUnprocessableEntity, admin, "PUT", inWeb+"/members/new@acme.example", `{"role":"owner"}`)
	s.want(http.StatusUnprocessableEntity, admin, "PUT", inWeb+"/members/new@acme.example", `{}`)
	list := into[resource.List[*resource.Membership]](t, s.want(http.StatusOK, dev, "GET", inWeb+"/members?limit=2", ""))
	if len(list.Items) != 2 || list.Next == "" || strings.Contains(list.Next, "/") {
		t.Errorf("got %+v", list)
	}
	rest := into[resource.List[*resource.Membership]](t, s.want(http.StatusOK, dev, "GET", inWeb+"/members?limit=2&after="+list.Next, ""))
	if len(rest.Items) != 1 || rest.Next != "" || rest.Items[0].Name != "new@acme.example" {
		t.Errorf("got %+v", rest)
	}
}

// TestTakenOnce takes a role several times at once: one has taken it, and the
// others were told that there was none.
func TestTakenOnce(t *testing.T) {
	s := newSite(t)
	s.people()
	s.want(http.StatusCreated, owner, "POST", "/v1/users", `{"email":"new@acme.example","password":"`+password+`"}`)
	for round := range 10 {
		s.want(http.StatusCreated, admin, "PUT", inWeb+"/members/new@acme.example", `{"role":"developer"}`)
		var wg sync.WaitGroup
		var taken, none atomic.Int64
		for range 8 {
			wg.Go(func() {
				got, err := s.try(s.tokens[admin], "DELETE", inWeb+"/members/new@acme.example", "")
				if err != nil {
					t.Error(err)
				}
				switch got.status {
				case http.StatusNoContent:
					taken.Add(1)
				case http.StatusNotFound:
					none.Add(1)
				}
			})
		}
		wg.Wait()
		if taken.Load() != 1 || none.Load() != 7 {
			t.Errorf("round %d: %d have taken it and %d found none, want 1 and 7", round, taken.Load(), none.Load())
		}
	}
}

func TestRegistration(t *testing.T) {
	body := func(account string) string {
		return `{"account":"` + account + `","email":"ann@new.example","password":"` + password + `"}`
	}
	s := newSite(t)
	s.want(http.StatusCreated, "", "POST", "/v1/register", body("new"))
	s.want(http.StatusOK, "", "POST", "/v1/register", body("new"))
	got := s.want(http.StatusOK, "", "POST", "/v1/login", `{"email":"ann@new.example","password":"`+password+`"}`)
	s.tokens["ann"] = into[resource.LoginResult](t, got).Token
	if who := into[resource.Whoami](t, s.want(http.StatusOK, "ann", "GET", "/v1/session", "")); who.User != "ann@new.example" || len(who.Memberships) != 1 {
		t.Errorf("got %+v", who)
	}
	s.want(http.StatusCreated, "ann", "PUT", "/v1/accounts/new/organizations/web", "")
	s.want(http.StatusUnprocessableEntity, "", "POST", "/v1/register", `{"account":"x"}`)
	// A secret is never repeated, whatever else is wrong.
	if got := s.want(http.StatusUnprocessableEntity, "", "POST", "/v1/register", `{"account":"x","email":"x@y.example","password":"s3cr3t"}`); strings.Contains(got.body, "s3cr3t") {
		t.Errorf("got %s", got.body)
	}
	if got := s.want(http.StatusBadRequest, "", "POST", "/v1/login", `{"email":"x@y.example","password":"s3cr3t",}`); strings.Contains(got.body, "s3cr3t") {
		t.Errorf("got %s", got.body)
	}

	closed := newSite(t, func(c *api.Config) { c.Info.Registration = "sysadmin" })
	closed.people()
	closed.want(http.StatusForbidden, "", "POST", "/v1/register", body("new"))
	closed.want(http.StatusForbidden, owner, "POST", "/v1/register", body("new"))
	closed.want(http.StatusCreated, root, "POST", "/v1/register", body("new"))
}

func TestLoginThrottle(t *testing.T) {
	s := newSite(t)
	s.people()
	var got answer
	for range 12 {
		got = s.do("", "POST", "/v1/login", `{"email":"`+dev+`","password":"wrong password"}`)
	}
	if p := got.problem(t); got.status != http.StatusTooManyRequests || p.Code != "throttled" || got.header.Get("Retry-After") == "" {
		t.Errorf("got %d %+v", got.status, p)
	}
	// Somebody else from there still can.
	s.want(http.StatusOK, "", "POST", "/v1/login", `{"email":"`+admin+`","password":"`+password+`"}`)
}

func TestOutside(t *testing.T) {
	log := &lines{}
	s := newSite(t, func(c *api.Config) {
		c.Log = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.Audit = nil
	})
	s.people()
	s.want(http.StatusNotFound, "", "GET", "/v1/nothing", "")
	got := s.want(http.StatusMethodNotAllowed, "", "DELETE", "/v1/info", "")
	if !strings.Contains(got.header.Get("Allow"), "GET") {
		t.Errorf("Allow: %s", got.header.Get("Allow"))
	}
	s.want(http.StatusUnsupportedMediaType, admin, "PATCH", inShop, `a: b`, "Content-Type", "application/yaml")
	s.want(http.StatusUnprocessableEntity, admin, "GET", inWeb+"/workspaces?limit=0", "")
	s.want(http.StatusUnprocessableEntity, admin, "GET", inWeb+"/workspaces?limit=9999", "")
	s.want(http.StatusUnprocessableEntity, admin, "GET", inWeb+"/workspaces?unknown=1", "")
	s.want(http.StatusUnauthorized, "", "GET", "/v1/session", "", "Authorization", "Basic eDp5")
	s.want(http.StatusUnauthorized, "", "GET", "/v1/session", "", "Authorization", "Bearer mps_nothing")
	s.want(http.StatusOK, "", "POST", "/v1/login", `{"email":"`+dev+`","password":"`+password+`"}`, "Authorization", "Bearer mps_ended")
	for _, path := range []string{"/livez", "/.well-known/openid-configuration", "/v1/oidc/keys"} {
		if got := s.want(http.StatusOK, "", "GET", path, ""); got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: headers %v", path, got.header)
		}
	}
	s.want(http.StatusUnauthorized, "", "GET", "/metrics", "")
	s.want(http.StatusForbidden, owner, "GET", "/metrics", "")
	if got := s.want(http.StatusOK, root, "GET", "/metrics", ""); !strings.Contains(got.body, `multipaas_api_requests_total{operation="login",status="200"} 1`) {
		t.Errorf("got %s", got.body)
	}
	s.clusters.err = resource.ErrNotReady
	if p := s.want(http.StatusConflict, dev, "GET", inShop+"/namespaces", "").problem(t); p.Code != "not-ready" {
		t.Errorf("got %+v", p)
	}
	s.clusters.err = fmt.Errorf("dial 10.1.2.3: secret of the platform")
	if got := s.want(http.StatusInternalServerError, dev, "GET", inShop+"/namespaces", ""); strings.Contains(got.body, "10.1.2.3") {
		t.Errorf("got %s", got.body)
	}
	text := log.String()
	for _, want := range []string{"10.1.2.3", `"msg":"audit"`, `"operation":"login"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	for user, token := range s.tokens {
		if token != "" && strings.Contains(text, token) {
			t.Errorf("the log has the token of %s", user)
		}
	}
	if strings.Contains(text, password) {
		t.Error("the log has a password")
	}
}

func TestAgent(t *testing.T) {
	s := newSite(t)
	get := func(c *http.Client, method, path string) (int, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(data)
	}
	none := s.server.Client()
	node := s.nodeClient("host1", "multipaas:nodes", "multipaas:node-uid:x")
	other := s.nodeClient("host1", "system:masters")
	defer node.CloseIdleConnections()
	defer other.CloseIdleConnections()
	for _, c := range []struct {
		client *http.Client
		method string
		path   string
		want   int
	}{
		{none, "POST", "/v1/agent/join", 200},
		{none, "GET", "/v1/agent/state", 401},
		{node, "GET", "/v1/agent/state", 200},
		{node, "POST", "/v1/agent/join", 200},
		{other, "GET", "/v1/agent/state", 403},
		{s.nodeClient("Not/A/Name", "multipaas:nodes"), "GET", "/v1/agent/state", 403},
		{node, "GET", "/v1/session", 401}, // a node is no user
		{none, "GET", "/v1/agent/join/../state", 401},
	} {
		if got, body := get(c.client, c.method, c.path); got != c.want {
			t.Errorf("%s %s: got %d %s, want %d", c.method, c.path, got, body, c.want)
		}
	}
}

func TestTokens(t *testing.T) {
	s := newSite(t)
	s.people()
	made := into[resource.NewJoinTokenResult](t, s.want(http.StatusCreated, root, "POST", "/v1/tokens", `{}`))
	if life := time.Until(made.ExpiresAt); life < 59*time.Minute || life > time.Hour || !strings.Contains(made.Command, made.Token) {
		t.Errorf("got %+v", made)
	}
	s.want(http.StatusUnprocessableEntity, root, "POST", "/v1/tokens", `{"ttlSeconds":1}`)
	s.want(http.StatusUnprocessableEntity, root, "POST", "/v1/tokens", `{"role":"server"}`)
	if err := s.identity.Redeem(t.Context(), made.Token, "host9", ""); err != nil {
		t.Error(err)
	}
	if list := s.want(http.StatusOK, root, "GET", "/v1/tokens", ""); !strings.Contains(list.body, `"usedBy":"host9"`) || strings.Contains(list.body, strings.Split(made.Token, ".")[1]) {
		t.Errorf("got %s", list.body)
	}
}

// TestEvents follows a task to its end, breaks off and comes back.
func TestEvents(t *testing.T) {
	s := newSite(t)
	s.people()
	made := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "PATCH", inShop, `{"spec":{"machines":3}}`))
	open := func(last string) (*http.Response, *bufio.Scanner) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.server.URL+"/v1/tasks/"+made.Task+"/events", nil)
		req.Header.Set("Authorization", "Bearer "+s.tokens[dev])
		req.Header.Set("Last-Event-ID", last)
		resp, err := s.server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("got %s %s", resp.Status, resp.Header)
		}
		return resp, bufio.NewScanner(resp.Body)
	}
	next := func(lines *bufio.Scanner) (id, data string) {
		for lines.Scan() {
			line := lines.Text()
			switch {
			case strings.HasPrefix(line, "id: "):
				id = line[4:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			case line == "" && data != "":
				return id, data
			}
		}
		return "", ""
	}
	change := func(fn func(*resource.Task)) {
		t.Helper()
		if _, err := store.Of[resource.Task](s.store).Modify(t.Context(), resource.TaskKey(made.Task), func(t *resource.Task) error { fn(t); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	resp, lines := open("")
	if _, data := next(lines); !strings.Contains(data, `"running"`) {
		t.Errorf("got %s", data)
	}
	change(func(t *resource.Task) {
		t.Status.Steps.Set(resource.Condition{Type: "MachinesReady", Status: resource.False, Message: "1 of 3"})
	})
	id, data := next(lines)
	if !strings.Contains(data, "1 of 3") {
		t.Errorf("got %s", data)
	}
	resp.Body.Close()

	resp, lines = open(id)
	defer resp.Body.Close()
	change(func(t *resource.Task) { t.Status.State = resource.TaskDone })
	if _, data = next(lines); !strings.Contains(data, `"done"`) {
		t.Errorf("after coming back: got %s", data)
	}
	if id, data := next(lines); id != "" || data != "" {
		t.Errorf("behind the end: %s %s", id, data)
	}
	s.want(http.StatusNotFound, rival, "GET", "/v1/tasks/"+made.Task+"/events", "")
}

func TestPanicIsAnAnswer(t *testing.T) {
	s := newSite(t, func(c *api.Config) {
		c.Livez = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret of the platform") })
	})
	if got := s.want(http.StatusInternalServerError, "", "GET", "/livez", ""); strings.Contains(got.body, "secret") {
		t.Errorf("got %s", got.body)
	}
}

// TestBrokenBody sends bodies that end early or are in no proper chunks: that is the
// client's fault, and nothing was done.
func TestBrokenBody(t *testing.T) {
	s := newSite(t)
	pool := x509.NewCertPool()
	pool.AddCert(s.server.Certificate())
	for what, rest := range map[string]string{
		"no chunk":          "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
		"a chunk too large": "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
		"cut off":           "Content-Length: 100\r\n\r\n{}",
	} {
		conn, err := tls.Dial("tcp", s.server.Listener.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "example.com"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, "POST /v1/login HTTP/1.1\r\nHost: "+s.server.Listener.Addr().String()+"\r\nContent-Type: application/json\r\n"+rest)
		if err := errors.Join(err, conn.CloseWrite()); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(data), "bad-request") {
			t.Errorf("%s: got %s %s %v, want 400", what, resp.Status, data, err)
		}
		conn.Close()
	}
}
