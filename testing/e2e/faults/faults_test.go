package faults

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

// long says whether to take hours and not minutes.
func long() bool { return os.Getenv("MULTIPAAS_LONG") != "" }

// total counts what both tests of this package have gone through.
var total counts

type counts struct {
	mu                   sync.Mutex
	walked, lost, leaked int
}

// tell leaves the line of counts. Who ends last has the whole sum.
func (c *counts) tell(t testing.TB) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dctest.Count(t, "faults", "faults: %d points walked, %d lost, %d leaked", c.walked, c.lost, c.leaked)
}

// suite is a datacenter whose processes are killed.
type suite struct {
	*dctest.Datacenter
	services map[string]lab.Service // of each host, as it runs when nothing is broken
	logged   map[string]int64       // bytes in a host's log when its service was last started
	points   map[string]bool        // those that were gone through
}

func newSuite(d *dctest.Datacenter) *suite {
	return &suite{Datacenter: d, services: map[string]lab.Service{}, logged: map[string]int64{}, points: map[string]bool{}}
}

// part is one that can be run alone: -run TestFaults/NAME.
type part struct {
	name string
	test func(*testing.T, *suite)
}

// run says whether the part was good.
func (s *suite) run(t *testing.T, p part) bool {
	began := time.Now()
	defer func() { t.Logf("%s took %s", p.name, time.Since(began).Round(time.Second)) }()
	return t.Run(p.name, func(t *testing.T) {
		defer s.Tell(t)
		p.test(t, s)
	})
}

// TestFaults breaks a datacenter from outside.
func TestFaults(t *testing.T) {
	t.Parallel() // with TestWalk, which has hosts of its own: both wait most of the time
	defer total.tell(t)
	s := newSuite(dctest.Start(t, "faults"))
	for _, p := range []part{
		{"storage", testStorage},
		{"kills", testKills},
		{"network", testNetwork},
		{"history", testHistory},
		{"files", testFiles},
	} {
		s.run(t, p)
	}
}

// count counts a point, or another fault, that was gone through.
func (s *suite) count(point string) {
	total.mu.Lock()
	defer total.mu.Unlock()
	total.walked++
	s.points[point] = true
}

// losing counts and reports a state that was not reached again, or a write
// that is gone.
func (s *suite) losing(t testing.TB, format string, values ...any) {
	t.Helper()
	total.mu.Lock()
	total.lost++
	total.mu.Unlock()
	t.Errorf("lost: %s", fmt.Sprintf(format, values...))
}

// leaking counts and reports what stayed behind.
func (s *suite) leaking(t testing.TB, format string, values ...any) {
	t.Helper()
	total.mu.Lock()
	total.leaked++
	total.mu.Unlock()
	t.Errorf("leaked: %s", fmt.Sprintf(format, values...))
}
