package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

// content is what a host has of a volume.
type content struct {
	data []byte
	cut  int // after so many octets; 0 is never, and -1: there is none, and never is
}

func (c content) Send(_ context.Context, _ string, from int64, w io.Writer) error {
	data := c.data[from:]
	if c.cut > 0 {
		_, err := w.Write(data[:c.cut])
		return errors.Join(err, errors.New("cut off here"))
	}
	_, err := w.Write(data)
	return err
}

func (c content) Export(_ context.Context, _ wire.Volume, f wire.File, w io.Writer) error {
	if c.cut < 0 {
		return fmt.Errorf("export: %w", never{errors.New("it never is one")})
	}
	if f.From > int64(len(c.data)) {
		return errors.New("it is not so long")
	}
	return c.Send(context.Background(), "", f.From, w)
}

type never struct{ error }

func (never) Lasting() bool { return true }

func (c content) Import(ctx context.Context, _ wire.Volume, fetch func(context.Context, int64) (io.ReadCloser, error)) error {
	if c.data == nil {
		return errors.New("all of it is there")
	}
	in, err := fetch(ctx, int64(c.cut))
	if err != nil {
		return err
	}
	defer in.Close()
	got, err := io.ReadAll(in)
	if err == nil && !bytes.Equal(got, c.data[c.cut:]) {
		err = errors.New("it is something else")
	}
	return err
}

