package attack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What A does in a loop, and how long.
const (
	floodFor  = 2 * time.Second
	floodWith = 32 // at once
	slowApps  = 20
	// atOnce is how many requests anybody may make at once, and what comes to that while he does.
	atOnce = 1000 + 100*int(floodFor/time.Second)

	appsA = "/v1/accounts/beta/organizations/ops/workspaces/box/apps/"
	appsB = "/v1/accounts/acme/organizations/web/workspaces/shop/apps/"
	hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
)

// fair has A misuse what both share, by their API and the registry, while B deploys,
// logs in and pushes: that takes B at most twice as long as alone, and two seconds.
func (w *waste) fair(t *testing.T) {
	a := w.people(t)
	from := w.anotherAddress(t)
	far := *a // A comes from elsewhere: B's address has a share of its own
	transport := a.client.Transport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext
	transport.MaxIdleConnsPerHost = floodWith
	far.client = &http.Client{Transport: transport, Timeout: time.Minute}

	by := *w.by
	by.asks = append(slices.Clone(w.by.asks), w.deeds(t, a)...)
	if !w.control(t, "B deploys, logs in and pushes when nobody attacks", by.alone(t, 4*time.Second)) {
		return
	}

	for i := range slowApps {
		got := a.ask(t, ownerA, http.MethodPut, fmt.Sprintf("%sslow%d", appsA, i), `{"spec":{"image":"tool:1","instances":0,"noRoute":true}}`)
		if got.status != http.StatusAccepted {
			t.Fatal(got)
		}
	}
	w.kube.must(t, hooks, fmt.Sprintf(`{"metadata":{"name":"molasses"},"webhooks":[{"name":"a.molasses.test","clientConfig":{"url":"https://%s:9/"},
		"sideEffects":"None","admissionReviewVersions":["v1"],"timeoutSeconds":30,"failurePolicy":"Fail","rules":[{"apiGroups":["","apps","rbac.authorization.k8s.io"],
		"apiVersions":["v1"],"operations":["CREATE","UPDATE"],"resources":["services","deployments","rolebindings"]}]}]}`, w.Nodes[0].Address()))
	change := func(i int) string { return fmt.Sprintf(`{"spec":{"instances":%d}}`, i%7) } // none comes into being
	by.during(t, fmt.Sprintf("%d apps and two namespaces behind a webhook that never answers", slowApps), owner, func() {
		for i := range slowApps {
			a.ask(t, ownerA, http.MethodPatch, fmt.Sprintf("%sslow%d", appsA, i), change(i%6+1))
		}
		for i := range 2 {
			w.kube.do(t.Context(), http.MethodPost, "/api/v1/namespaces", "", fmt.Sprintf(`{"metadata":{"name":"molasses-%d"}}`, i))
		}
		time.Sleep(floodFor)
	})

	// Changes of an app that can't come true.
	var codes *sync.Map
	by.during(t, "patches without end", owner, func() {
		codes = far.flood(t, func(i int) answer { return far.try(t, ownerA, http.MethodPatch, appsA+"slow1", change(i)) })
	})
	w.throttled(t, "patches without end", ownerA, codes)
	running := func() int {
		var list struct{ Items []struct{ Name string } }
		got := far.patient(t, ownerA, http.MethodGet, "/v1/tasks?state=running&limit=500&target="+url.QueryEscape("beta/ops/box/slow1"), "")
		if got.status != http.StatusOK {
			return -1
		}
		if err := json.Unmarshal([]byte(got.body), &list); err != nil {
			return -1
		}
		return len(list.Items)
	}
	n := running()
	for end := time.Now().Add(10 * time.Second); n > 1 && time.Now().Before(end); n = running() {
		time.Sleep(100 * time.Millisecond) // they are mirrored a moment later
	}
	w.record(t, attempt{What: "tasks of one app without end", From: ownerA, Want: "one runs, the others are replaced", Got: fmt.Sprint(n, " run"), Blocked: n == 0 || n == 1})

	// Logins of one user, by the right password.
	word := a.word(t, "password")
	login := func(int) answer {
		return far.try(t, "", http.MethodPost, "/v1/login", fmt.Sprintf(`{"email":%q,"password":%q}`, devA, word))
	}
	first := a.tokens[devA]
	by.during(t, "logins without end", devA, func() { codes = far.flood(t, login) })
	w.throttled(t, "logins without end", "one address", codes)
	got := a.bearer(t, first, http.MethodGet, w.URL()+"/v1/session", "")
	w.record(t, attempt{What: "more sessions than one user may have", From: devA, Want: "the oldest has ended: 401, or there were not so many logins", Got: got.String(),
		Blocked: got.status == http.StatusUnauthorized || count(codes, http.StatusOK) < 50+floodWith}) // those at once are over the bound until the next

	// Requests by nobody, and by a token that is none.
	by.during(t, "requests without a login", "one address", func() {
		codes = far.flood(t, func(i int) answer {
			if i%2 == 0 {
				return far.try(t, "", http.MethodGet, "/v1/openapi.json", "")
			}
			return far.try(t, "nobody", http.MethodGet, "/v1/session", "")
		})
	})
	w.throttled(t, "requests without a login", "one address", codes)

	// Pushes of A's.
	push := w.pusher(t, &far, ownerA, "password", "beta/ops/tool")
	by.during(t, "pushes without end", owner, func() {
		far.flood(t, func(i int) answer { return push(t.Context(), fmt.Sprint("A", i)) })
	})

	if r := w.kube.do(t.Context(), http.MethodDelete, hooks+"/molasses", "", ""); r.good() != nil {
		t.Error(r)
	}
	for i := range slowApps {
		a.ask(t, ownerA, http.MethodDelete, fmt.Sprintf("%sslow%d", appsA, i), "")
	}
}

