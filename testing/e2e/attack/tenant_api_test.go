package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
)

// described is one operation of the OpenAPI document.
type described struct {
	method, path, id string
	roles            []string
}

var inBraces = regexp.MustCompile(`\{([a-zA-Z]+)\}`)

// operations reads the OpenAPI document.
func (a *asker) operations(t *testing.T) []described {
	t.Helper()
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string   `json:"operationId"`
			Roles       []string `json:"x-multipaas-roles"`
		}
	}
	got := a.ask(t, "", http.MethodGet, "/v1/openapi.json", "")
	if err := json.Unmarshal([]byte(got.body), &document); err != nil {
		t.Fatalf("OpenAPI document: %s", got)
	}
	var all []described
	for path, methods := range document.Paths {
		for method, op := range methods {
			all = append(all, described{strings.ToUpper(method), path, op.OperationID, op.Roles})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	if len(all) < 40 {
		t.Fatalf("the OpenAPI document has %d operations only", len(all))
	}
	return all
}

// fill puts names into a path; what has none in there gets a plain one.
func fill(path string, names map[string]string) string {
	return inBraces.ReplaceAllStringFunc(path, func(p string) string {
		if name, ok := names[strings.Trim(p, "{}")]; ok {
			return url.PathEscape(name)
		}
		return "default"
	})
}

// body has B's names in every field that a body could have.
const body = `{"name":"shop","account":"acme","organization":"web","workspace":"shop","email":"owner@acme.example","user":"owner@acme.example",` +
	`"password":"correct horse battery","role":"admin","image":"acme/web/hello:1","spec":{"machines":0,"instances":0,"podSecurity":"privileged","image":"acme/web/hello:1","sysadmin":true}}`

// testAPI asks for B's things by every operation of the API and by every trick
// with paths, headers and bodies.
func testAPI(t *testing.T, s *suite) {
	a := s.people(t)
	marks := a.marks(t)
	var err error
	if got := a.ask(t, ownerA, http.MethodGet, "/v1/accounts/beta/organizations/ops/workspaces/box", ""); got.status != http.StatusOK {
		err = errors.New(got.String())
	}
	if !s.control(t, "A's owner reads A's workspace", err) {
		return
	}
	before := a.view(t)
	a.everyOperation(t, marks)
	a.oddPaths(t, marks)
	a.oddBodies(t, marks)
	a.usersElsewhere(t)
	a.namesInBodies(t, marks)
	a.smuggle(t)
	a.otherHosts(t)
	after := a.view(t)
	s.record(t, attempt{What: "all of these together: change anything of B's", From: "outside", Want: "B's view as before",
		Got: "B's view is the same: " + fmt.Sprint(before == after), Blocked: before == after})
	if before != after {
		t.Logf("B's view before:\n%s\nafter:\n%s", before, after)
	}
}

func (a *asker) everyOperation(t *testing.T, marks []string) {
	var tasks struct {
		Items []struct{ Name string }
	}
	if got := a.ask(t, ownerB, http.MethodGet, "/v1/tasks", ""); json.Unmarshal([]byte(got.body), &tasks) != nil || len(tasks.Items) == 0 {
		t.Fatalf("B's tasks: %s", got)
	}
	node := a.s.Nodes[0].Name()
	ofB := map[string]string{"account": "acme", "organization": "web", "workspace": "shop", "app": "hello", "image": "tool", "tag": "1", "reference": "1",
		"task": tasks.Items[0].Name, "user": ownerB, "node": node, "token": "x", "namespace": "default", "machine": "shop-1",
		"volume": a.s.keeps.ofB.Name, "claim": "keeper"}
	noOnes := map[string]string{"account": "nosuch", "organization": "nosuch", "workspace": "nosuch", "app": "nosuch", "image": "nosuch", "tag": "nosuch",
		"reference": "nosuch", "task": "nosuch", "user": "nosuch@acme.example", "node": "nosuch", "token": "nosuch", "namespace": "nosuch", "machine": "nosuch",
		"volume": "pvc-nosuch", "claim": "nosuch"}
	for _, op := range a.operations(t) {
		payload := ""
		if op.method != http.MethodGet && op.method != http.MethodDelete {
			payload = body
		}
		named := strings.Contains(op.path, "{")
		for _, who := range []string{ownerA, devA, devB, ""} {
			switch {
			case who == "" && slices.Contains(op.roles, "anonymous"), who == devB && slices.Contains(op.roles, "developer"),
				who == devB && slices.Contains(op.roles, "user"), !named && slices.Contains(op.roles, "user"):
				continue // he may
			case !named && who == ownerA && slices.Contains(op.roles, "owner"):
				continue // of his own
			}
			got := a.ask(t, who, op.method, fill(op.path, ofB), payload)
			want, blocked := "403 or 404", got.refused(http.StatusForbidden, http.StatusNotFound)
			if who == "" {
				want, blocked = "401", got.refused(http.StatusUnauthorized)
			}
			for _, m := range marks {
				blocked = blocked && !strings.Contains(got.body, m)
			}
			if who == ownerA || who == devA {
				other := a.ask(t, who, op.method, fill(op.path, noOnes), payload)
				same := other.status == got.status
				x, y := got.body, other.body
				for k, name := range ofB {
					x, y = plain(x, name), plain(y, noOnes[k])
				}
				if want += ", as for what there is not"; !same || x != y {
					blocked = false
					got.body += " | for what there is not: " + other.String()
				}
			}
			from := who
			if from == "" {
				from = "nobody"
			}
			a.s.record(t, attempt{What: op.id + " " + op.method + " " + fill(op.path, ofB), From: from, Want: want, Got: got.String(), Blocked: blocked})
		}
	}
	// Lists of one's own hold nothing of B's, wherever a page begins.
	for _, path := range []string{"/v1/accounts", "/v1/tasks?limit=500", "/v1/accounts?after=acm", "/v1/tasks?account=acme", "/v1/tasks?target=acme/web/shop",
		"/v1/accounts/beta/organizations?after=../acme", "/v1/accounts/beta/organizations/ops/workspaces?after=..%2F..%2Facme%2Fweb", "/v1/accounts/beta/owners?after=%00"} {
		got := a.ask(t, ownerA, http.MethodGet, path, "")
		blocked := got.status >= 400 || !strings.Contains(got.body, `"acme"`) && !strings.Contains(got.body, "acme/web") && !containsAny(got.body, marks)
		a.s.record(t, attempt{What: "GET " + path, From: ownerA, Want: "nothing of B's", Got: got.String(), Blocked: blocked})
	}
}

func containsAny(s string, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(s, w) })
}

