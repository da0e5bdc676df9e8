package faults

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

// long says whether to take hours and not minutes.
func long() bool { return os.Getenv("MULTIPAAS_LONG") != "" }

// suite is the datacenter that all tests of this package share, and the counts.
type suite struct {
	*datacenter.Datacenter
	services map[string]lab.Service // of each host, as it runs when nothing is broken
	logged   map[string]int64       // bytes in a host's log when its service was last started

	mu                   sync.Mutex
	walked, lost, leaked int
	points               map[string]bool
}

// parts are walked in this order; each can be run alone.
var parts = []struct {
	name string
	test func(*testing.T, *suite)
}{
	{"walk", testWalk},
	{"kills", testKills},
	{"network", testNetwork},
	{"files", testFiles},
}

// TestFaults runs the parts on one datacenter.
func TestFaults(t *testing.T) {
	s := &suite{services: map[string]lab.Service{}, logged: map[string]int64{}, points: map[string]bool{}}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		datacenter.Count(t, "faults", "faults: %d points walked, %d lost, %d leaked", s.walked, s.lost, s.leaked)
	}()
	s.Datacenter = datacenter.Start(t, "faults")
	for _, part := range parts {
		began := time.Now()
		t.Run(part.name, func(t *testing.T) {
			defer s.Tell(t)
			part.test(t, s)
		})
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// count counts a point, or another fault, that was gone through.
func (s *suite) count(point string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.walked++
	s.points[point] = true
}

// losing counts and reports a state that was not reached again, or a write
// that is gone.
func (s *suite) losing(t testing.TB, format string, values ...any) {
	t.Helper()
	s.mu.Lock()
	s.lost++
	s.mu.Unlock()
	t.Errorf("lost: %s", fmt.Sprintf(format, values...))
}

// leaking counts and reports what stayed behind.
func (s *suite) leaking(t testing.TB, format string, values ...any) {
	t.Helper()
	s.mu.Lock()
	s.leaked++
	s.mu.Unlock()
	t.Errorf("leaked: %s", fmt.Sprintf(format, values...))
}
