package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestConnectionsOfPlanes: a plane has so many, and others theirs.
func TestConnectionsOfPlanes(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a", "b")
	var open []*connection
	for {
		c, err := f.shares.connect("plane-a", nil)
		if err != nil {
			if !strings.Contains(err.Error(), "close some") {
				t.Error(err)
			}
			break
		}
		open = append(open, c)
	}
	if len(open) != maxConnections {
		t.Errorf("%d connections, want %d", len(open), maxConnections)
	}
	a, b := s.plane(t, "a"), s.plane(t, "b")
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := a.Get(short, "/planes/a/x"); err == nil {
		t.Error("one too many is served")
	}
	if _, err := b.Get(t.Context(), "/planes/b/x"); err != nil {
		t.Error(err)
	}
	open[0].close()
	open[0].close()
	wait.For(t, wait.Patience, "room for one", func(ctx context.Context) error {
		_, err := a.Get(ctx, "/planes/a/x")
		return err
	})
	_ = a.Close()
	wait.For(t, wait.Patience, "it is forgotten", func(context.Context) error {
		f.shares.mu.Lock()
		defer f.shares.mu.Unlock()
		if n := len(f.shares.planes["plane-a"].connections); n != maxConnections-1 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
}

// TestUnreadAfterTheEnd: what gRPC says of a connection that has ended counts no more.
func TestUnreadAfterTheEnd(t *testing.T) {
	c, err := newShares().connect("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.came(100)
	c.read(30)
	c.close()
	c.read(70)
	c.came(5)
	c.close()
	if n := c.share.unread.Load(); n != 0 {
		t.Errorf("%d bytes", n)
	}
}

// TestMostUnread: when a plane has too much unread, the connection ends on which most of
// it is, whoever sends next, and then there is room again.
func TestMostUnread(t *testing.T) {
	s := newShares()
	connect := func() (*connection, *wire, net.Conn) {
		ours, theirs := net.Pipe()
		w := &wire{Conn: ours, raw: ours}
		c, err := s.connect("plane-a", w)
		if err != nil {
			t.Fatal(err)
		}
		w.of = c
		t.Cleanup(func() { _ = w.Close() })
		return c, w, theirs
	}
	ended := func(theirs net.Conn) bool {
		if err := theirs.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
			return true
		}
		_, err := theirs.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	guilty, _, guiltyEnd := connect()
	next, _, nextEnd := connect()
	guilty.came(maxUnread - 100)
	next.came(50)
	for range 10 {
		next.came(60)
		next.read(60)
		if ended(nextEnd) {
			t.Fatal("who sends next is ended")
		}
	}
	if !ended(guiltyEnd) {
		t.Error("who has most unread isn't ended")
	}
	guilty.came(1000) // what is on the way still
	if n := next.share.unread.Load(); n != 50 {
		t.Errorf("%d bytes are unread", n)
	}
	guilty.close()
	next.close()
	if n := next.share.unread.Load(); n != 0 {
		t.Errorf("in the end %d bytes are unread", n)
	}
}

// TestLooksForWhoStandsStill: all connections are looked at when one of them can have come
// to stand still, and then each that does ends once.
func TestLooksForWhoStandsStill(t *testing.T) {
	const patience = time.Hour
	s := newShares()
	all := func(*share) bool { return true }
	waits := func(since time.Duration) (*connection, *hold) {
		t.Helper()
		c, err := s.connect("a", nil)
		if err != nil {
			t.Fatal(err)
		}
		h, err := c.hold(t.Context(), leastBytes)
		if err != nil {
			t.Fatal(err)
		}
		h.since = time.Now().Add(-since)
		return c, h
	}
	still, _ := waits(2 * patience)
	well, h := waits(patience / 2)
	if next := s.endStill(patience, all); next > patience/2 || !still.over || well.over {
		t.Errorf("looks again after %s; over: %t, %t", next, still.over, well.over)
	}
	before := h.since
	h.since = h.since.Add(-patience) // which can't be
	if next := s.endStill(patience, all); next > patience/2 || well.over {
		t.Errorf("looked again too early: %s, %t", next, well.over)
	}
	h.since = before
	if s.endStill(patience/4, all); !well.over {
		t.Error("others that wait for less long don't end it")
	}
	if next := s.endStill(patience/4, all); next < patience/8 {
		t.Errorf("looks again after %s for what was ended", next)
	}
}

// view is a datastore that knows how much was read at once.
type view struct {
	mvcc.ReadView
	kvs  []*mvccpb.KeyValue // in order
	most int
}

func (v *view) Range(_ context.Context, key, end []byte, ro mvcc.RangeOptions) (*mvcc.RangeResult, error) {
	if ro.Limit <= 0 || ro.WithTotalCount {
		return nil, errors.New("this would take long")
	}
	r, size := &mvcc.RangeResult{}, 0
	for _, kv := range v.kvs {
		if string(kv.Key) >= string(key) && string(kv.Key) < string(end) && len(r.KVs) < int(ro.Limit) {
			r.KVs, size = append(r.KVs, &mvccpb.KeyValue{Key: slices.Clone(kv.Key), Value: kv.Value}), size+len(kv.Value)
		}
	}
	v.most = max(v.most, size)
	return r, nil
}

// TestMeasures: what a plane has is measured right, a little at a time, however it lies.
func TestMeasures(t *testing.T) {
	const fat = 1536 << 10
	value := make([]byte, fat)
	for what, sizes := range map[string][]int{
		"nothing":              nil,
		"one":                  {3},
		"large behind tiny":    append(slices.Repeat([]int{1}, 1000), slices.Repeat([]int{fat}, 250)...),
		"tiny behind large":    append(slices.Repeat([]int{fat}, 50), slices.Repeat([]int{0}, 300)...),
		"large between tiny":   slices.Repeat(append(slices.Repeat([]int{1}, 40), slices.Repeat([]int{fat}, 8)...), 8),
		"eight, and no more":   slices.Repeat([]int{1}, 8),
		"as many as at a time": slices.Repeat([]int{100}, 1+2+4+8),
	} {
		v, want := &view{kvs: []*mvccpb.KeyValue{{Key: []byte("/planes/A"), Value: value}}}, int64(0)
		for i, size := range sizes {
			key := fmt.Sprintf("/planes/a/%06d", i)
			v.kvs = append(v.kvs, &mvccpb.KeyValue{Key: []byte(key), Value: value[:size]})
			want += int64(len(key)+size) + rowBytes
		}
		v.kvs = append(v.kvs, &mvccpb.KeyValue{Key: []byte("/planes/b/x"), Value: value})
		if got, err := taken(t.Context(), v, "/planes/a/"); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", what, got, err, want)
		}
		if v.most > objectsAtOnce*fat {
			t.Errorf("%s: %d MiB are read at once", what, v.most>>20)
		}
	}
}
