package api

import (
	"context"
	"encoding/json"
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

// opEvents is the one operation without a time limit.
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
	Task string `path:"task" maxLength:"64"`
}

// TaskFilter chooses tasks.
type TaskFilter struct {
	Page
	Account string `query:"account" maxLength:"57" doc:"Only those of this account"`
	Target  string `query:"target" maxLength:"255" doc:"Only those for this resource and what is in it" example:"acme/web/shop"`
	State   string `query:"state" enum:"running,done,failed"`
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
	task, err := find(ctx, store.Of[resource.Task](a.store), id)
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

// listTasks reads them all: there are at most a thousand per account.
func (a *API) listTasks(ctx context.Context, in *TaskFilter) (*Output[resource.List[*resource.Task]], error) {
	p := who(ctx)
	if err := a.id.LoadMemberships(ctx, p, "", ""); err != nil {
		return nil, err
	}
	tasks, err := all(ctx, store.Of[resource.Task](a.store), "")
	if err != nil {
		return nil, err
	}
	var items []*resource.Task
	for _, t := range slices.Backward(tasks) { // ids sort by time
		if in.After != "" && t.Name >= in.After {
			continue
		}
		account, organization := placeOf(t)
		switch {
		case in.Account != "" && t.Spec.Account != in.Account,
			in.Target != "" && t.Spec.Target != in.Target && !strings.HasPrefix(t.Spec.Target, in.Target+"/"),
			in.State != "" && string(t.Status.State) != in.State,
			access.Authorize(p, access.OpTaskGet, account, organization) != nil:
			continue
		}
		if len(items) == in.Limit {
			return ok(listOf(items, items[len(items)-1].Name)), nil
		}
		items = append(items, t)
	}
	return ok(listOf(items, "")), nil
}

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
