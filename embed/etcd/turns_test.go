package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/multipaas/multipaas/testing/wait"
)

// client is a stream whose client reads at once, unless it keeps: then gRPC has what was sent.
type client struct {
	grpc.ServerStream
	ctx context.Context

	mu    sync.Mutex
	keeps bool
	kept  []*ready
	sent  []*pb.WatchResponse // what needed no room
}

func (c *client) Context() context.Context { return c.ctx }

func (c *client) SendMsg(m any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r := m.(type) {
	case *ready:
		data, err := codec{}.Marshal(r)
		if err != nil {
			return err
		}
		if c.keeps {
			c.kept = append(c.kept, r)
			return nil
		}
		data.Free()
	case *pb.WatchResponse:
		c.sent = append(c.sent, r)
	}
	return nil
}

// The watches of a stream, by id.
const (
	always = iota // what is written of it comes all the time
	first         // from the past, made before the rest happens
	second        // from the past
)

var large = strings.Repeat("x", 2*freeBytes)

func created(id int64) *pb.WatchResponse { return &pb.WatchResponse{WatchId: id, Created: true} }

// event is one that needs nothing of what was there before.
func event(id, revision int64, value string) *pb.WatchResponse {
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: []byte(value), CreateRevision: revision, ModRevision: revision}
	return &pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: id, Events: []*mvccpb.Event{{Kv: kv}}}
}

func behindBy(size int64) func() (int64, int64, bool, error) {
	return func() (int64, int64, bool, error) { return size, 1, true, nil }
}

// turns is a stream as etcd has it: one sends, in order, and one receives.
type turns struct {
	*watches
	client *client
	queue  chan *pb.WatchResponse
	errs   []error
	done   sync.WaitGroup
	prev   bool
}

func newTurns(ctx context.Context, c *connection, prev bool) *turns {
	s := &turns{client: &client{ctx: ctx}, queue: make(chan *pb.WatchResponse, 10), prev: prev}
	s.watches = newWatches(c, s.client)
	s.done.Go(func() {
		for r := range s.queue {
			s.errs = append(s.errs, s.SendMsg(r))
		}
	})
	if _, err := s.begin(&behind{prev: prev}, behindBy(0)); err != nil {
		s.errs = append(s.errs, err)
	}
	s.queue <- created(always)
	synctest.Wait()
	return s
}

// past has a watch from the past made that takes all of the share.
func (s *turns) past() error {
	_, err := s.begin(&behind{prev: s.prev}, behindBy(behindBytes))
	return err
}

// permutations calls do with each order of n things.
func permutations(n int, do func(order []int)) {
	order := make([]int, 0, n)
	var next func(used int)
	next = func(used int) {
		if len(order) == n {
			do(order)
			return
		}
		for i := range n {
			if used&(1<<i) == 0 {
				order = append(order, i)
				next(used | 1<<i)
				order = order[:len(order)-1]
			}
		}
	}
	next(0)
}

// TestNoStreamWaitsForItself goes through the orders in which two streams of a plane come
// to ask for all of its share, to send something large, and to have sent what they have,
// while something else has the share. Time stands still as long as somebody can go on: so
// what takes any was waited for in vain.
func TestNoStreamWaitsForItself(t *testing.T) {
	for what, row := range map[string]struct {
		had  string // of the first stream, before
		prev bool   // and one slot is left
	}{
		"both have nothing":                      {},
		"both have nothing, with what was there": {prev: true},
		"one is being made":                      {had: "made"},
		"one is being made, with what was there": {had: "made", prev: true},
		"one is behind":                          {had: "behind"},
		"one is behind, with what was there":     {had: "behind", prev: true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				steps := []string{"the first asks", "the second asks", "the first sends", "the rest is free", "the second sends"}
				if row.had != "" {
					steps[4] = "the first has sent what it had"
				}
				permutations(len(steps), func(order []int) {
					var inOrder []string
					for _, i := range order {
						inOrder = append(inOrder, steps[i])
					}
					if t.Failed() {
						return
					}
					if err := walk(t.Context(), inOrder, row.had, row.prev); err != nil {
						t.Errorf("%s: %v", strings.Join(inOrder, ", "), err)
					}
				})
			})
		})
	}
}

