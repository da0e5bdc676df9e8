package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

func TestLimits(t *testing.T) {
	s := newSite(t, func(c *api.Config) {
		c.Limits = resource.Limits{Organizations: 3, Workspaces: 3, Machines: 5, Apps: 3, MilliCPU: 4500, MemoryBytes: 10 << 30, DiskBytes: 50 << 30}
	})
	s.people() // acme has 2 organizations, workspace shop with 2 machines of 1 CPU, 2 GiB and 10 GiB, an app
	refused := func(who, method, path, body string, words ...string) {
		t.Helper()
		got := s.want(http.StatusConflict, who, method, path, body)
		if p := got.problem(t); p.Code != "limit" || !strings.Contains(p.Remedy, "mp accounts set") {
			t.Errorf("%s %s: got %+v", method, path, p)
		}
		for _, w := range words {
			if !strings.Contains(got.body, w) {
				t.Errorf("%s %s: %q is missing in %s", method, path, w, got.body)
			}
		}
	}
	s.want(http.StatusCreated, owner, "PUT", inAcme+"/organizations/third", "")
	refused(owner, "PUT", inAcme+"/organizations/fourth", "", "at most 3, in use 3, asked for 1 more")
	s.want(http.StatusOK, owner, "PUT", inAcme+"/organizations/third", "") // what is there stays

	refused(admin, "PUT", inWeb+"/workspaces/big", `{"spec":{"machines":4}}`, "Machines: at most 5, in use 2, asked for 4 more", "CPUs: at most 4.5, in use 2", "Memory: at most 10Gi, in use 4Gi, asked for 8Gi")
	s.want(http.StatusAccepted, admin, "PUT", inWeb+"/workspaces/two", `{"spec":{"machines":1}}`)
	s.want(http.StatusAccepted, admin, "PUT", inWeb+"/workspaces/three", `{"spec":{"machines":0}}`)
	refused(admin, "PUT", inWeb+"/workspaces/four", `{"spec":{"machines":0}}`, "Workspaces: at most 3")
	refused(admin, "PATCH", inWeb+"/workspaces/two", `{"spec":{"machines":3}}`, "asked for 2 more")
	s.want(http.StatusAccepted, admin, "PATCH", inWeb+"/workspaces/two", `{"spec":{"machines":2}}`)
	s.want(http.StatusAccepted, admin, "PATCH", inWeb+"/workspaces/two", `{"spec":{"machines":0}}`) // less is always possible
	for i := range 2 {
		s.want(http.StatusAccepted, dev, "PUT", fmt.Sprintf("%s/workspaces/shop/apps/a%d", inWeb, i), `{"spec":{"image":"hello:1"}}`)
	}
	refused(dev, "PUT", inWeb+"/workspaces/shop/apps/a9", `{"spec":{"image":"hello:1"}}`, "Apps: at most 3")

	// Another account has its own, and only a sysadmin raises one.
	s.want(http.StatusAccepted, rival, "PUT", "/v1/accounts/rival/organizations/web/workspaces/two", `{"spec":{"machines":1}}`)
	s.want(http.StatusForbidden, owner, "PATCH", inAcme, `{"spec":{"limits":{"workspaces":100}}}`)
	s.want(http.StatusOK, root, "PATCH", inAcme, `{"spec":{"limits":{"workspaces":4}}}`)
	s.want(http.StatusAccepted, admin, "PUT", inWeb+"/workspaces/four", `{"spec":{"machines":0}}`)
	s.want(http.StatusOK, root, "PATCH", inAcme, `{"spec":{"limits":{"workspaces":0}}}`) // back to the platform's
	refused(admin, "PUT", inWeb+"/workspaces/five", `{"spec":{"machines":0}}`, "at most 3, in use 4")
}

func TestPatchOfLimits(t *testing.T) {
	s := newSite(t)
	s.people()
	for _, d := range resource.Dimensions() {
		s.want(http.StatusOK, root, "PATCH", inAcme, fmt.Sprintf(`{"spec":{"limits":{%q:7}}}`, d.Name))
		s.want(http.StatusOK, root, "PATCH", inAcme, fmt.Sprintf(`{"spec":{"limits":{%q:8}}}`, strings.ToUpper(d.Name)))
	}
	for _, body := range []string{`{}`, `{"spec":{}}`, `{"spec":{"limits":{}}}`, `{"spec":{"limits":null}}`, `{"spec":{"limits":{"apps":null}}}`} { // what is left out stays
		got := into[resource.Account](t, s.want(http.StatusOK, root, "PATCH", inAcme, body))
		for _, d := range resource.Dimensions() {
			if n := *d.Of(&got.Spec.Limits); n != 8 {
				t.Errorf("%s: got %d, want 8", d.Name, n)
			}
		}
	}
	for _, limits := range []string{`[]`, `5`, `{"castles":1}`, `{"apps":-1}`, `{"apps":1.5}`, `{"apps":"1"}`, `{"apps":1e30}`} {
		s.want(http.StatusUnprocessableEntity, root, "PATCH", inAcme, `{"spec":{"limits":`+limits+`}}`)
	}
}

