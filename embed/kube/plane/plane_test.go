package plane

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
)

// record is the order in which things happen.
type record struct {
	mu     sync.Mutex
	events []string
}

func (r *record) add(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

// part runs until it is stopped, or until fail is closed.
func (r *record) part(name string, fail chan struct{}) part {
	started := make(chan struct{})
	return part{
		name: name,
		run: func(ctx context.Context) error {
			r.add("start " + name)
			close(started)
			select {
			case <-ctx.Done():
				r.add("stop " + name)
				return nil
			case <-fail:
				return errors.New("broken")
			}
		},
		ready: func(context.Context) error { <-started; return nil },
	}
}

func TestPartsStartAndStopInOrder(t *testing.T) {
	var r record
	ctx, cancel := context.WithCancel(context.Background())
	last := r.part("c", nil)
	ready := last.ready
	last.ready = func(ctx context.Context) error { defer cancel(); return ready(ctx) }
	if err := runParts(ctx, []part{r.part("a", nil), r.part("b", nil), last}); err != nil {
		t.Fatal(err)
	}
	want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}
	if !slices.Equal(r.events, want) {
		t.Errorf("got %v, want %v", r.events, want)
	}
}

func TestOnePartEndsAll(t *testing.T) {
	var r record
	fail := make(chan struct{})
	close(fail)
	err := runParts(context.Background(), []part{r.part("a", nil), r.part("b", fail)})
	if err == nil || err.Error() != "b: broken" {
		t.Errorf("got %v, want b: broken", err)
	}
	quiet := part{name: "quiet", run: func(context.Context) error { return nil }}
	if err := runParts(context.Background(), []part{quiet}); err == nil || !strings.Contains(err.Error(), "quiet: ended by itself") {
		t.Errorf("got %v, want that quiet ended by itself", err)
	}
}

func TestPartThatIsNeverReady(t *testing.T) {
	stuck := part{name: "stuck",
		run:   func(context.Context) error { return errors.New("no port") },
		ready: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	never := part{name: "never", run: func(context.Context) error { t.Error("started"); return nil }}
	if err := runParts(context.Background(), []part{stuck, never}); err == nil || err.Error() != "stuck: no port" {
		t.Errorf("got %v, want stuck: no port", err)
	}
}

func TestReadConfig(t *testing.T) {
	good := `{"apiserver": ["--a"], "controllerManager": ["--b"], "scheduler": ["--c"], "readyURL": "https://x", "readyCA": "/ca",
		"guard": {"levelFile": "/l", "machinesFile": "/m", "platformUser": "p"}, "kine": {"socket": "/s", "endpoint": "sqlite://x"}}`
	if _, err := ReadConfig(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"unknown field": strings.Replace(good, `"guard"`, `"gaurd": 1, "guard"`, 1),
		"no scheduler":  strings.Replace(good, `["--c"]`, `[]`, 1),
		"half a kine":   strings.Replace(good, `, "endpoint": "sqlite://x"`, ``, 1),
		"no json":       "apiserver:",
	} {
		if _, err := ReadConfig(strings.NewReader(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestGates: the storage controllers' gates are known, and those that Kubernetes has too are
// Kubernetes' own (module gates). Had they come in another order, this would not have started.
func TestGates(t *testing.T) {
	for gate, want := range map[featuregate.Feature]bool{
		"Topology": true, "ReleaseLeaderElectionOnExit": false, "AnnotateFsResize": false, // the controllers'
		"VolumeAttributesClass": true, "MutableCSINodeAllocatableCount": true, "RecoverVolumeExpansionFailure": true,
		"CrossNamespaceVolumeDataSource": false,
	} {
		if got := utilfeature.DefaultFeatureGate.Enabled(gate); got != want {
			t.Errorf("%s is %t, want %t", gate, got, want)
		}
	}
}