// walk has the steps happen in order, each as far as it can.
func walk(ctx context.Context, steps []string, had string, prev bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shares := newShares()
	c, err := shares.connect("plane-a", nil)
	if err != nil {
		return err
	}
	sh, slots := c.share, 0
	for ; prev && slots < sendingAtOnce-1; slots++ {
		sh.slots <- struct{}{}
	}
	streams := []*turns{newTurns(ctx, c, prev), newTurns(ctx, c, prev)}
	if had != "" {
		if err := streams[0].past(); err != nil {
			return err
		}
	}
	if had == "behind" {
		streams[0].queue <- created(first)
		synctest.Wait()
	}
	var asked, occupied sync.WaitGroup
	free := make(chan struct{})
	occupied.Go(func() { // behind what the first stream has
		if h, err := c.hold(ctx, planeBytes); err == nil {
			<-free
			h.shrink(0)
		}
	})
	synctest.Wait()

	began := time.Now()
	errs := make([]error, 2)
	asks := func(i int) {
		asked.Go(func() {
			if errs[i] = streams[i].past(); errs[i] == nil {
				streams[i].queue <- created(second)
				streams[i].queue <- event(second, 1, "")
			}
		})
	}
	for _, step := range steps {
		switch step {
		case "the first asks":
			asks(0)
		case "the second asks":
			asks(1)
		case "the first sends":
			streams[0].queue <- event(always, 9, large)
		case "the second sends":
			streams[1].queue <- event(always, 9, large)
		case "the rest is free":
			close(free)
		case "the first has sent what it had":
			if had == "made" {
				streams[0].queue <- created(first)
			}
			streams[0].queue <- event(first, 1, "")
		default:
			return fmt.Errorf("what is %q?", step)
		}
		synctest.Wait()
	}
	all := make(chan struct{})
	go func() {
		asked.Wait()
		occupied.Wait()
		for _, s := range streams {
			close(s.queue)
			s.done.Wait()
		}
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(ownPatience / 2):
		cancel()
		<-all
	}
	err = errors.Join(errs...)
	for _, s := range streams {
		err = errors.Join(err, errors.Join(s.errs...))
		s.end()
	}
	if took := time.Since(began); took > 0 {
		return fmt.Errorf("somebody waited for %s: %w", took, err)
	}
	if len(sh.slots) != slots || sh.beyond != 0 || sh.before != 0 || !sh.bytes.TryAcquire(planeBytes) || shares.empty() != nil {
		return fmt.Errorf("%d slots, %d bytes beyond, or some of the share are still had: %w", len(sh.slots)-slots, sh.beyond, err)
	}
	return err
}

// inBubble has a plane with one connection, of which gone says when it was ended.
func inBubble(t *testing.T, do func(t *testing.T, c *connection, gone <-chan struct{})) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c, err := newShares().connect("plane-a", &wire{raw: ours})
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, theirs)
			close(gone)
		}()
		defer func() {
			c.close()
			c.end()
			<-gone
			if err := c.shares.empty(); err != nil || c.share.beyond != 0 || c.share.unread.Load() != 0 {
				t.Errorf("after its end: %v, %d bytes beyond, %d unread", err, c.share.beyond, c.share.unread.Load())
			}
		}()
		do(t, c, gone)
	})
}

