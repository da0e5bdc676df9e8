package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/multipaas/multipaas/testing/dctest"
)

// The history: several clients give users roles in an organization, read, change
// and take them, while the server is killed. A role is the smallest resource that the API
// creates, changes with an ETag and deletes in one request each, so that an
// order of the requests must explain every answer.

// write is what a client asked for.
type write struct {
	verb  string // "put", "delete" or "get"
	user  string
	role  string // put
	match int64  // put: the revision it was based on; none: it must not be there; 0: whatever is there
}

const none = -1

// outcome is the answer. A lost one says nothing.
type outcome struct {
	lost     bool
	code     int
	role     string // of 200 and 201
	revision int64
}

// role is how a resource stands. Nobody knows the revision of a write whose
// answer was lost: it is 0 until somebody reads it, and then above floor.
type role struct {
	name            string // "": there is none
	revision, floor int64
}

func (r role) to(name string, revision int64) role {
	return role{name: name, revision: revision, floor: max(r.floor, r.revision, revision)}
}

// roles is the model: what the API promises about one user's role.
var roles = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byUser := map[string][]porcupine.Operation{}
		for _, op := range history {
			user := op.Input.(write).user
			byUser[user] = append(byUser[user], op)
		}
		var all [][]porcupine.Operation
		for _, ops := range byUser {
			all = append(all, ops)
		}
		return all
	},
	Init: func() any { return role{} },
	Step: func(state, input, output any) (bool, any) {
		ok, next := step(state.(role), input.(write), output.(outcome))
		return ok, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

func step(s role, in write, out outcome) (bool, role) {
	there := s.name != ""
	// known says whether the answer's revision can be that of the state.
	known := out.revision == s.revision || s.revision == 0 && out.revision > s.floor
	switch in.verb {
	case "get":
		if out.code == http.StatusNotFound {
			return !there, s
		}
		return there && out.role == s.name && known, s.to(s.name, out.revision)
	case "delete":
		if out.lost {
			return true, s.to("", 0)
		}
		return there == (out.code == http.StatusNoContent) && there != (out.code == http.StatusNotFound), s.to("", 0)
	}
	// An unknown revision may be the one that is asked for.
	fits := in.match == 0 || in.match == none && !there || in.match > 0 && there && (s.revision == in.match || s.revision == 0 && in.match > s.floor)
	misses := in.match == none && there || in.match > 0 && s.revision != in.match
	switch {
	case out.lost:
		// That it never happened need not be tried: whatever is lost may as well
		// come after all else, where nobody sees it.
		if !fits || there && s.name == in.role {
			return true, s
		}
		return true, s.to(in.role, 0)
	case out.code == http.StatusPreconditionFailed:
		return misses, s
	case !fits || out.role != in.role:
		return false, s
	case there && s.name == in.role: // as it was: nothing was written
		return out.code == http.StatusOK && known, s.to(s.name, out.revision)
	case there:
		return out.code == http.StatusOK && out.revision > max(s.floor, s.revision), s.to(in.role, out.revision)
	}
	return out.code == http.StatusCreated && out.revision > max(s.floor, s.revision), s.to(in.role, out.revision)
}

// testHistory kills the server again and again under the clients.
func testHistory(t *testing.T, s *suite) {
	kills, clients := 3, 5
	if long() {
		kills = 20
	}
	var users []string
	word := filepath.Join(s.Dir, "password")
	for i := range 4 {
		users = append(users, fmt.Sprintf("history%d@beta.example", i))
		if r := s.MP(t, dctest.Rival, "users", "create", users[i], "--password-file", word); r.Code != 0 && r.Code != exitConflict {
			t.Fatal(r)
		}
	}
	token := s.login(t, "owner@beta.example", word)
	h := &history{s: s, client: s.Client(), url: s.URL() + "/v1/accounts/beta/organizations/ops/members", token: token, start: time.Now()}
	h.client.Timeout = 20 * time.Second
	for _, u := range users {
		if out := h.do(t.Context(), write{verb: "delete", user: u}); out.lost || out.code >= 500 {
			t.Fatalf("begin with no role of %s: %+v", u, out)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() { h.ask(ctx, client, users) })
	}
	// The clients are in the middle of it when it dies, and see it come back.
	acked := func(more int64) {
		want := h.acked.Load() + more
		s.reaches(t, fmt.Sprintf("%d more answers", more), func(context.Context) error {
			if now := h.acked.Load(); now < want {
				return fmt.Errorf("%d are missing", want-now)
			}
			return nil
		})
	}
	acked(100)
	for range kills {
		s.start(t, s.Server, "") // by SIGKILL first
		acked(100)
	}
	stop()
	wg.Wait()
	s.restore(t, s.Server)
	// What stands in the end was written by somebody.
	for _, u := range users {
		h.record(clients, write{verb: "get", user: u}, func() outcome { return h.do(t.Context(), write{verb: "get", user: u}) })
	}
	t.Logf("%d requests were answered, %d of them were writes that came about; the answers of %d were lost", h.acked.Load(), h.wrote.Load(), h.lost.Load())
	if h.wrote.Load() < 50 {
		t.Errorf("only %d writes came about: the history says little", h.wrote.Load())
	}
	if h.lost.Load() == 0 {
		t.Error("no answer was lost: nobody was asking when the server died")
	}
	h.check(t, s)
	s.count("history")
}

// check asks whether an order of the requests explains the answers.
func (h *history) check(t *testing.T, s *suite) {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(roles, h.operations, 2*time.Minute)
	if result == porcupine.Ok {
		return
	}
	file := filepath.Join(s.Root, "dist", "history.html")
	if err := porcupine.VisualizePath(roles, info, file); err != nil {
		t.Log(err)
	}
	if result == porcupine.Unknown {
		t.Errorf("whether an order of %d requests explains the answers was not found out; see %s", len(h.operations), file)
		return
	}
	s.losing(t, "no order of the requests explains the answers; see %s", file)
}

// history is what clients asked and were answered.
type history struct {
	s          *suite
	client     *http.Client
	url, token string
	start      time.Time

	acked, lost, wrote atomic.Int64 // answers, broken connections, writes that came about

	mu         sync.Mutex
	operations []porcupine.Operation
}

// ask is one client: it asks until ctx is done.
func (h *history) ask(ctx context.Context, client int, users []string) {
	rnd := rand.New(rand.NewPCG(uint64(client), 7))
	last := map[string]int64{} // revisions this client has seen
	for ctx.Err() == nil {
		in := write{verb: []string{"put", "put", "put", "delete", "get", "get"}[rnd.IntN(6)], user: users[rnd.IntN(len(users))]}
		if in.verb == "put" {
			in.role = []string{"admin", "developer"}[rnd.IntN(2)]
			in.match = []int64{0, none, last[in.user], last[in.user]}[rnd.IntN(4)]
		}
		// What was asked is asked to the end, or the end of the test would lose answers.
		out := h.record(client, in, func() outcome { return h.do(context.WithoutCancel(ctx), in) })
		if out.revision != 0 {
			last[in.user] = out.revision
		}
	}
}

// record notes what was asked and answered, and when.
func (h *history) record(client int, in write, do func() outcome) outcome {
	began := time.Since(h.start)
	out := do()
	op := porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(began), Return: int64(time.Since(h.start))}
	switch {
	case out.lost && (in.verb == "get" || out.code == refused):
		time.Sleep(20 * time.Millisecond) // pacing: nobody was there
		return out                        // it has changed nothing
	case out.lost:
		if out.code == 0 {
			h.lost.Add(1)
		}
		op.Return = math.MaxInt64 // it may happen any time, or never
	default:
		h.acked.Add(1)
		if in.verb != "get" && out.code/100 == 2 {
			h.wrote.Add(1)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, op)
	return out
}

// refused stands for a connection that there was none of: nothing was asked.
const refused = -1

// do asks the API once.
func (h *history) do(ctx context.Context, in write) outcome {
	method, url, body := http.MethodGet, h.url+"?limit=500", ""
	switch in.verb {
	case "put":
		method, url, body = http.MethodPut, h.url+"/"+in.user, fmt.Sprintf(`{"role":%q}`, in.role)
	case "delete":
		method, url = http.MethodDelete, h.url+"/"+in.user
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		panic(err) // its parts are ours
	}
	req.Header.Set("Authorization", "Bearer "+h.token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if in.match == none {
		req.Header.Set("If-None-Match", "*")
	} else if in.match > 0 {
		req.Header.Set("If-Match", strconv.Quote(strconv.FormatInt(in.match, 10)))
	}
	resp, err := h.client.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return outcome{lost: true, code: refused}
	}
	if err != nil {
		return outcome{lost: true}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return outcome{lost: true}
	}
	out := outcome{code: resp.StatusCode}
	type member struct {
		Name, Role string
		Revision   int64
	}
	var found member
	switch {
	case out.code >= 500 || out.code == http.StatusConflict || out.code == http.StatusTooManyRequests:
		return outcome{lost: true, code: out.code} // what came of it is not said
	case in.verb == "get" && out.code == http.StatusOK:
		var list struct{ Items []member }
		if err := json.Unmarshal(data, &list); err != nil {
			return outcome{code: 1}
		}
		out.code = http.StatusNotFound
		for _, m := range list.Items {
			if m.Name == in.user {
				found, out.code = m, http.StatusOK
			}
		}
	case in.verb == "put" && out.code < 300:
		if err := json.Unmarshal(data, &found); err != nil {
			return outcome{code: 1} // an answer that nothing explains
		}
	}
	out.role, out.revision = found.Role, found.Revision
	return out
}

// login begins a session.
func (s *suite) login(t *testing.T, email, passwordFile string) string {
	t.Helper()
	word, err := os.ReadFile(passwordFile)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"email": email, "password": strings.TrimSpace(string(word))})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Post(s.URL()+"/v1/login", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var result struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&result); err != nil || result.Token == "" {
		t.Fatalf("log %s in: %s, %v", email, resp.Status, err)
	}
	return result.Token
}