// TestSends: an account has some of what there is at a time, and only the node that sends is told.
func TestSends(t *testing.T) {
	var s sends
	one := func(account, uid string) *sending {
		return &sending{Send: wire.Send{UID: uid}, account: account, from: "n-" + account, end: make(chan struct{})}
	}
	told := func(c chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	n, other := s.waitChange("n-a"), s.waitChange("n-b")
	first := one("a", "v1")
	for _, now := range []*sending{first, one("a", "v2")} {
		if err := s.begin(now); err != nil {
			t.Fatal(err)
		}
	}
	if !told(n) || told(other) {
		t.Errorf("the one that sends is told: %v, another: %v", told(n), told(other))
	}
	if err := s.begin(one("a", "v3")); err == nil {
		t.Error("an account has more than its share")
	}
	file := func(uid string) *sending {
		f := one("a", uid)
		f.file = &wire.File{UID: uid}
		return f
	}
	if err := errors.Join(s.begin(file("f1")), s.begin(file("f2"))); err != nil {
		t.Errorf("its files wait for volumes that move: %v", err)
	}
	if err := s.begin(file("f3")); err == nil {
		t.Error("an account has more files than its share")
	}
	if err := s.begin(one("b", "v4")); err != nil || !told(other) {
		t.Errorf("another account: %v, told: %v", err, told(other))
	}
	n = s.waitChange("n-a")
	if s.over(first); !told(n) {
		t.Error("that nobody waits any more is not told")
	}
	if err := s.begin(one("a", "v3")); err != nil {
		t.Error(err)
	}
}

// TestMoves: of a volume that moves both hosts are told their part and believed about that alone; what one has
// comes to the other, and to nobody else.
func TestMoves(t *testing.T) {
	p := start(t)
	hosts, nodes, clients := map[string]*host{}, map[string]*resource.Node{}, map[string]*agent.Client{}
	for _, name := range []string{"n1", "n2", "n3"} {
		hosts[name] = p.join(t, name)
		n, err := store.Of[resource.Node](p.store).Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		client, err := agent.Open(hosts[name].dir)
		if err != nil {
			t.Fatal(err)
		}
		nodes[name], clients[name] = n, client
	}
	volumes := store.Of[resource.Volume](p.store)
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.Status.ID = "00abcd"
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: 1 << 30}}
	v.Status.Node, v.Status.NodeUID, v.Status.SizeBytes = "n1", nodes["n1"].UID, 1<<30
	v.Status.Moving = &resource.VolumeMove{ID: "move", Stage: resource.MoveCopying, Node: "n2", NodeUID: nodes["n2"].UID, FirstUID: 1 << 28}
	if err := p.store.Commit(t.Context(), store.Of[resource.Workspace](p.store).CreateOp(ws), volumes.CreateOp(v)); err != nil {
		t.Fatal(err)
	}
	told := func(name string) wire.Volume {
		if all := p.stateOf(nodes[name]).Volumes; len(all) == 1 {
			return all[0]
		}
		return wire.Volume{}
	}
	is := func(name, what string, right func(wire.Volume) bool) {
		t.Helper()
		wait.For(t, wait.Patience, name+" is told "+what, func(context.Context) error {
			if w := told(name); w.UID != v.UID || !right(w) {
				return fmt.Errorf("it is told %+v", w)
			}
			return nil
		})
	}
	report := func(name string, rep wire.VolumeReport) *resource.VolumeMove {
		t.Helper()
		rep.Key, rep.UID = v.Key(), v.UID
		text, err := json.Marshal(rep)
		if err == nil {
			err = hosts[name].call(t.Context(), wire.ItemsPath, wire.Items{Items: []wire.Item{{Kind: wire.VolumeItem, Report: text}}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		now, err := volumes.Get(t.Context(), v.Key())
		if err != nil {
			t.Fatal(err)
		}
		return now.Status.Moving
	}
	fetch := func(name string, from int64) (io.ReadCloser, error) {
		return clients[name].Fetch(t.Context(), wire.Volume{Key: v.Key(), UID: v.UID}, from)
	}
	is("n1", "to put it away", func(w wire.Volume) bool { return w.Keep && w.Made && w.Move == "move/Copying" })
	is("n2", "that it comes", func(w wire.Volume) bool {
		return w.Incoming && !w.Made && w.FirstUID == 1<<28 && w.Move == "move/Copying"
	})
	if got := p.stateOf(nodes["n3"]).Volumes; got != nil {
		t.Errorf("n3 is told %+v", got)
	}
	if m := report("n1", wire.VolumeReport{Ready: true, SizeBytes: 1 << 30}); m.Away {
		t.Error("what it said before it was told counts")
	}
	if _, err := fetch("n2", 0); err == nil || !strings.Contains(err.Error(), "not put it away") {
		t.Errorf("fetched before it is put away: %v", err)
	}
	if m := report("n1", wire.VolumeReport{Ready: true, Move: "move/Copying"}); !m.Away || m.Copied {
		t.Errorf("put away it is %+v", m)
	}
	if _, err := fetch("n3", 0); err == nil || !strings.Contains(err.Error(), "does not move to node n3") {
		t.Errorf("another host fetches it: %v", err)
	}

	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	// send does what the agent of n1 does, once.
	send := func(c content) {
		t.Helper()
		driver := agent.Sends(slog.New(slog.DiscardHandler), clients["n1"], c)
		wait.For(t, wait.Patience, "n1 is waited for", func(context.Context) error {
			items := driver.Wanted(p.stateOf(nodes["n1"]))
			if len(items) != 1 || items[0].Workspace != "00abcd" {
				return fmt.Errorf("it is told of %+v", items)
			}
			return items[0].Ensure(t.Context())
		})
	}
	for _, c := range []content{{data, 0}, {data, 300_000}, {data, 0}} {
		const from = 16
		done := make(chan error, 1)
		go func() {
			in, err := fetch("n2", from)
			if err != nil {
				done <- err
				return
			}
			defer in.Close()
			got, err := io.ReadAll(in)
			if err == nil && !bytes.Equal(got, data[from:]) {
				err = fmt.Errorf("%d octets came, not what was sent", len(got))
			}
			done <- err
		}()
		send(c)
		if err := <-done; (err == nil) != (c.cut == 0) {
			t.Errorf("cut off at %d: %v", c.cut, err)
		}
	}
	wait.For(t, wait.Patience, "nobody is waited for", func(context.Context) error {
		if s := p.stateOf(nodes["n1"]).Sends; len(s) > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if m := report("n2", wire.VolumeReport{Ready: true, Move: "move/Copying"}); !m.Copied {
		t.Errorf("once it is there it is %+v", m)
	}

	step := func(stage resource.MoveStage) {
		t.Helper()
		_, err := volumes.Modify(t.Context(), v.Key(), func(v *resource.Volume) error {
			if stage == resource.MoveSwitched {
				v.Status.Node, v.Status.NodeUID = "n2", nodes["n2"].UID
				v.Status.Moving.Node, v.Status.Moving.NodeUID = "n1", nodes["n1"].UID
			}
			v.Status.Moving.Stage = stage
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	step(resource.MoveSwitched)
	is("n1", "to have it away still", func(w wire.Volume) bool { return w.Keep && !w.Remove })
	is("n2", "that it has it", func(w wire.Volume) bool { return !w.Keep && !w.Incoming && w.Made })
	report("n2", wire.VolumeReport{Ready: true, Move: "move/Copying"})
	if now, _ := volumes.Get(t.Context(), v.Key()); now.Status.Conditions.Is(resource.VolumeReady) {
		t.Error("that all of it came is taken for that it is in use")
	}
	step(resource.MoveRemoving)
	is("n1", "to take it away", func(w wire.Volume) bool { return w.Remove && !w.Keep })
	if m := report("n2", wire.VolumeReport{Removed: true, Move: "move/Removing"}); m.Removed {
		t.Error("the host that has it says that the other one has nothing any more")
	}
	if m := report("n1", wire.VolumeReport{Removed: true, Move: "move/Removing"}); !m.Removed {
		t.Errorf("removed it is %+v", m)
	}
}