// oddPaths writes B's names into paths as no client would.
func (a *asker) oddPaths(t *testing.T, marks []string) {
	head := func(target string, headers ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: " + a.s.Server.Address().String() + ":7443\r\nAuthorization: Bearer " + a.tokens[ownerA] + "\r\nConnection: close\r\n" +
			strings.Join(append(headers, ""), "\r\n") + "\r\n"
	}
	const shop = "acme/organizations/web/workspaces/shop"
	own := "/v1/accounts/beta/organizations/ops/workspaces/box"
	api := rows[apiRows](t, "api.yaml", "shop", shop, "own", own)
	requests := map[string]string{"10,000 characters": head("/v1/accounts/" + strings.Repeat("a", 10000) + "/../" + shop)}
	for what, r := range api.Paths {
		requests[what] = head(r.Target, r.Headers...)
	}
	for what, request := range requests {
		all, err := a.raw(t, "7443", a.s.Server.Address().String(), request)
		if !a.s.control(t, "send a path or header with "+what, err) {
			continue
		}
		got := fmt.Sprint(all)
		a.s.record(t, attempt{What: "B's workspace by a path or header with " + what, From: ownerA, Want: "nothing of B's", Got: got, Blocked: !containsAny(got, marks)})
	}
	org := "/v1/accounts/beta/organizations/ops"
	for _, header := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"} {
		got := a.ask(t, devA, http.MethodGet, org, "", header, "DELETE")
		still := a.ask(t, devA, http.MethodGet, org, "")
		a.s.record(t, attempt{What: "a developer deletes by GET with " + header, From: devA, Want: "it is there", Got: got.String(), Blocked: still.status == http.StatusOK && !strings.Contains(still.body, "deletedAt")})
	}
}