// TestHistoryChecker proves that the model takes what may happen, and not what
// must not.
func TestHistoryChecker(t *testing.T) {
	put := func(role string, match int64) write { return write{"put", "u", role, match} }
	get, remove := write{verb: "get", user: "u"}, write{verb: "delete", user: "u"}
	created := func(role string, revision int64) outcome { return outcome{code: 201, role: role, revision: revision} }
	is := func(role string, revision int64) outcome { return outcome{code: 200, role: role, revision: revision} }
	gone, refusal, taken, lost := outcome{code: 404}, outcome{code: 412}, outcome{code: 204}, outcome{lost: true}
	type op struct {
		in         write
		out        outcome
		call, back int64
	}
	never := int64(math.MaxInt64)
	for _, c := range []struct {
		name string
		ops  []op
		want bool
	}{
		{"one after the other", []op{{get, gone, 0, 1}, {put("admin", none), created("admin", 5), 2, 3}, {get, is("admin", 5), 4, 5},
			{put("developer", 5), is("developer", 7), 6, 7}, {put("admin", 5), refusal, 8, 9}, {remove, taken, 10, 11}, {get, gone, 12, 13}, {remove, gone, 14, 15}}, true},
		{"a write that changes nothing", []op{{put("admin", 0), created("admin", 5), 0, 1}, {put("admin", 5), is("admin", 5), 2, 3}}, true},
		{"a read during a write may see either", []op{{put("admin", 0), created("admin", 5), 0, 10}, {get, gone, 1, 2}, {get, is("admin", 5), 3, 4}}, true},
		{"but not the old after the new", []op{{put("admin", 0), created("admin", 5), 0, 10}, {get, is("admin", 5), 1, 2}, {get, gone, 3, 4}}, false},
		{"a stale read", []op{{put("admin", 0), created("admin", 5), 0, 1}, {put("developer", 0), is("developer", 7), 2, 3}, {get, is("admin", 5), 4, 5}}, false},
		{"an acknowledged write that is gone", []op{{put("admin", 0), created("admin", 5), 0, 1}, {get, gone, 2, 3}}, false},
		{"a deleted role that comes back", []op{{put("admin", 0), created("admin", 5), 0, 1}, {remove, taken, 2, 3}, {get, is("admin", 5), 4, 5}}, false},
		{"two who create", []op{{put("admin", none), created("admin", 5), 0, 9}, {put("developer", none), created("developer", 6), 1, 8}}, false},
		{"two who take one role", []op{{put("admin", 0), created("admin", 5), 0, 1}, {remove, taken, 2, 9}, {remove, taken, 3, 8}}, false},
		{"two with one ETag", []op{{put("admin", 0), created("admin", 5), 0, 1}, {put("developer", 5), is("developer", 6), 2, 9}, {put("developer", 5), is("developer", 7), 2, 9}}, false},
		{"a refusal without a reason", []op{{put("admin", 0), created("admin", 5), 0, 1}, {put("developer", 5), refusal, 2, 3}}, false},
		{"a lost answer that happened", []op{{put("admin", 0), lost, 0, never}, {get, gone, 1, 2}, {get, is("admin", 9), 3, 4}, {put("developer", 9), is("developer", 11), 5, 6}}, true},
		{"a lost answer that did not", []op{{put("admin", none), lost, 0, never}, {get, gone, 1, 2}, {put("developer", none), created("developer", 9), 3, 4}}, true},
		{"a lost answer that happened twice", []op{{put("admin", none), lost, 0, never}, {get, is("admin", 9), 1, 2}, {remove, taken, 3, 4}, {get, is("admin", 12), 5, 6}}, false},
		{"a lost answer seen and unseen", []op{{put("admin", 0), lost, 0, never}, {get, is("admin", 9), 1, 2}, {get, gone, 3, 4}}, false},
		{"a lost deletion", []op{{put("admin", 0), created("admin", 5), 0, 1}, {remove, lost, 2, never}, {get, is("admin", 5), 3, 4}, {get, gone, 5, 6}}, true},
		{"a lost write with an old ETag", []op{{put("admin", 0), created("admin", 5), 0, 1}, {put("developer", 0), is("developer", 6), 2, 3}, {put("admin", 5), lost, 4, never}, {get, is("admin", 9), 5, 6}}, false},
		{"a revision that goes back", []op{{put("admin", 0), created("admin", 5), 0, 1}, {remove, taken, 2, 3}, {put("admin", 0), created("admin", 4), 4, 5}}, false},
		{"an unknown answer", []op{{get, outcome{code: 1}, 0, 1}}, false},
		{"a refusal by 404", []op{{put("admin", 0), gone, 0, 1}}, false},
	} {
		var ops []porcupine.Operation
		for i, o := range c.ops {
			ops = append(ops, porcupine.Operation{ClientId: i, Input: o.in, Output: o.out, Call: o.call, Return: o.back})
		}
		if got := porcupine.CheckOperations(roles, ops); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
