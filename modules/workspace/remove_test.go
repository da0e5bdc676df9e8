package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// noPlanes and noNetworks: nothing of a workspace is on this server.
type noPlanes struct{ Planes }

func (noPlanes) List() ([]string, error) { return nil, nil }

type noNetworks struct{ Networks }

func (noNetworks) Attached() ([]string, error) { return nil, nil }

// TestRemovalWaitsForWhatIsInside: the end of the last app, which others take away,
// is the only thing that takes the removal further.
func TestRemovalWaitsForWhatIsInside(t *testing.T) {
	st := storetest.New(t)
	ctx, stop := context.WithCancel(t.Context())
	workspaces, apps := store.Of[resource.Workspace](st), store.Of[resource.App](st)
	w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	app := &resource.App{InWorkspace: resource.NewInWorkspace(w.Key(), "hello")}
	if err := st.Commit(ctx, workspaces.CreateOp(w), apps.CreateOp(app)); err != nil {
		t.Fatal(err)
	}
	if _, err := workspaces.MarkDeleted(ctx, w.Key()); err != nil {
		t.Fatal(err)
	}

	cfg := Config{
		Log:        slog.New(slog.DiscardHandler),
		Store:      st,
		Planes:     noPlanes{},
		Networks:   noNetworks{},
		Workspaces: workspaces.Cache(nil),
		Machines:   store.Of[resource.Machine](st).Cache(nil),
		Nodes:      store.Of[resource.Node](st).Cache(nil),
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, run := range []func(context.Context, func()) error{cfg.Workspaces.Run, cfg.Machines.Run, cfg.Nodes.Run, New(cfg).Run} {
		ready := make(chan struct{})
		wg.Go(func() {
			if err := run(ctx, func() { close(ready) }); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
		<-ready
	}

	eventually := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after a minute: not %s", what)
			}
		}
	}
	eventually("said what it waits for", func() bool {
		now, err := workspaces.Get(ctx, w.Key())
		if err != nil {
			t.Fatal(err)
		}
		cond := now.Status.Conditions.Get("MachinesRemoved")
		return cond != nil && cond.Message == "apps are being taken away" && now.Status.Phase == resource.Deleting
	})
	marked, err := apps.Get(ctx, app.Key())
	if err != nil || !marked.Deleting() {
		t.Fatalf("the app is not marked: %+v, %v", marked, err)
	}
	if err := apps.Delete(ctx, marked); err != nil {
		t.Fatal(err)
	}
	eventually("gone", func() bool {
		_, err := workspaces.Get(ctx, w.Key())
		return errors.Is(err, store.ErrNotFound)
	})
}

// TestLatePassSparesTheNextWorkspace: a pass that comes when its workspace is gone and
// another one has the name takes no machine of that one away.
func TestLatePassSparesTheNextWorkspace(t *testing.T) {
	st, ctx := storetest.New(t), t.Context()
	workspaces, machines := store.Of[resource.Workspace](st), store.Of[resource.Machine](st)
	shop := func() *resource.Workspace {
		return &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	}
	gone, next := shop(), shop()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(workspaces.Create(ctx, gone))
	must(workspaces.Delete(ctx, gone))
	c := &Controller{cfg: Config{Store: st, Log: slog.New(slog.DiscardHandler)}}
	for _, there := range []bool{false, true} {
		if there {
			must(workspaces.Create(ctx, next))
		}
		runs := &resource.Machine{InWorkspace: resource.NewInWorkspace(next.Key(), fmt.Sprintf("shop-%v", there))}
		ends := &resource.Machine{InWorkspace: resource.NewInWorkspace(next.Key(), fmt.Sprintf("ends-%v", there))}
		ends.Status.Conditions.Set(resource.Condition{Type: resource.MachineRemoved, Status: resource.True})
		must(st.Commit(ctx, machines.CreateOp(runs), machines.CreateOp(ends)))
		if _, err := c.removeMachines(ctx, gone); there != errors.Is(err, store.ErrConflict) {
			t.Errorf("with another workspace there %v: %v", there, err)
		}
		m, err := machines.Get(ctx, runs.Key())
		must(err)
		if _, err := machines.Get(ctx, ends.Key()); err != nil || m.Deleting() {
			t.Errorf("with another workspace there %v: a machine is marked %v, another one: %v", there, m.Deleting(), err)
		}
	}
	if _, err := workspaces.MarkDeleted(ctx, next.Key()); err != nil {
		t.Fatal(err)
	}
	if left, err := c.removeMachines(ctx, next); err != nil || left != 2 {
		t.Errorf("its own pass leaves %d, %v, want 2", left, err)
	}
	if m, err := machines.Get(ctx, next.Key()+"/shop-true"); err != nil || !m.Deleting() {
		t.Errorf("its own pass: %+v, %v", m, err)
	}
}
