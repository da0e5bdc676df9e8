package e2e

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/e2e/storage"
	"github.com/multipaas/multipaas/testing/lab"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

const (
	domain  = datacenter.Domain
	appHost = datacenter.AppHost

	admin     = datacenter.Admin
	owner     = datacenter.Owner
	developer = dctest.Developer
	rival     = dctest.Rival
)

// suite is the datacenter that all tests share.
type suite struct{ *dctest.Datacenter }

// TestDatacenter runs the parts in an order: what takes a while is begun early,
// what breaks things comes late, deletion last. Each part can be run alone.
func TestDatacenter(t *testing.T) {
	d := &suite{dctest.Start(t, "e2e")}
	d.BeginBox(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"up", testUp},
		{"kubectl", testKubectl},
		{"registry", testRegistry},
		{"cluster", testCluster},
		{"workloads", testWorkloads},
		{"storage", func(t *testing.T, d *suite) { storage.Short(t, d.Datacenter) }},
		{"isolation", testIsolation},
		{"policy", testPolicy},
		{"input", testInput},
		{"join", testJoin},
		{"recovery", testRecovery},
		{"delete", testDelete},
	} {
		began := time.Now()
		t.Run(part.name, func(t *testing.T) {
			defer d.Tell(t)
			part.test(t, d)
		})
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// sideBySide runs tests that wait, more of them than there are processors, which is all
// that t.Parallel has at once.
func sideBySide(t *testing.T, tests map[string]func(*testing.T)) {
	t.Helper()
	var all sync.WaitGroup
	for what, test := range tests {
		all.Go(func() { t.Run(what, test) })
	}
	all.Wait()
}
