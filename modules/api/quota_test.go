package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/resource"
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

	refused(admin, "PUT", inWeb+"/workspaces/big", `{"spec":{"machines":4}}`, "Machines: at most 5, in use 2, asked for 4 more", "CPUs: at most 4.5, in use 2", "Memory: at most 10240 MiB, in use 4096 MiB, asked for 8192 MiB")
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
