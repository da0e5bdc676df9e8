package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// namesInBodies names B's things in the bodies of what A may do with A's own: in
// every field of the bodies that could name somebody else's.
func (a *asker) namesInBodies(t *testing.T, marks []string) {
	const own = "/v1/accounts/beta/organizations/ops/workspaces/box"
	const ofB = "/v1/accounts/acme/organizations/web/workspaces/shop"
	theirs := a.object(t, ownerB, ofB)
	// Identity is all of a resource that says whose it is.
	identity := func(path string) string {
		o := a.object(t, ownerA, path)
		status, _ := o["status"].(map[string]any)
		return fmt.Sprint(o["name"], o["account"], o["organization"], o["workspace"], o["uid"], status["id"], status["apiHost"], status["server"])
	}
	as := func(path string, change map[string]any) string {
		o := a.object(t, ownerA, path)
		for _, read := range []string{"revision", "generation", "createdAt"} {
			delete(o, read)
		}
		for field, value := range change {
			o[field] = value
		}
		data, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	const organization = "/v1/accounts/beta/organizations/ops"
	for what, path := range map[string]string{"workspaces.put": own, "organizations.put": organization} {
		for field, change := range map[string]map[string]any{
			"account": {"account": "acme"}, "organization": {"organization": "web"}, "name": {"name": "shop"}, "uid": {"uid": theirs["uid"]}, "status": {"status": theirs["status"]},
			"all of them": {"account": "acme", "organization": "web", "name": "shop", "uid": theirs["uid"], "status": theirs["status"]},
		} {
			before := identity(path)
			got := a.ask(t, ownerA, http.MethodPut, path, as(path, change))
			after := identity(path)
			a.s.record(t, attempt{What: what + " of A's own with B's " + field, From: ownerA, Want: "refused, or A's own stays A's", Got: got.String(),
				Blocked: before == after && got.status < 500 && !containsAny(got.body, marks)})
		}
	}

	// Apps, which have images and host names.
	hello, _ := a.object(t, ownerB, ofB+"/apps/hello")["status"].(map[string]any)
	digest, _ := hello["imageDigest"].(string)
	if !strings.HasPrefix(digest, "sha256:") {
		t.Fatalf("B's app has the image %q", digest)
	}
	// Apps are asked for side by side, and go together in the end.
	var asked sync.WaitGroup
	places := make(chan struct{}, 4)
	var names []string
	app := func(name, body string, then func(got answer, state string, ran bool)) {
		path := own + "/apps/" + name
		names = append(names, name)
		places <- struct{}{}
		asked.Go(func() {
			defer func() { <-places }()
			got := a.ask(t, ownerA, http.MethodPut, path, body)
			if got.status >= 400 {
				then(got, "", false)
				return
			}
			state, ran := "", false
			err := wait.Until(t.Context(), wait.Patience, "app "+name+" is decided", func(context.Context) error {
				state = a.ask(t, ownerA, http.MethodGet, path, "").body
				var app struct {
					Status struct {
						Phase          string
						InstancesReady int
					}
				}
				if err := json.Unmarshal([]byte(state), &app); err != nil {
					return err
				}
				ran = app.Status.InstancesReady > 0 // were it that its route has no certificate yet
				if !ran && app.Status.Phase != "Failed" {
					return errors.New(state)
				}
				return nil
			})
			a.ask(t, ownerA, http.MethodDelete, path, "")
			if a.s.control(t, "the platform takes up an app of A's", err) {
				then(got, state, ran)
			}
		})
	}
	var err error
	app("plain", `{"spec":{"image":"tool:1","instances":1}}`, func(got answer, state string, ran bool) {
		if !ran {
			err = fmt.Errorf("%s; %s", got, state)
		}
	})
	asked.Wait()
	if !a.s.control(t, "an app of A's own image is ready", err) {
		return
	}
	images := append(a.s.registryNames(), "digest", strings.TrimPrefix(digest, "sha256:"))
	for i, image := range rows[apiRows](t, "api.yaml", images...).Images {
		body, _ := json.Marshal(map[string]any{"spec": map[string]any{"image": image, "instances": 1}})
		app(fmt.Sprintf("thief-%d", i), string(body), func(got answer, state string, ran bool) {
			a.s.record(t, attempt{What: fmt.Sprintf("an app of A's with the image %q", image), From: ownerA, Want: "refused: there is no such image of A's", Got: got.String() + " " + state,
				Blocked: !ran && got.status < 500 && !containsAny(got.body+state, marks)})
		})
	}
	const hostB = "hello.shop.web.acme.paas.internal"
	for field, part := range map[string]string{"account": `"account":"acme"`, "organization": `"organization":"web"`, "workspace": `"workspace":"shop"`, "name": `"name":"hello"`,
		"all of them": `"name":"hello","account":"acme","organization":"web","workspace":"shop"`, "host": `"status":{"host":"` + hostB + `","url":"https://` + hostB + `"}`} {
		name := "whose-" + strings.ReplaceAll(field, " ", "-")
		app(name, `{`+part+`,"spec":{"image":"tool:1","instances":1}}`, func(got answer, state string, ran bool) {
			mine := !ran || strings.Contains(state, name+".box.ops.beta.paas.internal") && !strings.Contains(state, hostB)
			a.s.record(t, attempt{What: "an app of A's with B's " + field, From: ownerA, Want: "refused, or it is A's", Got: got.String() + " " + state, Blocked: mine && got.status < 500 && !containsAny(got.body+state, marks)})
		})
	}
	asked.Wait()
	for _, name := range names {
		wait.For(t, wait.Patience, "app "+name+" is gone", func(context.Context) error {
			if r := a.ask(t, ownerA, http.MethodGet, own+"/apps/"+name, ""); r.status != http.StatusNotFound {
				return errors.New(r.String())
			}
			return nil
		})
	}
	// Who A's app answers to is told by the balancer.
	var all []answer
	for range 5 {
		if all, err = a.raw(t, "443", hostB, "GET / HTTP/1.1\r\nHost: "+hostB+"\r\nConnection: close\r\n\r\n"); err == nil && len(all) > 0 && all[0].status < 500 {
			break
		}
	}
	a.s.record(t, attempt{What: "have B's host name answered by an app of A's", From: ownerA, Want: "B's app answers", Got: fmt.Sprint(all, err),
		Blocked: err == nil && len(all) == 1 && all[0].status == http.StatusOK && all[0].header.Get("X-Instance") != ""})

	// People, who are the platform's and not an account's.
	for what, r := range map[string][2]string{
		"users.create with B's address":               {"/v1/users", `{"email":"` + ownerB + `","password":"correct horse battery","account":"beta"}`},
		"users.create with B's address in capitals":   {"/v1/users", `{"email":"` + strings.ToUpper(ownerB) + `","password":"correct horse battery","account":"beta"}`},
		"users.create with B's address and a space":   {"/v1/users", `{"email":"` + ownerB + ` ","password":"correct horse battery","account":"beta"}`},
		"users.create as a sysadmin":                  {"/v1/users", `{"email":"planted2@beta.example","password":"correct horse battery","account":"beta","sysadmin":true}`},
		"register with B's account":                   {"/v1/register", `{"account":"acme","email":"planted3@beta.example","password":"correct horse battery"}`},
		"register with B's address":                   {"/v1/register", `{"account":"planted","email":"` + ownerB + `","password":"correct horse battery"}`},
		"login as B with A's password":                {"/v1/login", `{"email":"` + ownerB + `","password":"` + a.word(t, "password") + `"}`},
		"login as B with B's address twice in a body": {"/v1/login", `{"email":"` + ownerA + `","email":"` + ownerB + `","password":"` + a.word(t, "password") + `"}`},
	} {
		got := a.ask(t, ownerA, http.MethodPost, r[0], r[1])
		var login struct{ User string }
		_ = json.Unmarshal([]byte(got.body), &login)
		a.s.record(t, attempt{What: what, From: ownerA, Want: "4xx, or nothing of B's", Got: got.String(),
			Blocked: got.status >= 400 && got.status < 500 || r[0] == "/v1/login" && got.status == http.StatusOK && login.User == ownerA})
	}
}

// object reads a resource.
func (a *asker) object(t *testing.T, who, path string) map[string]any {
	t.Helper()
	got := a.ask(t, who, http.MethodGet, path, "")
	var o map[string]any
	if err := json.Unmarshal([]byte(got.body), &o); err != nil || got.status != http.StatusOK {
		t.Fatalf("GET %s: %s", path, got)
	}
	return o
}