// deeds are what B does that others may be in the way of. Each is bounded by what it
// takes alone.
func (w *waste) deeds(t *testing.T, a *asker) []ask {
	n := 0
	if got := a.ask(t, ownerB, http.MethodPut, appsB+"canary", `{"spec":{"image":"tool:1","instances":0,"noRoute":true}}`); got.status >= 300 {
		t.Fatal(got)
	}
	t.Cleanup(func() { a.ask(t, ownerB, http.MethodDelete, appsB+"canary", "") })
	word := a.word(t, "password")
	push, pushed := w.pusher(t, a, ownerB, "owner-password", "acme/web/tool"), 0
	return []ask{
		{what: "B's deploys and their tasks", twice: true, fewest: 2, do: func(ctx context.Context) error {
			n++
			got := a.onceWith(ctx, a.tokens[ownerB], http.MethodPut, w.URL()+appsB+"canary",
				fmt.Sprintf(`{"spec":{"image":"tool:1","instances":0,"noRoute":true,"env":{"N":"%d"}}}`, n))
			var made struct{ Task string }
			if err := json.Unmarshal([]byte(got.body), &made); err != nil || made.Task == "" {
				return errors.New(got.String())
			}
			return a.ends(ctx, ownerB, made.Task)
		}},
		{what: "B's logins", twice: true, fewest: 2, do: func(ctx context.Context) error {
			got := a.onceWith(ctx, "", http.MethodPost, w.URL()+"/v1/login", fmt.Sprintf(`{"email":%q,"password":%q}`, devB, word))
			var result struct{ Token string }
			if err := json.Unmarshal([]byte(got.body), &result); err != nil || result.Token == "" {
				return errors.New(got.String())
			}
			if got = a.onceWith(ctx, result.Token, http.MethodPost, w.URL()+"/v1/logout", ""); got.status != http.StatusNoContent {
				return errors.New(got.String())
			}
			return nil
		}},
		{what: "B's pushes", twice: true, fewest: 2, do: func(ctx context.Context) error {
			pushed++
			if got := push(ctx, fmt.Sprint("B", pushed)); got.status != http.StatusCreated {
				return errors.New(got.String())
			}
			return nil
		}},
	}
}

// ends follows a task until it is done.
func (a *asker) ends(ctx context.Context, who, task string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.s.URL()+"/v1/tasks/"+task+"/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.tokens[who])
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	last := resp.Status
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			last = data
			if strings.Contains(data, `"state":"done"`) {
				return nil
			}
		}
	}
	return errors.New("the task has not ended well: " + last)
}

