package workspace

import (
	"context"
	"log/slog"
	"testing"
	"time"

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
