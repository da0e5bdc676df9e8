package workspace

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// slowPlane is told of its machines when the disk lets it.
type slowPlane struct {
	Plane
	told, disk chan struct{}
}

func (p *slowPlane) SetMachines([]string) error {
	p.told <- struct{}{}
	<-p.disk
	return nil
}

// TestTellPlanes: a plane hears of its machines while another's disk hangs.
func TestTellPlanes(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	c := &Controller{cfg: Config{Log: log, Machines: store.Of[resource.Machine](storetest.New(t)).Cache(log)}, runs: map[string]*run{}}
	ctx, cancel := context.WithCancel(t.Context())
	planes := map[string]*slowPlane{}
	for _, key := range []string{"acme/web/hangs", "acme/web/works", "acme/web/untouched"} {
		p := &slowPlane{told: make(chan struct{}, 9), disk: make(chan struct{})}
		r := &run{key: key, changed: make(chan struct{}, 1), live: live{plane: p}}
		planes[key], c.runs[key] = p, r
		c.wg.Go(func() { c.tellPlane(ctx, r) })
	}
	defer c.wg.Wait()
	defer cancel()
	close(planes["acme/web/works"].disk)
	for _, key := range []string{"acme/web/hangs", "acme/web/works"} {
		c.machinesChanged(key)
		select {
		case <-planes[key].told:
		case <-time.After(20 * time.Second):
			t.Errorf("%s is not told", key)
		}
	}
	if len(planes["acme/web/untouched"].told) > 0 {
		t.Error("a workspace is told of another's machines")
	}
	close(planes["acme/web/hangs"].disk)
	close(planes["acme/web/untouched"].disk)
}

// TestPlanesThatEndedAreToldNothing: what is told lies in the plane's folder, which its
// removal takes away, for good.
func TestPlanesThatEndedAreToldNothing(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	c := &Controller{cfg: Config{Log: log, Machines: store.Of[resource.Machine](storetest.New(t)).Cache(log)}, runs: map[string]*run{}}
	p := &slowPlane{told: make(chan struct{}, 9), disk: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &run{key: "acme/web/shop", changed: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}), live: live{plane: p}}
	close(r.done)
	c.runs["00002a"] = r
	c.wg.Go(func() { c.tellPlane(ctx, r) })
	c.machinesChanged(r.key)
	<-p.told // and the disk hangs
	stopped := make(chan struct{})
	go func() { defer close(stopped); c.end("00002a") }()
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, child.ErrUnneeded) {
		t.Errorf("it is stopped because of %v", cause)
	}
	select {
	case <-stopped:
		t.Error("stopped while the plane is told something")
	default:
	}
	close(p.disk)
	<-stopped
	c.wg.Wait()
	if err := r.setMachines(func(string) []string { return []string{"later"} }); err != nil || len(p.told) > 0 {
		t.Errorf("after its end it is told %d times more, %v", len(p.told), err)
	}
	if err := r.setShare(share{limit: 1}); err != nil { // its zero value would panic
		t.Error(err)
	}
}