// TestBeyondTheShare: what streams send that can't wait for the share has a bound of its
// own, until it is read.
func TestBeyondTheShare(t *testing.T) {
	inBubble(t, func(t *testing.T, c *connection, gone <-chan struct{}) {
		value := strings.Repeat("x", 1<<20)
		s := newTurns(t.Context(), c, false)
		defer s.end()
		defer close(s.queue)
		if err := s.past(); err != nil {
			t.Fatal(err)
		}
		for range 2 * sendingBytes >> 20 { // of what is read at once there may be more
			s.queue <- event(always, 9, value)
		}
		synctest.Wait()
		s.client.mu.Lock()
		s.client.keeps = true
		s.client.mu.Unlock()
		for range sendingBytes>>20 - 1 {
			s.queue <- event(always, 9, value)
		}
		synctest.Wait()
		select {
		case <-gone:
			t.Fatal("it ended too early")
		default:
		}
		if err := errors.Join(s.errs...); err != nil {
			t.Error(err)
		}
		s.queue <- event(always, 9, value)
		<-gone
		synctest.Wait()
		if err := errors.Join(s.errs...); status.Code(err) != codes.ResourceExhausted && !errors.Is(err, errUnread) {
			t.Errorf("one too many: %v", err)
		}
		c.close()
	})
}

// TestBehindByMore: while a watch waits, more may come that it is behind by. It asks anew, and
// has nothing meanwhile.
func TestBehindByMore(t *testing.T) {
	for what, row := range map[string]struct {
		sizes []int64 // each time
		has   int64
		ok    bool
	}{
		"nothing":               {[]int64{0}, 0, true},
		"no more":               {[]int64{10, 10}, freeBytes, true},
		"a little more":         {[]int64{10, 1000}, freeBytes, true},
		"as much again":         {[]int64{1 << 20, 1<<20 + 1, 1<<20 + 2}, 2 * behindCopies << 20, true},
		"much more":             {[]int64{10, 1 << 20, 1 << 20}, behindCopies << 20, true},
		"all the time":          {[]int64{3 << 20, 3<<20 + 1, 4 << 20}, planeBytes, true},
		"too much at once":      {[]int64{-1}, 0, false},
		"too much while waited": {[]int64{10, -1}, 0, false},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *connection, _ <-chan struct{}) {
				s := newTurns(t.Context(), c, false)
				defer s.end()
				close(s.queue)
				looked := 0
				ok, err := s.begin(&behind{}, func() (size, last int64, ok bool, err error) {
					looked++
					size = row.sizes[looked-1]
					return size, 1, size >= 0, nil
				})
				if err != nil || ok != row.ok || looked != len(row.sizes) {
					t.Errorf("%v, %v, looked %d times", ok, err, looked)
				}
				if rest := planeBytes - row.has; !c.share.bytes.TryAcquire(rest) || c.share.bytes.TryAcquire(1) {
					t.Errorf("it has something else than %d bytes", row.has)
				} else {
					c.share.bytes.Release(rest)
				}
			})
		})
	}
}

// TestPastGivesBack: what a watch from the past has goes back, however it ends.
func TestPastGivesBack(t *testing.T) {
	had := func(c *connection) bool {
		if !c.share.bytes.TryAcquire(planeBytes) {
			return true
		}
		c.share.bytes.Release(planeBytes)
		return false
	}
	for what, last := range map[string]*pb.WatchResponse{
		"sent":      event(first, 1, large),
		"canceled":  {WatchId: first, Canceled: true},
		"compacted": {WatchId: first, Canceled: true, CompactRevision: 7}, // and its client hasn't canceled it yet
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *connection, _ <-chan struct{}) {
				s := newTurns(t.Context(), c, false)
				defer s.end()
				defer close(s.queue)
				if err := s.past(); err != nil {
					t.Fatal(err)
				}
				s.queue <- created(first)
				s.queue <- event(first, 0, large) // there is more
				synctest.Wait()
				if !had(c) {
					t.Error("it has nothing before")
				}
				s.queue <- last
				synctest.Wait()
				if had(c) {
					t.Error("it still has something")
				}
			})
		})
	}
	t.Run("forgotten", func(t *testing.T) { // as gRPC does when the stream ends just then
		inBubble(t, func(t *testing.T, c *connection, _ <-chan struct{}) {
			ctx, cancel := context.WithCancel(t.Context())
			s := newTurns(ctx, c, false)
			defer s.end()
			defer close(s.queue)
			s.client.mu.Lock()
			s.client.keeps = true
			s.client.mu.Unlock()
			cancel()
			if err := s.SendMsg(event(always, 1, large)); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if had(c) {
				t.Error("it still has something")
			}
		})
	})
}

