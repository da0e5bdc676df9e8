package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

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
	add(a, op("tasks.events", "GET /v1/tasks/{task}/events", "Follow a task: server-sent events named task, "+
		"each with the whole task as data and its revision as id, until it has ended").streams(), a.followTask)
}

// task reads a task and checks that the one who asks may see it.
func (a *API) task(ctx context.Context, op access.Operation, id string) (*resource.Task, error) {
	task, err := find(ctx, store.Of[resource.Task](a.store), id, "task", id)
	if err != nil {
		return nil, err
	}
	account, organization := placeOf(task)
	if organization == "" && account != "" {
		organization = "-" // an account's own: only who has a role in all of it
	}
	if err := a.id.LoadMemberships(ctx, who(ctx), account, organization); err != nil {
		return nil, err
	}
	if err := access.Authorize(who(ctx), op, account, organization); err != nil {
		return nil, missing("task", id) // as if it were not there
	}
	return task, nil
}

// placeOf is where the resource of a task is.
func placeOf(t *resource.Task) (account, organization string) {
	parts := strings.Split(t.Spec.Target, "/")
	if t.Spec.Account == "" || parts[0] != t.Spec.Account {
		return t.Spec.Account, ""
	}
	if len(parts) > 1 {
		organization = parts[1]
	}
	return t.Spec.Account, organization
}

func ended(t *resource.Task) bool {
	return t.Status.State == resource.TaskDone || t.Status.State == resource.TaskFailed
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
		if organization == "" && account != "" {
			organization = "-"
		}
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
	if _, err := a.task(ctx, "tasks.events", in.Task); err != nil {
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
	send := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(sendTimeout)) // a test's recorder has none
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		if out.Flush() != nil {
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
	changes := make(chan *resource.Task)
	go func() {
		defer close(changes)
		for t, err := range a.cfg.Tasks.Follow(ctx, id) {
			if err != nil {
				if ctx.Err() == nil {
					a.log.Debug("follow task", "task", id, "err", err)
				}
				return
			}
			select {
			case changes <- t:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range changes { // until the follower has ended
		}
	}()
	alive := time.NewTicker(heartbeat)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-alive.C:
			if !send(": alive\n\n") {
				return
			}
		case t, more := <-changes:
			if !more {
				return
			}
			if t.Revision <= known && !ended(t) {
				continue
			}
			data, err := json.Marshal(t)
			if err != nil {
				a.log.Error("task event", "task", t.Name, "err", err)
				return
			}
			if !send(fmt.Sprintf("id: %d\nevent: task\ndata: %s\n\n", t.Revision, data)) || ended(t) {
				return
			}
		}
	}
}
