package api_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestEachHasHisShare: who asks without end is told to wait, and others go on.
func TestEachHasHisShare(t *testing.T) {
	s := newSite(t)
	s.people()
	const atOnce = 50
	s.api.Share(2, atOnce)
	flood := func(user, method, path, body string, header ...string) (refused answer, first int) {
		t.Helper()
		const many = 1000
		for n := range many {
			switch got := s.do(user, method, path, body, header...); got.status {
			case http.StatusTooManyRequests:
				return got, n
			default:
				if n == many-1 {
					t.Fatalf("%s %s as %q was never refused: %d %s", method, path, user, got.status, got.body)
				}
			}
		}
		return answer{}, 0
	}
	check := func(got answer, words string) {
		t.Helper()
		p := got.problem(t)
		seconds, err := strconv.Atoi(got.header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 5 || p.Code != "throttled" || !strings.Contains(p.Detail, words) || !strings.Contains(p.Remedy, "Wait") {
			t.Errorf("Retry-After %q, %s", got.header.Get("Retry-After"), got.body)
		}
	}
	// One of acme's asks for what he may not even see: his own share.
	refused, n := flood(dev, "GET", "/v1/accounts/rival/organizations", "")
	check(refused, "You ask the platform too often.")
	if n < atOnce {
		t.Errorf("refused after %d requests, want %d at once", n, atOnce)
	}
	asked := s.api.Authentications()
	for range 100 {
		s.do(dev, "GET", "/v1/session", "")
	}
	if n := asked.Load(); n > 50 { // two a second are his
		t.Errorf("100 requests too many have cost %d reads of who asks", n)
	}
	s.want(http.StatusOK, owner, "GET", "/v1/accounts/acme/organizations", "")
	s.want(http.StatusOK, rival, "GET", "/v1/accounts/rival/organizations", "")
	// Nobody known, with and without a token that is none.
	refused, _ = flood("", "GET", "/v1/session", "", "Authorization", "Bearer mps_nothing")
	check(refused, "from your address")
	if got := s.do("", "GET", "/v1/openapi.json", ""); got.status != http.StatusTooManyRequests {
		t.Errorf("the same one asks for something else: got %d", got.status)
	}
	s.want(http.StatusOK, owner, "GET", "/v1/session", "")
	// A sysadmin is never refused.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range atOnce {
				if got, err := s.try(s.tokens[root], "GET", "/v1/session", ""); err != nil || got.status != http.StatusOK {
					t.Errorf("the sysadmin: %d %s %v", got.status, got.body, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestStreamsAreCounted: one who follows more than he may at once is refused, and one
// stream that ends makes room for another.
func TestStreamsAreCounted(t *testing.T) {
	s := newSite(t)
	s.people()
	made := into[acceptedWorkspace](t, s.want(http.StatusAccepted, admin, "PUT", inWeb+"/workspaces/followed", `{"spec":{"machines":1}}`))
	open := func(user string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.server.URL+"/v1/tasks/"+made.Task+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.tokens[user])
		resp, err := s.server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	var streams []*http.Response
	for {
		resp := open(admin)
		if resp.StatusCode == http.StatusTooManyRequests {
			break
		}
		if streams = append(streams, resp); len(streams) > 200 {
			t.Fatal("never refused")
		}
	}
	if resp := open(owner); resp.StatusCode != http.StatusOK {
		t.Errorf("another user's stream: %s", resp.Status)
	}
	streams[0].Body.Close()
	wait.For(t, wait.Patience, "there is room again", func(context.Context) error {
		if resp := open(admin); resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}
