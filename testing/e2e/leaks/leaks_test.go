// Package leaks makes, uses and deletes a workspace with two machines again and
// again, and looks at every host for what stays behind; and it plants what nobody
// wants to see `multipaas doctor` name and remove it. MULTIPAAS_LONG=1 makes it
// 50 rounds in place of 3.
package leaks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/appliance/doctor"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

// TestLeaks has one datacenter for all.
func TestLeaks(t *testing.T) {
	d := dctest.Start(t, "leaks")
	defer d.Tell(t)
	rounds, found := 3, 0
	if os.Getenv("MULTIPAAS_LONG") != "" {
		rounds = 50
	}
	done := 0
	defer func() { dctest.Count(t, "leaks", "leaks: %d rounds, %d found", done, found) }()
	t.Run("rounds", func(t *testing.T) { found = testRounds(t, d, rounds, &done) })
	t.Run("doctor", func(t *testing.T) { testDoctor(t, d) })
}

// testRounds returns how many leaks it found. The first round warms everything
// up: caches, connections, files that are made once.
func testRounds(t *testing.T, d *dctest.Datacenter, rounds int, done *int) (found int) {
	_, program := d.PushProgram(t, "leaf", "./embed/images/hello")
	round(t, d, program, 1)
	*done = 1
	collectGarbage(t, d) // starts the server again: gauges begin after it
	settle(t, d)
	before := d.MustInventories(t)
	series := map[string][]int64{} // gauges, by round
	note(series, before)
	for n := 2; n <= rounds; n++ {
		round(t, d, program, n)
		*done = n
		settle(t, d)
		note(series, d.MustInventories(t))
	}
	collectGarbage(t, d)
	leaks := d.Leaks(t, time.Minute, before)
	growing := func() (found []string) {
		for _, name := range slices.Sorted(mapKeys(series)) {
			if grows(name, series[name]) {
				found = append(found, fmt.Sprintf("%s grows: %v", name, series[name]))
			}
		}
		return found
	}
	// Idle connections go within a minute or two, and etcd's log of the last writes
	// with its next snapshot: what grows is looked at again, as the last round's.
	for end := time.Now().Add(2 * time.Minute); len(growing()) > 0 && time.Now().Before(end); time.Sleep(10 * time.Second) {
		for host, inv := range d.MustInventories(t) {
			for name, value := range inv.Gauges {
				values := series[host+": "+name]
				values[len(values)-1] = min(value, values[len(values)-1])
			}
		}
	}
	for _, name := range slices.Sorted(mapKeys(series)) {
		t.Logf("%s: %v", name, series[name])
	}
	leaks = append(leaks, growing()...)
	for _, l := range leaks {
		t.Error("leaked: ", l)
	}
	return len(leaks)
}