// pusher returns what pushes a small image with some content, as a user, to a
// repository.
func (w *waste) pusher(t *testing.T, a *asker, who, file, repository string) func(ctx context.Context, content string) answer {
	t.Helper()
	q := url.Values{"scope": {"repository:" + repository + ":pull,push"}}
	got := a.bearer(t, "", http.MethodGet, "https://"+w.RegistryAddress()+"/token?"+q.Encode(), "", "Authorization", "Basic "+basic(who, a.word(t, file)))
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(got.body), &made); err != nil || made.Token == "" {
		t.Fatal(got)
	}
	base := "https://" + w.RegistryAddress() + "/v2/"
	const oci = "application/vnd.oci.image.manifest.v1+json"
	return func(ctx context.Context, content string) answer {
		sum := sha256.Sum256([]byte(content))
		digest := "sha256:" + hex.EncodeToString(sum[:])
		got := a.onceWith(ctx, made.Token, http.MethodPost, base+repository+"/blobs/uploads/", "")
		if got.status != http.StatusAccepted {
			return got
		}
		got = a.onceWith(ctx, made.Token, http.MethodPut, join(base, got.header.Get("Location"))+"&digest="+url.QueryEscape(digest), content,
			"Content-Type", "application/octet-stream")
		if got.status != http.StatusCreated {
			return got
		}
		return a.onceWith(ctx, made.Token, http.MethodPut, base+repository+"/manifests/fair", fmt.Sprintf(
			`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
			oci, digest, len(content)), "Content-Type", oci)
	}
}

// try asks once, and tells a refusal for too much from others by its status alone.
func (a *asker) try(t *testing.T, who, method, path, body string) answer {
	token, ok := a.tokens[who]
	if !ok {
		token = "mps_0123456789abnothing"
	}
	return a.onceWith(t.Context(), token, method, a.s.URL()+path, body)
}

// patient asks until it isn't too often any more.
func (a *asker) patient(t *testing.T, who, method, path, body string) (got answer) {
	for range 20 {
		if got = a.try(t, who, method, path, body); got.status != http.StatusTooManyRequests {
			break
		}
		seconds, _ := strconv.Atoi(got.header.Get("Retry-After"))
		time.Sleep(time.Duration(max(seconds, 1)) * time.Second)
	}
	return got
}

// flood asks again and again, several at once, and counts the answers by status. The
// last one that was refused for too much is kept as the value of 429.
func (a *asker) flood(t *testing.T, ask func(i int) answer) *sync.Map {
	var codes sync.Map
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(floodFor)
	for range floodWith {
		wg.Go(func() {
			for time.Now().Before(end) {
				got := ask(int(n.Add(1)))
				c, _ := codes.LoadOrStore(got.status, &counted{})
				c.(*counted).add(got)
			}
		})
	}
	wg.Wait()
	return &codes
}

// counted is how many answers there were of a kind, and the last of them.
type counted struct {
	mu   sync.Mutex
	n    int
	last answer
}

func (c *counted) add(a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.last = a
}

func count(codes *sync.Map, status int) int {
	if c, ok := codes.Load(status); ok {
		return c.(*counted).n
	}
	return 0
}

// throttled records whether a flood was refused in words that say what to do.
func (w *waste) throttled(t *testing.T, what, from string, codes *sync.Map) {
	t.Helper()
	text, asked := "", 0
	var last answer
	codes.Range(func(status, c any) bool {
		text += fmt.Sprintf("%d x %d; ", c.(*counted).n, status)
		asked += c.(*counted).n
		if status == http.StatusTooManyRequests {
			last = c.(*counted).last
		}
		return true
	})
	if last.status == 0 && asked < atOnce {
		t.Logf("%s: %s: this machine is too busy to ask too often", what, text)
		return
	}
	seconds, err := strconv.Atoi(last.header.Get("Retry-After"))
	w.record(t, attempt{What: what, From: from, Want: "429 with Retry-After, and what to do", Got: text + last.String(),
		Blocked: last.status == http.StatusTooManyRequests && err == nil && seconds >= 1 && strings.Contains(last.body, `"remedy"`) && count(codes, http.StatusInternalServerError) == 0})
}
