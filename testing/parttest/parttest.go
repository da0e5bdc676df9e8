// Package parttest runs parts of the appliance in tests.
//
// Parties: tests of packages with a Run method, as appliance/lifecycle wants it.
package parttest

import (
	"context"
	"sync"
	"testing"
	"time"
)

// patience is for a part that gets ready, on a machine that does other things.
const patience = 4 * time.Minute

// Run runs a part until stop is called, or the test ends, and returns when it is
// ready. A part that ends by itself or with an error fails the test.
func Run(t testing.TB, run func(ctx context.Context, ready func()) error) (stop func()) {
	t.Helper()
	// Not the test's own context, which is done before the test's clean-up.
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
		t.Cleanup(stop)
	case err := <-ended:
		cancel()
		t.Fatalf("Run returned before it was ready: %v", err)
	case <-time.After(patience):
		cancel()
		t.Fatalf("not ready within %s", patience)
	}
	return stop
}