// round makes a workspace of its own name with two machines and a volume, pushes an
// image that nobody has, deploys it, asks it and takes all away.
func round(t *testing.T, d *dctest.Datacenter, program v1.Image, n int) {
	t.Helper()
	began := time.Now()
	name := fmt.Sprintf("round%d", n)
	// Each second one keeps its cluster in the platform's etcd, with a user there.
	kind := []string{"etcd", "kine"}[n%2]
	d.Must(t, datacenter.Owner, "ws", "create", name, "--machines", "2", "--cpu", "500m", "--memory", "1Gi", "--disk", "4Gi", "--datastore", kind, "--timeout", "5m")
	d.Must(t, datacenter.Owner, "volumes", "create", "leaf", "-w", name, "--size", "320Mi", "--timeout", "5m")
	push(t, d, program, name)
	d.Must(t, datacenter.Owner, "apps", "deploy", "leaf", "-w", name, "--image", name+":1", "--port", "8080", "--instances", "1", "--timeout", "5m")
	client := d.Client()
	host := "https://leaf." + name + ".web.acme." + datacenter.Domain + "/"
	wait.For(t, wait.Patience, host+" answers", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, host, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	d.Must(t, datacenter.Owner, "apps", "delete", "leaf", "-w", name, "--yes", "--timeout", "5m")
	d.Must(t, datacenter.Owner, "ws", "delete", name, "--yes", "--timeout", "5m")
	trash := strings.TrimSpace(d.Must(t, datacenter.Owner, "volumes", "trash", "list", "-o", "name"))
	d.Must(t, datacenter.Owner, "volumes", "trash", "purge", trash, "--yes", "--timeout", "5m")
	d.Must(t, datacenter.Owner, "images", "delete", name, "--yes")
	t.Logf("round %d (%s) took %s", n, kind, time.Since(began).Round(time.Second))
}

// push pushes the program as acme/web/NAME:1, with a layer of chance: its blobs
// are nobody else's.
func push(t *testing.T, d *dctest.Datacenter, program v1.Image, name string) {
	t.Helper()
	layer, err := random.Layer(1<<20, types.OCILayer)
	var image v1.Image
	if err == nil {
		image, err = mutate.AppendLayers(program, layer)
	}
	oci := filepath.Join(t.TempDir(), "oci")
	if err == nil {
		err = dctest.WriteLayout(oci, name, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := d.Skopeo(t, "auth-acme", "copy", "oci:"+oci+":"+name, "docker://"+d.Image("acme/web", name)); r.Code != 0 {
		t.Fatal(r)
	}
}

// collectGarbage waits until the registry holds no blob but those of the program.
func collectGarbage(t *testing.T, d *dctest.Datacenter) {
	t.Helper()
	if err := d.AgeRegistry(3 * 24 * time.Hour); err != nil {
		t.Fatal(err)
	}
	d.Restart(t, d.Server)
	const blobs = 3 // manifest, configuration and layer, which two accounts share
	wait.For(t, wait.Patience, "garbage is collected", func(ctx context.Context) error {
		inv, err := d.Inventory(ctx, d.Server)
		if n := inv.Number["registry blobs"]; err == nil && n != blobs {
			err = fmt.Errorf("the registry has %d blobs, want %d", n, blobs)
		}
		return err
	})
	// What watches the plane is counted too.
	d.Answers(t)
	d.NodesReady(t, 2)
}

// settle waits until no host has an orphan: a machine's last processes and
// mounts go a moment after its record.
func settle(t *testing.T, d *dctest.Datacenter) {
	t.Helper()
	for _, h := range d.Lab.Hosts() {
		wait.For(t, wait.Patience, h.Name()+" has no orphans", func(ctx context.Context) error {
			r, err := examine(ctx, h)
			if err == nil && len(r.Orphans) > 0 {
				err = fmt.Errorf("%d orphans, the first: %s %s: %s", len(r.Orphans), r.Orphans[0].Kind, r.Orphans[0].Name, r.Orphans[0].Why)
			}
			return err
		})
	}
}

// examine runs `multipaas doctor` on a host. Orphans are no error.
func examine(ctx context.Context, h *lab.Host, flags ...string) (doctor.Report, error) {
	var r doctor.Report
	out, err := h.Run(ctx, append([]string{"multipaas", "doctor", "-o", "json"}, flags...)...)
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		return r, errors.Join(err, jsonErr)
	}
	if healthy := r.Healthy(); healthy != (err == nil) {
		return r, fmt.Errorf("exit status of doctor: %v, but healthy is %v", err, healthy)
	}
	return r, nil
}

func note(series map[string][]int64, all map[string]inventory.Inventory) {
	for host, inv := range all {
		for name, value := range inv.Gauges {
			series[host+": "+name] = append(series[host+": "+name], value)
		}
	}
}

func mapKeys(m map[string][]int64) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// allowance is by how much a gauge may grow for each round, beside a constant
// that is noise: what is measured once, two rounds apart.
var allowance = []struct {
	name               string
	constant, perRound float64
}{
	{"goroutines", 40, 0.5},                  // watches and connections come and go; one round makes 60
	{"open files", 20, 0.5},                  // the same
	{"live heap bytes", 12 << 20, 80e3},      // after collection; a watch cache of one plane is 2 MiB, task records are kept
	{"bytes of etcd in use", 6 << 20, 400e3}, // revisions of five minutes are kept, and tasks
}

// grows says whether the last third of a series is above its first by more than
// its allowance. Medians, so that one value that stands out says nothing.
func grows(name string, values []int64) bool {
	if len(values) < 2 {
		return false
	}
	third := max(1, len(values)/3)
	median := func(v []int64) float64 { s := slices.Sorted(slices.Values(v)); return float64(s[len(s)/2]) }
	growth := median(values[len(values)-third:]) - median(values[:third])
	for _, a := range allowance {
		if strings.Contains(name, ": "+a.name) {
			return growth > a.constant+a.perRound*float64(len(values))
		}
	}
	return false
}

// TestGrows: the bounds let noise pass and catch a leak of every round.
func TestGrows(t *testing.T) {
	leaking := func(start, perRound int64, rounds int) (v []int64) {
		for n := range rounds {
			v = append(v, start+perRound*int64(n)+int64(n%3))
		}
		return v
	}
	for _, c := range []struct {
		name   string
		values []int64
		want   bool
	}{
		{"server: goroutines of server", leaking(260, 0, 50), false},
		{"server: goroutines of server", leaking(260, 3, 50), true},
		{"server: goroutines of server", leaking(260, 60, 3), true},
		{"node1: open files of node", leaking(30, 2, 50), true},
		{"server: live heap bytes of server", leaking(10<<20, 1<<20, 50), true},
		{"server: live heap bytes of server", leaking(10<<20, 10_000, 50), false},
	} {
		if got := grows(c.name, c.values); got != c.want {
			t.Errorf("%s %v: grows is %v, want %v", c.name, c.values, got, c.want)
		}
	}
}
