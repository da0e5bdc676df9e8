package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// view is what a task wants to know of its resource.
type view struct {
	meta       resource.Meta
	observed   int64
	phase      resource.Phase
	conditions resource.Conditions
}

func (v *view) workspace() resource.Stateful {
	if v == nil {
		return nil
	}
	w := &resource.Workspace{}
	w.Meta = v.meta
	w.Status.State = resource.State{Phase: v.phase, ObservedGeneration: v.observed, Conditions: v.conditions}
	return w
}

func TestProgress(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	before, after := began.Add(-time.Hour), began.Add(time.Minute)
	deleted := after
	ok := resource.Condition{Type: "PlaneReady", Status: resource.True, Since: before}
	bad := resource.Condition{Type: "Scheduled", Status: resource.False, Since: after, Message: "No node has room."}
	final := bad
	final.Final = true

	tests := []struct {
		name   string
		spec   resource.TaskSpec
		target *view
		state  resource.TaskState
		text   string
		steps  []string
	}{
		{"reached", resource.TaskSpec{Generation: 2}, &view{observed: 2, phase: resource.Ready, conditions: resource.Conditions{ok}}, resource.TaskDone, "", []string{"PlaneReady"}},
		{"a newer one reached", resource.TaskSpec{Generation: 2}, &view{observed: 5, phase: resource.Ready}, resource.TaskDone, "", nil},
		{"not looked at yet", resource.TaskSpec{Generation: 2}, &view{observed: 1, phase: resource.Ready}, resource.TaskRunning, "", nil},
		{"an old failure", resource.TaskSpec{Generation: 2}, &view{observed: 1, phase: resource.Failed, conditions: resource.Conditions{final}}, resource.TaskRunning, "", []string{"Scheduled"}},
		{"waiting", resource.TaskSpec{Generation: 1}, &view{observed: 1, phase: resource.Creating, conditions: resource.Conditions{ok, bad}}, resource.TaskRunning, "", []string{"PlaneReady", "Scheduled"}},
		{"final", resource.TaskSpec{Generation: 1}, &view{observed: 1, phase: resource.Creating, conditions: resource.Conditions{ok, final}}, resource.TaskFailed, "No node has room.", []string{"PlaneReady", "Scheduled"}},
		{"failed", resource.TaskSpec{Generation: 1}, &view{observed: 1, phase: resource.Failed, conditions: resource.Conditions{ok, bad}}, resource.TaskFailed, "No node has room.", []string{"PlaneReady", "Scheduled"}},
		{"failed without a reason", resource.TaskSpec{Generation: 1}, &view{observed: 1, phase: resource.Failed}, resource.TaskFailed, "The workspace acme/web/shop has failed.", nil},
		{"gone before", resource.TaskSpec{Generation: 1}, nil, resource.TaskFailed, "The workspace acme/web/shop was deleted before this was done.", nil},
		{"being deleted", resource.TaskSpec{Generation: 1}, &view{meta: resource.Meta{DeletedAt: &deleted}, observed: 1, phase: resource.Ready}, resource.TaskFailed, "The workspace acme/web/shop is being deleted.", nil},
		{"another of that name", resource.TaskSpec{Generation: 1, TargetUID: "a"}, &view{meta: resource.Meta{UID: "b"}, observed: 1, phase: resource.Ready}, resource.TaskFailed, "The workspace acme/web/shop was deleted before this was done.", nil},
		{"removing", resource.TaskSpec{Gone: true}, &view{meta: resource.Meta{DeletedAt: &deleted}, phase: resource.Deleting, conditions: resource.Conditions{ok, final}}, resource.TaskRunning, "", []string{"Scheduled"}},
		{"removed", resource.TaskSpec{Gone: true}, nil, resource.TaskDone, "", nil},
		{"removed and made anew", resource.TaskSpec{Gone: true, TargetUID: "a"}, &view{meta: resource.Meta{UID: "b"}}, resource.TaskDone, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			task := &resource.Task{Spec: tt.spec}
			task.Spec.Kind, task.Spec.Target, task.CreatedAt = "workspaces", "acme/web/shop", began
			task.Status.State = resource.TaskRunning
			got := progress(task, tt.target.workspace(), after)
			var steps []string
			for _, s := range got.Steps {
				steps = append(steps, s.Type)
			}
			if got.State != tt.state || got.Message != tt.text || !slices.Equal(steps, tt.steps) || (got.EndedAt != nil) != (tt.state != resource.TaskRunning) {
				t.Errorf("got %s %q steps %v ended %v; want %s %q steps %v", got.State, got.Message, steps, got.EndedAt, tt.state, tt.text, tt.steps)
			}
		})
	}
}

func TestIDsSortByTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a, b := newID(now), newID(now.Add(time.Millisecond))
	if a >= b || len(a) != 26 || newID(now) == a {
		t.Errorf("ids %s, %s: want 26 characters, sorted by time, never twice", a, b)
	}
}

type fixture struct {
	*Tasks
	st *store.Store
}

func start(t *testing.T, cfg Config) fixture {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = storetest.New(t)
	}
	ts := New(cfg)
	parttest.Run(t, ts.Run)
	return fixture{ts, cfg.Store}
}

func workspace(name string) *resource.Workspace {
	w := &resource.Workspace{InOrganization: resource.InOrganization{Account: "acme", Organization: "web"}}
	w.Name = name
	w.Spec.Machines = 1
	return w
}

// follow returns the last state of a task, and how often it was told. It calls begun,
// if there is one, when it was told for the first time.
func follow(t *testing.T, ts *Tasks, id string, begun ...func()) (last *resource.Task, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for task, err := range ts.Follow(ctx, id) {
		if err != nil {
			t.Fatalf("follow: %v", err)
		}
		last = task
		if times++; times == 1 {
			for _, f := range begun {
				f()
			}
		}
	}
	return last, times
}

func TestLifeOfATask(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	ts := start(t, Config{})
	w := workspace("shop")
	task, begin := ts.Begin("workspace.create", "ann@acme.example", w)
	if err := ts.st.Commit(ctx, store.Of[resource.Workspace](ts.st).CreateOp(w), begin); err != nil {
		t.Fatal(err)
	}
	if task.Spec.Account != "acme" || task.Spec.TargetUID != w.UID || task.Spec.Generation != 1 || task.Spec.Kind != "workspaces" {
		t.Fatalf("task: %+v", task.Spec)
	}

	// The controller's part.
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		<-begun
		for _, c := range []string{resource.WorkspaceNetworkReady, resource.WorkspacePlaneReady, ""} {
			if _, err := store.Of[resource.Workspace](ts.st).Modify(ctx, w.Key(), func(w *resource.Workspace) error {
				w.Status.ObservedGeneration = w.Generation
				w.Status.Phase = resource.Creating
				if c == "" {
					w.Status.Phase = resource.Ready
				} else {
					w.Status.Conditions.Set(resource.Condition{Type: c, Status: resource.True})
				}
				return nil
			}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	last, times := follow(t, ts.Tasks, task.Name, func() { close(begun) })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if last.Status.State != resource.TaskDone || len(last.Status.Steps) != 2 || last.Status.EndedAt == nil || times < 2 {
		t.Errorf("after %d changes: %+v, want it done with two steps", times, last.Status)
	}
	// Following what has ended gives it once.
	if _, times := follow(t, ts.Tasks, task.Name); times != 1 {
		t.Errorf("an ended task was told %d times, want once", times)
	}

	// A change that never comes true, and a deletion that overtakes it.
	w, err := store.Of[resource.Workspace](ts.st).Get(ctx, w.Key())
	if err != nil {
		t.Fatal(err)
	}
	w.Spec.Machines = 9
	change, begin := ts.Begin("workspace.scale", "ann@acme.example", w)
	if err := ts.st.Commit(ctx, store.Of[resource.Workspace](ts.st).UpdateOp(w), begin); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	w.DeletedAt = &now
	removal, begin := ts.Begin("workspace.delete", "ann@acme.example", w)
	if err := ts.st.Commit(ctx, store.Of[resource.Workspace](ts.st).UpdateOp(w), begin); err != nil {
		t.Fatal(err)
	}
	if last, _ := follow(t, ts.Tasks, change.Name); last.Status.State != resource.TaskFailed || last.Spec.Generation != 2 {
		t.Errorf("overtaken: %+v, want it failed", last)
	}
	if err := store.Of[resource.Workspace](ts.st).Delete(ctx, workspace("shop")); err != nil {
		t.Fatal(err)
	}
	if last, _ := follow(t, ts.Tasks, removal.Name); last.Status.State != resource.TaskDone {
		t.Errorf("removal: %+v, want it done", last.Status)
	}
	for _, err := range ts.Follow(ctx, "nosuch") {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("follow of no task: %v, want ErrNotFound", err)
		}
	}
}

// TestRestart has tasks begin and their resource change while nothing mirrors.
func TestRestart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := storetest.New(t)
	w := workspace("shop")
	task, begin := New(Config{Store: st}).Begin("workspace.create", "ann", w)
	if err := st.Commit(ctx, store.Of[resource.Workspace](st).CreateOp(w), begin); err != nil {
		t.Fatal(err)
	}
	w.Status.ObservedGeneration, w.Status.Phase = 1, resource.Ready
	if err := store.Of[resource.Workspace](st).Update(ctx, w); err != nil {
		t.Fatal(err)
	}
	n := &resource.Node{}
	n.Name, n.DeletedAt = "host1", new(time.Now())
	removal, begin := New(Config{Store: st}).Begin("node.remove", "root", n)
	if err := st.Commit(ctx, begin); err != nil {
		t.Fatal(err)
	}
	ts := start(t, Config{Store: st})
	for _, id := range []string{task.Name, removal.Name} {
		if last, _ := follow(t, ts.Tasks, id); last.Status.State != resource.TaskDone {
			t.Errorf("%s: %+v, want it done", last.Spec.Operation, last.Status)
		}
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ts := start(t, Config{KeepEnded: 3, KeepFor: time.Hour})
	add := func(i int, account string, state resource.TaskState, ended time.Time) string {
		task := &resource.Task{}
		task.Name = account + "-" + newID(time.UnixMilli(int64(1000+i)))
		task.Spec = resource.TaskSpec{Account: account, Kind: "apps", Target: fmt.Sprintf("%s/web/shop/a%d", account, i%2)}
		task.Status.State = state
		if state != resource.TaskRunning {
			task.Status.EndedAt = &ended
		}
		if err := store.Of[resource.Task](ts.st).Create(ctx, task); err != nil {
			t.Fatal(err)
		}
		return task.Name
	}
	now := time.Now()
	var acme []string
	for i := range 6 {
		acme = append(acme, add(i, "acme", resource.TaskDone, now))
	}
	old := add(6, "umbrella", resource.TaskFailed, now.Add(-2*time.Hour))
	young := add(7, "umbrella", resource.TaskFailed, now)
	wait := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			if ctx.Err() != nil {
				t.Fatalf("%s: not so after 20 s", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	names := func(account string) (names []string) {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		for key := range ts.running {
			names = append(names, nameOf(key))
		}
		for _, ended := range ts.ended {
			for key := range ended {
				names = append(names, nameOf(key))
			}
		}
		slices.Sort(names)
		return slices.DeleteFunc(names, func(name string) bool { return account != "" && !strings.HasPrefix(name, account+"-") })
	}
	running := add(8, "umbrella", resource.TaskRunning, now)
	// It is told of the last one last. Some of acme's may be gone by then.
	wait("all are known", func() bool { return slices.Contains(names(""), running) })
	if err := ts.prune(ctx, now); err != nil {
		t.Fatal(err)
	}
	wait("old ones are gone", func() bool { return len(names("")) == 5 })
	if got := names("acme"); !slices.Equal(got, acme[3:]) {
		t.Errorf("kept %v, want the newest %v", got, acme[3:])
	}
	if got := names("umbrella"); !slices.Equal(got, []string{young, running}) {
		t.Errorf("kept %v, want %v and %v, not %v", got, young, running, old)
	}
}

// TestReplaced: one who asks again and again for something that doesn't come true
// has one task that runs.
func TestReplaced(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	ts := start(t, Config{KeepEnded: 8})
	w := workspace("shop")
	_, begin := ts.Begin("workspace.create", "ann", w)
	if err := ts.st.Commit(ctx, store.Of[resource.Workspace](ts.st).CreateOp(w), begin); err != nil {
		t.Fatal(err)
	}
	const many = 50
	var names []string
	for i := range many {
		w.Spec.Machines = i + 2
		change, begin := ts.Begin("workspace.scale", "ann", w)
		if err := ts.st.Commit(ctx, store.Of[resource.Workspace](ts.st).UpdateOp(w), begin); err != nil {
			t.Fatal(err)
		}
		names = append(names, change.Name)
	}
	tasks := func() []*resource.Task {
		all, _, err := store.Of[resource.Task](ts.st).List(ctx, "acme", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	wait.For(t, wait.Patience, "one runs and the others have ended, of which the latest are kept", func(context.Context) error {
		all := tasks()
		for _, t := range all[:len(all)-1] {
			if t.Status.State != resource.TaskReplaced || t.Status.ReplacedBy <= t.Name || t.Status.EndedAt == nil || t.Status.Message == "" {
				return fmt.Errorf("%s: %+v", t.Name, t.Status)
			}
		}
		if last := all[len(all)-1]; last.Name != names[many-1] || last.Status.State != resource.TaskRunning {
			return fmt.Errorf("the last one, %s: %+v", last.Name, last.Status)
		}
		if len(all) > 8+8/4+1 {
			return fmt.Errorf("there are %d tasks", len(all))
		}
		return nil
	})
	// What was asked for last comes true.
	if _, err := store.Of[resource.Workspace](ts.st).Modify(ctx, w.Key(), func(w *resource.Workspace) error {
		w.Status.ObservedGeneration, w.Status.Phase = w.Generation, resource.Ready
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if last, _ := follow(t, ts.Tasks, names[many-1]); last.Status.State != resource.TaskDone {
		t.Errorf("the last one: %+v, want it done", last.Status)
	}
}

// TestLastChange: of two that were begun at once the one goes on whose commit came last.
func TestLastChange(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	ts := start(t, Config{})
	w := workspace("shop")
	workspaces := store.Of[resource.Workspace](ts.st)
	if err := workspaces.Create(ctx, w); err != nil {
		t.Fatal(err)
	}
	w.Spec.Machines = 3
	late, beginLate := ts.Begin("workspace.scale", "ann", w)
	early, beginEarly := ts.Begin("workspace.scale", "bob", w)
	for i, begin := range []store.Op{beginEarly, beginLate} {
		w.Spec.Machines = 4 + i
		if err := ts.st.Commit(ctx, workspaces.UpdateOp(w), begin); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, wait.Patience, "the earlier change's task is replaced by the later one's", func(context.Context) error {
		got, err := store.Of[resource.Task](ts.st).Get(ctx, early.Key())
		if err == nil && got.Status.ReplacedBy != late.Name {
			err = fmt.Errorf("%+v", got.Status)
		}
		return err
	})
	if got, err := store.Of[resource.Task](ts.st).Get(ctx, late.Key()); err != nil || got.Status.State != resource.TaskRunning {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestEarlierKeys: tasks that an earlier version has left, under no account, are found
// and go on, also after a move that was done in part.
func TestEarlierKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	etcd := storetest.Start(t)
	st := store.New(etcd.Client)
	w := workspace("shop")
	if err := store.Of[resource.Workspace](st).Create(ctx, w); err != nil {
		t.Fatal(err)
	}
	old := newID(time.Now())
	of := newID(time.Now())
	for name, spec := range map[string]resource.TaskSpec{
		old: {Operation: "workspace.create", Kind: "workspaces", Target: w.Key(), TargetUID: w.UID, Account: "acme", Generation: 1},
		of:  {Operation: "node.remove", Kind: "nodes", Target: "host1", Gone: true},
	} {
		task := &resource.Task{Meta: resource.Meta{Name: name}, Spec: spec, Status: resource.TaskStatus{State: resource.TaskRunning}}
		if err := store.Of[resource.Task](st).Create(ctx, task); err != nil {
			t.Fatal(err)
		}
	}
	// One that nobody can read keeps none of the others.
	if _, err := etcd.Client.Put(ctx, store.Root+"tasks/00-broken", "{"); err != nil {
		t.Fatal(err)
	}
	ts := start(t, Config{Store: st})
	if last, _ := follow(t, ts.Tasks, "_-"+of); last.Status.State != resource.TaskDone {
		t.Errorf("the platform's own: %+v, want it done", last.Status)
	}
	w.Status.ObservedGeneration, w.Status.Phase = 1, resource.Ready
	if err := store.Of[resource.Workspace](st).Update(ctx, w); err != nil {
		t.Fatal(err)
	}
	if last, _ := follow(t, ts.Tasks, "acme-"+old); last.Status.State != resource.TaskDone {
		t.Errorf("acme's: %+v, want it done", last.Status)
	}
	if left, err := store.Of[resource.Task](st).Keys(ctx, ""); err != nil || !slices.Equal(left, []string{"00-broken", "_/" + of, "acme/" + old}) {
		t.Errorf("keys %v, %v", left, err)
	}
}
