package lab

import (
	"context"
	"os"
	"time"
)

// TB is what ForTest needs of a *testing.T. Package testing itself would add
// its flags to the lab command.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// ForTest makes a lab that goes with the test. If the test has failed and
// MULTIPAAS_KEEP is "failure", it stays, and the test's log says how to look
// around.
func ForTest(t TB, opt Options) *Lab {
	t.Helper()
	if opt.Name == "" {
		opt.Name = t.Name()
	}
	if opt.Logf == nil {
		opt.Logf = t.Logf
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := New(ctx, opt)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("MULTIPAAS_KEEP") == "failure" {
			if err := l.KeepHosts(); err != nil {
				t.Errorf("keep lab: %v", err)
				return
			}
			t.Logf("kept the hosts of %s. To look around:", l.Name())
			for _, h := range l.Hosts() {
				if !h.Running() {
					t.Logf("  lab -C %s boot %s   # it is switched off", l.Dir(), h.Name())
					continue
				}
				t.Logf("  lab -C %s exec %s -- bash   # address %s, logs in %s", l.Dir(), h.Name(), h.Address(), h.Dir()+"/log")
			}
			t.Logf("  lab -C %s down   # when done", l.Dir())
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Errorf("lab: %v", err)
		}
	})
	return l
}