// oddBodies tries to lift A's own pod security and to take B's names, by bodies
// that two parsers could read in two ways.
func (a *asker) oddBodies(t *testing.T, _ []string) {
	const own = "/v1/accounts/beta/organizations/ops/workspaces/box"
	read := func() string { return plain(a.ask(t, ownerA, http.MethodGet, own, "").body, "\x00") }
	try := func(what, method, path, body string, headers ...string) {
		t.Helper()
		got := a.ask(t, ownerA, method, path, body, headers...)
		now := read()
		blocked := strings.Contains(now, `"podSecurity":"baseline"`) && strings.Contains(now, `"account":"beta"`) && strings.Contains(now, `"name":"box"`)
		a.s.record(t, attempt{What: what, From: ownerA, Want: "pod security and owner stay", Got: got.String(), Blocked: blocked})
	}
	api := rows[apiRows](t, "api.yaml")
	api.Bodies["depth 20,000"] = strings.Repeat(`{"spec":`, 9000) + "1" + strings.Repeat("}", 9000)
	api.Bodies["200 kB"] = `{"spec":{"podSecurity":"` + strings.Repeat("x", 200<<10) + `"}}`
	for what, body := range api.Bodies {
		try("workspaces.patch: "+what, http.MethodPatch, own, body)
	}
	for _, kind := range api.Types {
		try("workspaces.patch as "+kind, http.MethodPatch, own, `{"spec":{"podSecurity":"privileged"}}`, "Content-Type", kind)
	}
	apps := own + "/apps/"
	for _, name := range append(api.Names, strings.Repeat("a", 64)) {
		got := a.ask(t, ownerA, http.MethodPut, apps+strings.ReplaceAll(name, "..", "%2e%2e"), `{"spec":{"image":"tool:1","instances":0}}`)
		a.s.record(t, attempt{What: "an app called " + name + ", which would be another's host name or a path", From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
	api.Apps["an environment of 100 kB"] = `{"spec":{"image":"tool:1","env":{"A":"` + strings.Repeat("x", 100<<10) + `"}}}`
	for what, body := range api.Apps {
		got := a.ask(t, ownerA, http.MethodPut, apps+"odd", body)
		a.s.record(t, attempt{What: "apps.put: " + what, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
}

// usersElsewhere makes a user who would count in B's account.
func (a *asker) usersElsewhere(t *testing.T) {
	user := func(account string) string {
		return `{"email":"planted@beta.example","password":"correct horse battery","account":"` + account + `"}`
	}
	got, other := a.ask(t, ownerA, http.MethodPost, "/v1/users", user("acme")), a.ask(t, ownerA, http.MethodPost, "/v1/users", user("nosuch"))
	a.s.record(t, attempt{What: "make a user who counts in B's account", From: ownerA, Want: "404, as for an account that there is not", Got: got.String() + " | for what there is not: " + other.String(),
		Blocked: got.refused(http.StatusNotFound) && plain(got.body, "acme") == plain(other.body, "nosuch")})
}

// smuggle sends requests whose length two servers could read in two ways. Each
// hides another one, which must not be answered. Behind the balancer stands
// somebody who could read them otherwise than it: what B's app is asked by others must
// not be answered by what was hidden here.
func (a *asker) smuggle(t *testing.T) {
	address := a.s.Server.Address().String()
	const app = "hello.shop.web.acme.paas.internal"
	for _, to := range []struct {
		port, name, host string
		post, get        string // paths
		shows            int    // status of the hidden one, if it is answered
	}{
		{"7443", address, address + ":7443", "/v1/login", "/livez", http.StatusOK},
		{"5000", address, address + ":5000", "/token", "/v2/", http.StatusUnauthorized},
		{"443", app, app, "/upload", "/bytes?n=7", http.StatusOK},
	} {
		hidden := "GET " + to.get + " HTTP/1.1\r\nHost: " + to.host + "\r\n\r\n"
		post := "POST " + to.post + " HTTP/1.1\r\nHost: " + to.host + "\r\n"
		// The control: said openly it is answered, so that a hidden one would be too.
		all, err := a.raw(t, to.port, to.name, hidden+hidden)
		if err == nil && (len(all) != 2 || all[1].status != to.shows) {
			err = fmt.Errorf("%d answers: %v", len(all), all)
		}
		if !a.s.control(t, "two requests in a row to port "+to.port+" are answered", err) {
			continue
		}
		hide := map[string]string{
			"length and chunks":         post + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", 5+len(hidden), hidden),
			"chunks, then length":       post + fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n", len(hidden)) + hidden + "\r\n0\r\n\r\n",
			"two lengths":               post + fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
			"a length with a sign":      post + "Content-Length: +0\r\n\r\n" + hidden,
			"a list of lengths":         post + fmt.Sprintf("Content-Length: 0, %d\r\n\r\n%s", len(hidden), hidden),
			"a space before the colon":  post + "Transfer-Encoding : chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden,
			"an unknown encoding":       post + "Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden,
			"chunked, identity":         post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
			"two encodings":             post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n" + hidden,
			"a folded header":           post + "X: y\r\n Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden,
			"a vertical tab":            post + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden,
			"a chunk size that is none": post + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden,
			"a chunk size too large":    post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n" + hidden,
			"a bare carriage return":    post + "X: y\rContent-Length: 0\r\n\r\n" + hidden,
			"an HTTP/2 upgrade":         post + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + hidden,
			"two Hosts":                 post + "Host: smuggled.example\r\nContent-Length: 0\r\n\r\n" + hidden,
			"a NUL in a header":         post + "X: \x00\r\nContent-Length: 0\r\n\r\n" + hidden,
		}
		var wg sync.WaitGroup // whether there is a second answer is seen after seconds
		for what, request := range hide {
			wg.Go(func() {
				all, err := a.raw(t, to.port, to.name, request)
				if err == nil && len(all) > 0 && all[0].status == http.StatusTooManyRequests {
					err = fmt.Errorf("%s", all[0])
				}
				// net/http reads these as one request and then another of the same client
				// (RFC 9112, 6.3: chunks before length). Nobody stands before it who could
				// have read them otherwise; behind the balancer, see below.
				if !a.s.control(t, "connect to port "+to.port, err) || slices.Contains([]string{"length and chunks", "a folded header", "an HTTP/2 upgrade"}, what) {
					return
				}
				a.s.record(t, attempt{What: "smuggle a request to port " + to.port + " by " + what, From: "outside", Want: "one answer, or 400 to the second",
					Got: oneLine(fmt.Sprint(len(all), " answers: ", all)), Blocked: len(all) <= 1 || all[1].status == http.StatusBadRequest})
			})
		}
		wg.Wait()
	}
	// All of them have gone by the balancer's connections to B's pods.
	wrong, asked := []string{}, 60
	for range asked {
		var all []answer
		var err error
		for range 5 { // no answer at all is not another's
			all, err = a.raw(t, "443", app, "GET / HTTP/1.1\r\nHost: "+app+"\r\nConnection: close\r\n\r\n")
			if err == nil && len(all) > 0 && all[0].status < 500 {
				break
			}
		}
		if err != nil || len(all) != 1 || all[0].status != http.StatusOK || all[0].header.Get("X-Instance") == "" {
			wrong = append(wrong, fmt.Sprint(all, err))
		}
	}
	a.s.record(t, attempt{What: "have a hidden request answered to others who ask B's app", From: "outside", Want: "all are answered what they asked", Got: fmt.Sprintf("%d of %d are not: %v", len(wrong), asked, wrong), Blocked: len(wrong) == 0})
}

// otherHosts asks the balancer for a host that the connection is not for.
func (a *asker) otherHosts(t *testing.T) {
	const app = "hello.shop.web.acme.paas.internal"
	all, err := a.raw(t, "443", app, "GET / HTTP/1.1\r\nHost: "+app+"\r\nConnection: close\r\n\r\n")
	if err == nil && (len(all) != 1 || all[0].status != http.StatusOK) {
		err = fmt.Errorf("got %v", all)
	}
	if !a.s.control(t, "B's app answers by its name", err) {
		return
	}
	for _, host := range []string{"box.paas.internal", "other.shop.web.acme.paas.internal", "127.0.0.1", "localhost", "169.254.20.10", "", app + ".evil.example", "hello.box.ops.beta.paas.internal", "HELLO.shop.web.acme.paas.internal@evil.example"} {
		all, err := a.raw(t, "443", app, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if !a.s.control(t, "connect to "+app, err) {
			continue
		}
		blocked := len(all) == 0 || all[0].status >= 400
		a.s.record(t, attempt{What: "Host " + host + " on a connection to " + app, From: "outside", Want: "421 or 400", Got: fmt.Sprint(all, err), Blocked: blocked})
	}
	for _, name := range []string{"nosuch.paas.internal", "shop.web.acme.paas.internal", "paas.internal", "k8s.paas.internal"} {
		all, err := a.raw(t, "443", name, "GET / HTTP/1.1\r\nHost: "+app+"\r\nConnection: close\r\n\r\n")
		a.s.record(t, attempt{What: "TLS for " + name + " with Host " + app, From: "outside", Want: "no TLS, or 4xx", Got: fmt.Sprint(all, err), Blocked: err != nil || len(all) == 0 || all[0].status >= 400})
	}
}
