package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// opEvents has no time limit.
const opEvents access.Operation = "tasks.events"

const (
	// heartbeat is how often a silent stream shows that it lives; clients and
	// what is between give up after a minute.
	heartbeat = 15 * time.Second
	// sendTimeout is how long a client may take to read one event.
	sendTimeout = 10 * time.Second
)

// TaskPath names a task.
type TaskPath struct {
	Task string `path:"task" maxLength:"100"`
}

// TaskFilter chooses tasks.
type TaskFilter struct {
	Page
	Account string `query:"account" maxLength:"57" doc:"Only those of this account"`
	Target  string `query:"target" maxLength:"255" doc:"Only those for this resource and what is in it" example:"acme/web/shop"`
	State   string `query:"state" enum:"running,done,failed,replaced"`
}

func (a *API) taskOperations() {
	add(a, op("tasks.list", "GET /v1/tasks", "The tasks one may see, the newest first"), a.listTasks)
	add(a, op(access.OpTaskGet, "GET /v1/tasks/{task}", "One task"),
		func(ctx context.Context, in *TaskPath) (*Output[*resource.Task], error) {
			task, err := a.task(ctx, access.OpTaskGet, in.Task)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, task), nil
		})
	add(a, op(opEvents, "GET /v1/tasks/{task}/events", "Follow a task: server-sent events named task, "+
		"each with the whole task as data and its revision as id, until it has ended"), a.followTask)
}

// task reads a task and checks that the one who asks may see it.
func (a *API) task(ctx context.Context, op access.Operation, id string) (*resource.Task, error) {
	task, err := store.Of[resource.Task](a.store).Get(ctx, resource.TaskKey(id))
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return nil, missing("task", id)
	}
	if err != nil {
		return nil, err
	}
	account, organization := placeOf(task)
	if err := a.id.LoadMemberships(ctx, who(ctx), account, organization); err != nil {
		return nil, err
	}
	if err := access.Authorize(who(ctx), op, account, organization); err != nil {
		return nil, missing("task", id) // as if it were not there
	}
	return task, nil
}

// placeOf is where the resource of a task is. What is an account's own is in "-":
// only who has a role in all of the account may see it.
func placeOf(t *resource.Task) (account, organization string) {
	account = t.Spec.Account
	parts := strings.Split(t.Spec.Target, "/")
	switch {
	case account == "":
		return "", ""
	case parts[0] != account || len(parts) == 1 || parts[1] == "":
		return account, "-"
	}
	return account, parts[1]
}

// listTasks reads those of the accounts that are asked for and where one has a role, some
// hundred each. Who may see all reads all, page by page.
func (a *API) listTasks(ctx context.Context, in *TaskFilter) (*Output[resource.List[*resource.Task]], error) {
	p := who(ctx)
	account, _, nested := strings.Cut(in.Target, "/")
	if !nested {
		account = ""
	}
	if account = cmp.Or(in.Account, account); resource.CheckName("", account) != nil {
		account = "" // nobody's
	}
	if err := a.id.LoadMemberships(ctx, p, account, ""); err != nil {
		return nil, err
	}
	places := map[string]bool{}
	switch {
	case account != "":
		places[account] = true
	case p.Sysadmin:
		places[""] = true // all
	}
	for _, m := range p.Memberships {
		if !p.Sysadmin {
			places[m.Account] = true
		}
	}
	visible := func(t *resource.Task) bool {
		account, organization := placeOf(t)
		return (in.After == "" || newer(in.After, t.Name)) &&
			(in.Account == "" || t.Spec.Account == in.Account) &&
			(in.Target == "" || t.Spec.Target == in.Target || strings.HasPrefix(t.Spec.Target, in.Target+"/")) &&
			(in.State == "" || string(t.Status.State) == in.State) &&
			access.Authorize(p, access.OpTaskGet, account, organization) == nil
	}
	var items []*resource.Task
	cut := false
	for place := range places {
		after := ""
		for more := true; more; more = after != "" {
			tasks, next, err := store.Of[resource.Task](a.store).List(ctx, place, after, 500)
			if err != nil {
				return nil, err
			}
			items = append(items, slices.DeleteFunc(tasks, func(t *resource.Task) bool { return !visible(t) })...)
			slices.SortFunc(items, func(x, y *resource.Task) int { return -compareIDs(x.Name, y.Name) })
			if cut = cut || len(items) > in.Limit; cut {
				items = slices.Clone(items[:min(len(items), in.Limit)])
			}
			after = next
		}
	}
	next := ""
	if cut {
		next = items[len(items)-1].Name
	}
	return ok(listOf(items, next)), nil
}

// compareIDs compares tasks by the IDs in their names, which sort by time.
func compareIDs(x, y string) int {
	return cmp.Or(cmp.Compare(x[strings.LastIndexByte(x, '-')+1:], y[strings.LastIndexByte(y, '-')+1:]), cmp.Compare(x, y))
}

// newer says that a task called x is newer than one called y.
func newer(x, y string) bool { return compareIDs(x, y) > 0 }

// followTask streams. A client that comes back with Last-Event-ID is not told
// again what it knows.
func (a *API) followTask(ctx context.Context, in *struct {
	TaskPath
	LastEventID string `header:"Last-Event-ID" maxLength:"32"`
}) (*huma.StreamResponse, error) {
	if _, err := a.task(ctx, opEvents, in.Task); err != nil {
		return nil, err
	}
	known, _ := strconv.ParseInt(in.LastEventID, 10, 64)
	return &huma.StreamResponse{Body: func(h huma.Context) {
		_, w := humago.Unwrap(h)
		a.streamTask(ctx, w, in.Task, known)
	}}, nil
}

func (a *API) streamTask(ctx context.Context, w http.ResponseWriter, id string, known int64) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy in between must not wait for more
	w.WriteHeader(http.StatusOK)
	var sending sync.Mutex
	send := func(text string) bool {
		sending.Lock()
		defer sending.Unlock()
		_ = out.SetWriteDeadline(time.Now().Add(sendTimeout)) // a test's recorder has none
		if _, err := w.Write([]byte(text)); err != nil || out.Flush() != nil {
			return false
		}
		// HTTP/2 resets an idle stream whose write deadline passes.
		_ = out.SetWriteDeadline(time.Time{})
		return true
	}
	if !send("retry: 1000\n\n") {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var beating sync.WaitGroup
	defer beating.Wait()
	defer cancel()
	beating.Go(func() {
		defer cancel() // nobody reads any more
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if !send(": alive\n\n") {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for t, err := range a.cfg.Tasks.Follow(ctx, id) {
		if err != nil {
			if ctx.Err() == nil {
				a.log.Debug("follow task", "task", id, "err", err)
			}
			return
		}
		if t.Revision <= known && !t.Ended() {
			continue
		}
		data, err := json.Marshal(t)
		if err != nil {
			a.log.Error("task event", "task", t.Name, "err", err)
			return
		}
		if !send(fmt.Sprintf("id: %d\nevent: task\ndata: %s\n\n", t.Revision, data)) {
			return
		}
	}
}
