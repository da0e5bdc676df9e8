package plane

import (
	"context"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/endpoint"
	"github.com/sirupsen/logrus"
)

// kine is the datastore in this process.
type kine struct {
	cfg   KineConfig
	ready chan struct{}
}

func newKine(cfg KineConfig) *kine { return &kine{cfg: cfg, ready: make(chan struct{})} }

func (k *kine) run(ctx context.Context) error {
	logrus.SetLevel(logrus.WarnLevel) // it says each compaction at info
	if k.cfg.File != "" {
		if err := prepareSQLite(k.cfg.File); err != nil {
			return err
		}
	}
	var served sync.WaitGroup
	_, err := endpoint.Listen(ctx, endpoint.Config{
		WaitGroup: &served,
		// kine takes the path of "unix:/x" for relative: two slashes.
		Listener: "unix://" + k.cfg.Socket,
		Endpoint: k.cfg.Endpoint,
		ConnectionPoolConfig: generic.ConnectionPoolConfig{
			MaxIdle:     20,
			MaxIdleTime: 2 * time.Minute,
		},
		// What follows are the defaults of kine's own command, which its library
		// does not set.
		NotifyInterval:      5 * time.Second,
		EmulatedETCDVersion: "3.6.11",
		// No compaction of its own: then it does what the API server asks for every
		// five minutes, and what the budget asks for when room is short. 200
		// revisions at a time, since each may have a megabyte.
		CompactInterval:  0,
		CompactTimeout:   30 * time.Second,
		CompactMinRetain: 1, // the budget compacts all when room is short
		CompactBatchSize: 200,
		PollBatchSize:    500,
	})
	if err != nil {
		return damaged(k.cfg.File, err)
	}
	close(k.ready)
	<-ctx.Done()
	served.Wait()
	return nil
}

func (k *kine) awaitReady(ctx context.Context) error {
	select {
	case <-k.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
