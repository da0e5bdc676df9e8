package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
)

// asker sends requests to the platform from outside, as people who logged in.
type asker struct {
	s      *suite
	client *http.Client
	tokens map[string]string // by e-mail address; "" is who has not logged in
}

// answer is what came back.
type answer struct {
	status int
	body   string
	header http.Header
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// refused says that the answer is one of the refusals.
func (a answer) refused(statuses ...int) bool {
	for _, s := range statuses {
		if a.status == s {
			return true
		}
	}
	return false
}

// The cast, and B's people.
const (
	ownerA = "owner@beta.example"
	devA   = "dev@beta.example"
	ownerB = "owner@acme.example"
	devB   = "dev@acme.example"
)

// people logs the cast in. A's developer is made here.
func (s *suite) people(t *testing.T) *asker {
	t.Helper()
	s.Make(t, dctest.Rival, "rival-dev", devA, "users", "create", devA)
	s.Must(t, dctest.Rival, "org", "users", "add", "ops", devA)
	a := &asker{s: s, client: s.Client(), tokens: map[string]string{"": ""}}
	a.client.Timeout = 2 * time.Minute
	for who, file := range map[string]string{ownerA: "password", devA: "password", ownerB: "owner-password", devB: "password"} {
		a.tokens[who] = a.login(t, who, a.word(t, file))
	}
	return a
}

func (a *asker) word(t *testing.T, file string) string {
	t.Helper()
	word, err := os.ReadFile(filepath.Join(a.s.Dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(word))
}

func (a *asker) login(t *testing.T, who, word string) string {
	t.Helper()
	body, err := json.Marshal(map[string]string{"email": who, "password": word})
	if err != nil {
		t.Fatal(err)
	}
	got := a.ask(t, "", http.MethodPost, "/v1/login", string(body))
	var result struct{ Token string }
	if err := json.Unmarshal([]byte(got.body), &result); err != nil || result.Token == "" {
		t.Fatalf("log %s in: %s", who, got)
	}
	return result.Token
}

// settle logs in with a password that somebody else chose, and sets another.
func (a *asker) settle(t *testing.T, who, first, own string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"oldPassword": first, "newPassword": own})
	if err != nil {
		t.Fatal(err)
	}
	if got := a.bearer(t, a.login(t, who, first), http.MethodPut, a.s.URL()+"/v1/session/password", string(body)); got.status != http.StatusNoContent {
		t.Fatalf("%s sets a password: %s", who, got)
	}
}

// ask sends one request to the API; headers are pairs.
func (a *asker) ask(t *testing.T, who, method, path, body string, headers ...string) answer {
	t.Helper()
	return a.bearer(t, a.tokens[who], method, a.s.URL()+path, body, headers...)
}

// bearer is ask with any token and address; without an answer its status is 0. What
// changes nothing when it is asked twice is asked again then.
func (a *asker) bearer(t *testing.T, token, method, address, body string, headers ...string) (got answer) {
	t.Helper()
	for range 3 {
		got = a.once(t, token, method, address, body, headers...)
		if got.status != 0 || method != http.MethodGet && method != http.MethodHead && method != http.MethodDelete {
			break
		}
	}
	return got
}

func (a *asker) once(t *testing.T, token, method, address, body string, headers ...string) answer {
	return a.onceWith(t.Context(), token, method, address, body, headers...)
}

func (a *asker) onceWith(ctx context.Context, token, method, address, body string, headers ...string) answer {
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return answer{body: err.Error()}
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{resp.StatusCode, string(data), resp.Header}
}

// raw writes bytes to a port of the server, over TLS with a server name, and
// returns every answer that came until the server closed or fell silent.
func (a *asker) raw(t *testing.T, port, serverName, request string) ([]answer, error) {
	t.Helper()
	conf := &tls.Config{RootCAs: a.s.Pool, ServerName: serverName, NextProtos: []string{"http/1.1"}}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", net.JoinHostPort(a.s.Server.Address().String(), port), conf)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	var all []answer
	r := bufio.NewReader(conn)
	for len(all) < 4 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return all, nil // closed, or nothing more came
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		all = append(all, answer{resp.StatusCode, string(body), resp.Header})
		if err != nil || resp.Close {
			return all, nil
		}
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	}
	return all, nil
}

// marks are words that only B's things have in them.
func (a *asker) marks(t *testing.T) []string {
	t.Helper()
	got := a.ask(t, ownerB, http.MethodGet, "/v1/accounts/acme/organizations/web/workspaces/shop", "")
	var ws struct {
		UID    string
		Status struct{ ID, APIHost string }
	}
	if err := json.Unmarshal([]byte(got.body), &ws); err != nil || ws.UID == "" || ws.Status.ID == "" {
		t.Fatalf("B's workspace: %s", got)
	}
	return []string{ws.UID, ws.Status.ID, ws.Status.APIHost}
}

// plain is a JSON answer without what differs each time, for comparison, and
// with a quoted name for another.
func plain(body, name string) string {
	var v any
	if json.Unmarshal([]byte(body), &v) == nil {
		drop(v, "requestId")
		data, _ := json.Marshal(v)
		body = string(data)
	}
	return strings.ReplaceAll(body, `\"`+name+`\"`, "NAME")
}

// drop removes fields wherever they are.
func drop(v any, names ...string) {
	switch v := v.(type) {
	case map[string]any:
		for _, n := range names {
			delete(v, n)
		}
		for _, x := range v {
			drop(x, names...)
		}
	case []any:
		for _, x := range v {
			drop(x, names...)
		}
	}
}

// view is all that B has, as B sees it, without what the platform itself
// changes all the time.
func (a *asker) view(t *testing.T) string {
	t.Helper()
	var all bytes.Buffer
	for _, path := range []string{"accounts/acme", "accounts/acme/owners", "accounts/acme/organizations", "accounts/acme/organizations/web/members",
		"accounts/acme/organizations/web/workspaces", "accounts/acme/organizations/web/workspaces/shop/apps",
		"accounts/acme/organizations/web/workspaces/shop/machines", "accounts/acme/organizations/web/workspaces/shop/namespaces",
		"accounts/acme/organizations/web/images", "tasks?limit=500"} {
		got := a.ask(t, ownerB, http.MethodGet, "/v1/"+path, "")
		if got.status != http.StatusOK {
			t.Fatalf("B's view of %s: %s", path, got)
		}
		var v any
		if err := json.Unmarshal([]byte(got.body), &v); err != nil {
			t.Fatal(err)
		}
		drop(v, "status", "revision", "updatedAt")
		data, _ := json.Marshal(v)
		fmt.Fprintf(&all, "%s %s\n", path, data)
	}
	return all.String()
}
