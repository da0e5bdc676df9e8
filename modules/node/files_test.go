package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestFiles: a tenant has a snapshot from its host as a file, and a volume's host has a file from him; what was cut off goes
// on, and why a host can't is told.
func TestFiles(t *testing.T) {
	p := start(t)
	host := p.join(t, "n1")
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	reports := func(drivers ...string) {
		t.Helper()
		now, err := store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error {
			n.Status.Drivers = drivers
			n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.True})
			if drivers == nil {
				n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.False})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		wait.True(t, wait.Patience, "the cache has it", func() bool {
			n, ok := p.cfg.Nodes.Get("n1")
			return ok && n.Revision >= now.Revision
		})
	}
	reports(wire.FileDriver)
	client, err := agent.Open(host.dir)
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "new"),
		Spec: resource.VolumeSpec{Class: "local", SizeBytes: 1 << 30, Import: true}}
	s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "before"),
		Spec: resource.SnapshotSpec{Volume: "data", VolumeUID: "data-uid", SizeBytes: 1 << 30}}
	v.Status.Node, v.Status.NodeUID, s.Status.Node, s.Status.NodeUID, s.Status.SizeBytes = "n1", n.UID, "n1", n.UID, 1<<30
	err = p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws),
		store.Of[resource.Volume](p.store).CreateOp(v), store.Of[resource.Snapshot](p.store).CreateOp(s))
	if err != nil {
		t.Fatal(err)
	}
	if v, err = store.Of[resource.Volume](p.store).Get(t.Context(), v.Key()); err == nil {
		s, err = store.Of[resource.Snapshot](p.store).Get(t.Context(), s.Key())
	}
	if err != nil {
		t.Fatal(err)
	}
	// do does what the agent does, once.
	do := func(c content) {
		t.Helper()
		driver := agent.Sends(slog.New(slog.DiscardHandler), client, c)
		wait.For(t, wait.Patience, "n1 is waited for", func(context.Context) error {
			items := driver.Wanted(p.stateOf(n))
			if len(items) != 1 || items[0].Workspace != "00abcd" {
				return fmt.Errorf("it is told of %+v", items)
			}
			return errors.Join(items[0].Ensure(t.Context()), items[0].Ensure(t.Context())) // the second does nothing
		})
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	export := func(c content, from int64) (got []byte, err error) {
		t.Helper()
		done, out := make(chan error, 1), &bytes.Buffer{}
		go func() { done <- p.Export(t.Context(), s, from, out, noDeadline) }()
		do(c)
		err = <-done
		return out.Bytes(), err
	}
	if got, err := export(content{data, 0}, 16); err != nil || !bytes.Equal(got, data[16:]) {
		t.Errorf("%d octets came: %v", len(got), err)
	}
	if got, err := export(content{data, 0}, int64(len(data))); err != nil || len(got) > 0 {
		t.Errorf("of nothing %d octets came: %v", len(got), err)
	}
	got, err := export(content{data, 300_000}, 0)
	if err == nil || len(got) > 300_000 || !bytes.HasPrefix(data, got) {
		t.Errorf("cut off, %d octets came: %v", len(got), err)
	}
	if got, err := export(content{nil, -1}, 1); !errors.Is(err, access.ErrInvalid) || len(got) > 0 || !strings.Contains(err.Error(), "never is") {
		t.Errorf("what its host never can: %d, %v", len(got), err)
	}
	if got, err := export(content{data, 0}, int64(len(data))+1); !errors.Is(err, access.ErrExists) || len(got) > 0 ||
		!strings.Contains(err.Error(), "it is not so long") {
		t.Errorf("what its host can't: %d, %v", len(got), err)
	}

	wait.For(t, wait.Patience, "its host is told of the volume", func(context.Context) error {
		for _, w := range p.stateOf(n).Volumes {
			if w.UID == v.UID && w.Importing && !w.Made && len(w.Attachments) == 0 {
				return nil
			}
		}
		return errors.New("it is not")
	})
	if err := p.Import(t.Context(), v, "some", strings.NewReader("text"), noDeadline); !errors.Is(err, access.ErrExists) {
		t.Errorf("what nobody waits for is taken: %v", err)
	}
	imports := func(c content, in io.Reader) (from int64, err error) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			id, at, err := p.BeginImport(t.Context(), v)
			if from = at; err == nil {
				other := *v
				other.UID = "other"
				if p.Import(t.Context(), &other, id, in, noDeadline) == nil {
					err = errors.New("taken for another volume")
				} else {
					err = p.Import(t.Context(), v, id, in, noDeadline)
				}
			}
			done <- err
		}()
		do(c)
		return from, <-done
	}
	if from, err := imports(content{data, 500}, bytes.NewReader(data[500:])); err != nil || from != 500 {
		t.Errorf("sent from %d on: %v", from, err)
	}
	if _, err := imports(content{}, nil); !errors.Is(err, access.ErrExists) || !strings.Contains(err.Error(), "all of it is there") {
		t.Errorf("what its host has already: %v", err)
	}
	if _, err := imports(content{data, 500}, io.MultiReader(bytes.NewReader(data[500:]), cutReader{})); err == nil {
		t.Error("what was cut off is taken for all")
	}

	// Nobody waits for a host that can't: what is known of that is said.
	refused := func(want, when string, v *resource.Volume, s *resource.Snapshot) {
		t.Helper()
		soon, stop := context.WithTimeout(t.Context(), sendPatience/2)
		defer stop()
		_, _, err := p.BeginImport(soon, v)
		for what, err := range map[string]error{"import": err, "export": p.Export(soon, s, 0, io.Discard, noDeadline)} {
			if !errors.Is(err, access.ErrExists) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v", what, when, err)
			}
		}
	}
	nowhere, nothing := *v, *s
	full := resource.Condition{Type: resource.VolumePlaced, Status: resource.False, Message: "no host has 1 GiB free for it."}
	nowhere.Status, nothing.Status = resource.VolumeStatus{}, resource.SnapshotStatus{}
	nowhere.Status.Conditions.Set(full)
	nothing.Status.Conditions.Set(full)
	refused("it has no host yet: no host has 1 GiB free for it.", "without a host", &nowhere, &nothing)
	reports("sandbox")
	refused("has to upgrade it", "of a former version", v, s)
	reports()
	refused("does not report", "silent", v, s)

	report := func(rep wire.VolumeReport) *resource.Volume {
		t.Helper()
		if err := p.takeVolume(t.Context(), n, rep); err != nil {
			t.Fatal(err)
		}
		now, err := store.Of[resource.Volume](p.store).Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	rep := wire.VolumeReport{Key: v.Key(), UID: v.UID, Ready: true, SizeBytes: 1 << 30, Import: wire.ImportBegun, Message: "1 of it"}
	for _, is := range []string{wire.ImportBegun, wire.ImportBroken, ""} { // the last is an agent's that knows none
		rep.Import = is
		now := report(rep)
		if c := now.Status.Conditions.Get(resource.VolumeReady); now.Made() || c.Status == resource.True ||
			c.Final != (is == wire.ImportBroken) || is != "" && c.Reason != resource.VolumeImporting {
			t.Errorf("import %q: it is %+v", is, now.Status)
		}
	}
	rep.Import = wire.ImportDone
	if now := report(rep); !now.Made() || now.Importing() || !now.Status.Conditions.Is(resource.VolumeReady) {
		t.Errorf("when all is there it is %+v", now.Status)
	}
}

// TestTenantPace: a tenant who takes or sends a little, again and again, does not hold up others with that.
func TestTenantPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var until time.Time
		side := &tenant{deadline: func(at time.Time) error { until = at; return nil }}
		left := func(takes time.Duration, n int) (left time.Duration) {
			t.Helper()
			side.reader = readerFunc(func(p []byte) (int, error) {
				left = time.Until(until)
				time.Sleep(takes)
				return n, nil
			})
			if got, err := side.Read(nil); got != n || err != nil || !until.IsZero() {
				t.Errorf("%d octets, %v; then %v", got, err, until)
			}
			time.Sleep(time.Hour) // which the host takes
			return left
		}
		for i, step := range []struct {
			takes time.Duration
			n     int
			left  time.Duration
		}{
			{15 * time.Second, 1, sendPatience}, {4 * time.Second, 1, 5 * time.Second}, {time.Second / 2, leastPiece, time.Second},
			{0, 1, sendPatience},
		} {
			if got := left(step.takes, step.n); got != step.left {
				t.Errorf("%d: there are %v left, want %v", i, got, step.left)
			}
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