// TestWrittenWhileAWatchWaits: what is written while a watch from the past waits for the share
// is sent at once too, and so is in the share or told to be too much.
func TestWrittenWhileAWatchWaits(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a")
	root, a, ctx := s.root(t), s.plane(t, "a"), t.Context()
	c, err := f.shares.connect("plane-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	fat := strings.Repeat("x", 1<<20)
	for _, row := range []struct {
		written int // MiB
		want    error
	}{{2, nil}, {behindBytes>>20 + 1, rpctypes.ErrCompacted}} {
		put, err := root.Put(ctx, "/planes/a/k", "little")
		if err != nil {
			t.Fatal(err)
		}
		most, err := c.hold(ctx, planeBytes-1)
		if err != nil {
			t.Fatal(err)
		}
		some, cancel := context.WithTimeout(ctx, wait.Patience)
		watch := make(chan clientv3.WatchChan, 1)
		go func() { watch <- a.Watch(some, "/planes/a/k", clientv3.WithRev(put.Header.Revision)) }() // once it is made
		wait.For(t, wait.Patience, "the watch waits", func(context.Context) error {
			if c.share.bytes.TryAcquire(1) { // not before who waits
				c.share.bytes.Release(1)
				return errors.New("nobody does")
			}
			return nil
		})
		for range row.written {
			if _, err := root.Put(ctx, "/planes/a/k", fat); err != nil {
				t.Fatal(err)
			}
		}
		most.shrink(0)
		events := 0
		for r := range <-watch {
			if err = r.Err(); err != nil {
				break
			}
			if events += len(r.Events); events > row.written {
				break
			}
		}
		cancel()
		if !errors.Is(err, row.want) || row.want == nil && events != row.written+1 || row.want != nil && events > 0 {
			t.Errorf("%d MiB: %d events, then %v, want %v", row.written, events, err, row.want)
		}
	}
	wait.For(t, wait.Patience, "nothing is held", func(context.Context) error { return f.shares.empty() })
}

// TestPlaneThatWritesMuch: a plane whose stream begins watches in the past while much is
// written of what it watches is served, and not found to stand still.
func TestPlaneThatWritesMuch(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Minute, time.Minute, "a")
	root, a, ctx := s.root(t), s.plane(t, "a"), t.Context()
	const history = 13 // of 310 KB, four times which a share has just room for
	var from int64
	for i := range history {
		r, err := root.Put(ctx, fmt.Sprintf("/planes/a/h/%d", i), strings.Repeat("h", 310_000))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			from = r.Header.Revision
		}
	}
	open := a.Watch(ctx, "/planes/a/x", clientv3.WithCreatedNotify())
	if r := <-open; !r.Created {
		t.Fatal(r.Err())
	}
	var others sync.WaitGroup
	others.Go(func() {
		for range open {
		}
	})
	stop := make(chan struct{})
	others.Go(func() {
		for fat := strings.Repeat("x", 900_000); ; {
			select {
			case <-stop:
				return
			default:
				_, _ = root.Put(ctx, "/planes/a/x", fat)
			}
		}
	})
	for i := range 8 {
		some, cancel := context.WithTimeout(ctx, wait.Patience)
		n := 0
		for r := range a.Watch(some, "/planes/a/h/", clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if r.Err() != nil {
				t.Error(r.Err())
				break
			}
			if n += len(r.Events); n >= history {
				break
			}
		}
		if cancel(); n < history {
			t.Fatalf("watch %d has %d events", i, n)
		}
	}
	close(stop)
	_ = a.Close()
	others.Wait()
	f.shares.mu.Lock()
	defer f.shares.mu.Unlock()
	if stood := f.shares.planes["plane-a"].stood; !stood.IsZero() {
		t.Error("it was found to stand still")
	}
}