func TestLimitsHoldWhenAllAskAtOnce(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Limits = resource.Limits{Apps: 4} })
	s.people()
	var all sync.WaitGroup
	made := make([]int, 16)
	for i := range made {
		all.Go(func() {
			made[i] = s.do(dev, "PUT", fmt.Sprintf("%s/workspaces/shop/apps/race%d", inWeb, i), `{"spec":{"image":"hello:1"}}`).status
		})
	}
	all.Wait()
	accepted := 0
	for _, status := range made {
		switch status {
		case http.StatusAccepted:
			accepted++
		case http.StatusConflict:
		default:
			t.Errorf("got %d", status)
		}
	}
	if accepted != 3 { // hello is there
		t.Errorf("accepted %d apps where 3 were left", accepted)
	}
}

// TestUsersOfAccounts makes users whom accounts have room for, and others.
func TestUsersOfAccounts(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Limits = resource.Limits{Users: 2} })
	s.people()
	user := func(name, account string) string {
		return fmt.Sprintf(`{"email":%q,"password":%q,"account":%q}`, name, password, account)
	}
	const path = "/v1/users"
	s.want(http.StatusCreated, owner, "POST", path, user("one@acme.example", "")) // he owns one account
	if p := s.want(http.StatusConflict, owner, "POST", path, user("one@acme.example", "")).problem(t); p.Code == "limit" {
		t.Errorf("got %+v", p)
	}
	s.want(http.StatusCreated, owner, "POST", path, user("two@acme.example", "acme"))
	for _, who := range []string{owner, root} {
		got := s.want(http.StatusConflict, who, "POST", path, user("three@acme.example", "acme"))
		if p := got.problem(t); p.Code != "limit" || !strings.Contains(p.Detail, "Users: at most 2, in use 2, asked for 1 more") {
			t.Errorf("%s: %+v", who, p)
		}
	}
	s.want(http.StatusCreated, root, "POST", path, user("three@acme.example", "")) // of the platform: as many as there are
	s.want(http.StatusNoContent, root, "DELETE", path+"/one@acme.example", "")
	s.want(http.StatusNoContent, root, "DELETE", path+"/three@acme.example", "")
	s.want(http.StatusCreated, owner, "POST", path, user("four@acme.example", "acme"))
	s.want(http.StatusConflict, owner, "POST", path, user("five@acme.example", "acme"))

	// An account of somebody else's looks like none, and nobody makes a user count in
	// one that he did not name.
	for _, account := range []string{"rival", "nowhere", "No Name"} {
		s.want(http.StatusNotFound, owner, "POST", path, user("six@acme.example", account))
	}
	s.want(http.StatusCreated, root, "PUT", inAcme+"/owners/"+rival, "")
	if p := s.want(http.StatusUnprocessableEntity, rival, "POST", path, user("five@rival.example", "")).problem(t); !strings.Contains(fmt.Sprint(p.Errors), "acme, rival") {
		t.Errorf("%+v", p)
	}
	s.want(http.StatusConflict, rival, "POST", path, user("five@rival.example", "acme"))
	s.want(http.StatusCreated, rival, "POST", path, user("five@rival.example", "rival"))
	if got := s.want(http.StatusOK, root, "GET", path+"/five@rival.example", "").body; !strings.Contains(got, `"account":"rival"`) {
		t.Errorf("the user counts elsewhere: %s", got)
	}

	// The users of an account that is gone do not count in the next of that name.
	users := func(want int64) {
		t.Helper()
		if account, err := store.Of[resource.Account](s.store).Get(t.Context(), "acme"); err != nil || account.Users != want {
			t.Errorf("got %+v, %v, want %d users", account, err, want)
		}
	}
	users(2)
	for _, op := range []store.Op{store.Of[resource.Account](s.store).DeleteOp(&resource.Account{Meta: resource.Meta{Name: "acme"}}), store.Of[resource.Account](s.store).CreateOp(&resource.Account{Meta: resource.Meta{Name: "acme"}})} {
		if err := s.store.Commit(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	s.want(http.StatusNoContent, root, "DELETE", path+"/two@acme.example", "")
	users(0)

	// All at once: the second grant decides, and it counts.
	var all sync.WaitGroup
	made := make([]int, 8)
	for i := range made {
		all.Go(func() {
			made[i] = s.do(owner, "POST", path, user(fmt.Sprintf("race%d@acme.example", i), "acme")).status
		})
	}
	all.Wait()
	slices.Sort(made)
	if want := append([]int{201, 201}, slices.Repeat([]int{409}, 6)...); !slices.Equal(made, want) {
		t.Errorf("got %v", made)
	}
	users(2)
}
