package attack

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// patientFor is how long the short form waits for a token to expire, and no longer:
// the join token has a minute. Those of workspaces and of the registry have expired
// when all other parts were run before.
const patientFor = 75 * time.Second

// aging are tokens that were good when the suite began.
type aging struct {
	asker    *asker
	planeB   plane
	registry string
	join     string
	// Until when each is good, and by how much clocks may differ.
	planeEnd, registryEnd, joinEnd time.Time
}

// beginToAge takes one token of each kind, with the shortest life that there is, and
// sees that it is good.
func (s *suite) beginToAge(t *testing.T) *aging {
	t.Helper()
	a := s.people(t)
	old := &aging{asker: a, planeB: s.plane(t, a, ownerB, "acme/web/shop")}
	end := func(token string) time.Time {
		j, err := parseJWT(token)
		exp, ok := j.claims["exp"].(float64)
		if err != nil || !ok {
			t.Fatalf("a token without an end: %v, %v", j.claims, err)
		}
		return time.Unix(int64(exp), 0)
	}
	old.planeEnd = end(old.planeB.token)
	old.registry = s.pullToken(t, a)
	old.registryEnd = end(old.registry).Add(30 * time.Second)
	r := dctest.Run(t, []string{"MP_CONFIG=" + s.Dir + "/mp-" + datacenter.Admin}, "", s.Binary, "token", "create", "--role", "node", "--ttl", "1m", "-o", "json")
	var made struct {
		Token     string
		ExpiresAt time.Time
	}
	if err := json.Unmarshal([]byte(r.Out), &made); err != nil || made.Token == "" {
		t.Fatal(r)
	}
	old.join, old.joinEnd = made.Token, made.ExpiresAt
	return old
}

// pullToken is a token of B's to pull B's image.
func (s *suite) pullToken(t *testing.T, a *asker) string {
	t.Helper()
	q := url.Values{"scope": {"repository:acme/web/tool:pull"}}
	got := a.bearer(t, "", http.MethodGet, "https://"+s.RegistryAddress()+"/token?"+q.Encode(), "", "Authorization", "Basic "+basic(ownerB, a.word(t, "owner-password")))
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(got.body), &made); err != nil || made.Token == "" {
		t.Fatal(got)
	}
	return made.Token
}

// testExpiry uses tokens that were good once, after their time. No clock is set
// for that: they have grown old while the other parts ran.
func testExpiry(t *testing.T, s *suite) {
	old := s.old
	a := old.asker
	// is waits for the end of one, if that is near; false: it is still good.
	is := func(what string, end time.Time) bool {
		rest := time.Until(end) + time.Second
		if rest > patientFor && !long() {
			t.Logf("%s is good for another %s, which the short form does not wait for", what, rest.Round(time.Second))
			return false
		}
		if rest > 0 {
			time.Sleep(rest) // until a time of day: there is no event for it
		}
		return true
	}
	record := func(what string, end time.Time, got answer, statuses ...int) {
		s.record(t, attempt{What: "use " + what + ", " + time.Since(end).Round(time.Second).String() + " after its end", From: "outside", Want: fmt.Sprint(statuses), Got: got.String(), Blocked: got.refused(statuses...)})
	}
	good := func(what string, got answer, want int) bool {
		var err error
		if got.status != want {
			err = errors.New(got.String())
		}
		return s.control(t, what, err)
	}

	join := func(name, token string) answer {
		csr, _ := request(t, name)
		body, err := json.Marshal(map[string]any{"name": name, "token": token, "csr": csr})
		if err != nil {
			t.Fatal(err)
		}
		return a.ask(t, "", http.MethodPost, "/v1/agent/join", string(body))
	}
	if is("the join token", old.joinEnd) {
		fresh := good("a machine joins by a token that is not old", join("young", s.Token(t).Token), http.StatusOK)
		admin := a.admin(t)
		for _, step := range [][2]string{{http.MethodPatch, `{"spec":{"lost":true}}`}, {http.MethodDelete, ""}} {
			if got := a.bearer(t, admin, step[0], s.URL()+"/v1/nodes/young", step[1]); fresh && got.status >= 300 {
				t.Errorf("remove the node: %s", got)
			}
		}
		if fresh {
			record("a join token", old.joinEnd, join("aged", old.join), http.StatusConflict, http.StatusForbidden, http.StatusUnauthorized, http.StatusGone)
		}
	}

	if is("the registry's token", old.registryEnd) {
		pull := func(token, path string) answer {
			return a.bearer(t, token, http.MethodGet, "https://"+s.RegistryAddress()+"/v2/"+path, "", "Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		}
		if good("B pulls by a token that is not old", pull(s.pullToken(t, a), "acme/web/tool/manifests/1"), http.StatusOK) {
			for _, path := range []string{"acme/web/tool/manifests/1", "acme/web/tool/tags/list", ""} {
				record("B's token for the registry at /v2/"+path, old.registryEnd, pull(old.registry, path), http.StatusUnauthorized)
			}
			got := a.bearer(t, "", http.MethodGet, "https://"+s.RegistryAddress()+"/token?scope=repository:acme/web/tool:pull", "", "Authorization",
				"Basic "+base64.StdEncoding.EncodeToString([]byte(ownerB+":"+old.registry)))
			record("B's token for the registry as a password", old.registryEnd, got, http.StatusUnauthorized, http.StatusTooManyRequests)
		}
	}

	if is("the token for B's plane", old.planeEnd) {
		young := s.plane(t, a, ownerB, "acme/web/shop")
		const pods = "/api/v1/namespaces/default/pods"
		if good("B's plane answers a token that is not old", a.plane(t, young, young.token, http.MethodGet, pods, ""), http.StatusOK) {
			for _, path := range []string{pods, "/apis", "/api/v1/namespaces/default/secrets"} {
				record("B's token for its plane at "+path, old.planeEnd, a.plane(t, young, old.planeB.token, http.MethodGet, path, ""), http.StatusUnauthorized)
			}
		}
	}
}
