package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestMove: a volume that one host has put away comes to another, is there what it was, and is then taken away
// from the first.
func TestMove(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.ensure(320 * mib)
	a.write("file", "text")
	v := testVolume(320 * mib)
	v.Made = true
	asked := 0
	b.cfg.Fetch = func(ctx context.Context, v wire.Volume, from int64) (io.ReadCloser, error) {
		asked++
		read, write := io.Pipe()
		go func() { _ = write.CloseWithError(a.Send(ctx, v.UID, from, write)) }()
		return read, nil
	}
	coming := v
	coming.Made, coming.Incoming, coming.Move = false, true, "move/Copying"
	b.waits(coming, "was cut off") // it is mounted still
	if seen := b.seen(); seen.Ready || seen.SizeBytes != 0 {
		t.Errorf("before anything came it is seen as %+v", seen)
	}
	a.must(a.Keep(t.Context(), v))
	for {
		err := b.Ensure(t.Context(), coming)
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "it is copied") {
			t.Fatal(err)
		}
	}
	n := asked
	b.must(b.Ensure(t.Context(), coming)) // it stays
	if seen := b.seen(); asked != n || !seen.Fallen || seen.Came != "move" || seen.SizeBytes != 320*mib {
		t.Errorf("asked %d times more; it is seen as %+v", asked-n, seen)
	}
	// What came by another move is older, also once the server has been told otherwise.
	const older = "an older copy of it is on that host"
	for _, step := range []string{"", "again/Copying"} {
		coming.Move = step
		b.waits(coming, older+", which was given up once: `mp volumes move NAME --stay`")
	}
	v.Move = "again/Switched"
	b.waits(v, older)
	v.Move = "move/Switched"
	b.must(b.Ensure(t.Context(), v))
	v.Move = "move/Removing"
	b.must(b.Ensure(t.Context(), v))
	b.reads("file", "text")
	if seen := b.seen(); !seen.Ready || seen.Fallen {
		t.Errorf("there it is seen as %+v", seen)
	}
	b.machine("m1")
	b.must(b.Attach(testUID, "m1"))
	a.must(a.Remove(t.Context(), wire.Volume{UID: testUID}))
	if left, _ := os.ReadDir(a.cfg.Dir); len(left) > 0 {
		t.Errorf("left on the first host: %v", left)
	}
	b.must(b.Detach(testUID, "m1"))
	b.must(b.Remove(t.Context(), wire.Volume{UID: testUID}))
}

// TestTurns: what comes from other hosts and copies don't wait for one another, and what has come for long makes way
// if others wait.
func TestTurns(t *testing.T) {
	h := New(Config{})
	hold := make(chan struct{})
	begin := func(uid, network string, incoming bool) bool {
		v := wire.Volume{UID: uid, NetworkID: network, Incoming: incoming}
		return h.beginCopy(v, func(context.Context, *copying) error { <-hold; return nil }) != nil
	}
	stream := &turn{Reader: strings.NewReader("text"), h: h, since: time.Now().Add(-2 * receiveTurn)}
	for i, want := range []bool{true, true, false} {
		if n, err := stream.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("while nobody waits: %v", err)
		}
		uid := fmt.Sprint(i)
		if got := begin("moves"+uid, uid, true); got != want {
			t.Errorf("move %d is begun: %v", i, got)
		}
		if got := begin("copy"+uid, uid, false); got != want {
			t.Errorf("copy %d is begun: %v", i, got)
		}
	}
	if _, err := stream.Read(make([]byte, 1)); err != nil {
		t.Errorf("before its turn is over: %v", err)
	}
	stream.since = stream.since.Add(-2 * receiveTurn)
	if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, errTurn) {
		t.Errorf("while others wait: %v", err)
	}
	close(hold)
	if err := h.endCopies(""); err != nil {
		t.Error(err)
	}
}

// TestMoveGivenUp: nothing is left of what came, and what it was stays.
func TestMoveGivenUp(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.ensure(320 * mib)
	v := testVolume(320 * mib)
	v.Made = true
	a.must(a.Keep(t.Context(), v))
	b.cfg.Fetch = func(ctx context.Context, v wire.Volume, from int64) (io.ReadCloser, error) {
		read, write := io.Pipe()
		go func() {
			err := a.Send(ctx, v.UID, from, &cutWriter{write, mib + 5000})
			_ = write.CloseWithError(err)
		}()
		return read, nil
	}
	coming := v
	coming.Made, coming.Incoming, coming.Move = false, true, "move/Copying"
	b.waits(coming, "was cut off")
	b.waits(coming, "was cut off")
	b.must(b.Remove(t.Context(), wire.Volume{UID: testUID}))
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	a.must(a.Ensure(t.Context(), v))
	if seen := a.seen(); !seen.Ready {
		t.Errorf("it is seen as %+v", seen)
	}
}

// waits has a volume come, which fails for a reason.
func (r *rig) waits(v wire.Volume, why string) {
	r.t.Helper()
	for {
		err := r.Ensure(r.t.Context(), v)
		if err != nil && strings.Contains(err.Error(), "it is copied") {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), r.cfg.Dir) {
			r.t.Fatalf("%v, want %q", err, why)
		}
		return
	}
}

type cutWriter struct {
	io.Writer
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		return 0, errors.New("cut off here")
	}
	c.left -= len(p)
	return c.Writer.Write(p)
}
