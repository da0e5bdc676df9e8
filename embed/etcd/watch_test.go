package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/multipaas/multipaas/testing/wait"
)

func createWatch(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

func cancelWatch(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

// ask sends r and returns what comes next.
func ask(t *testing.T, s grpc.ClientStream, r *pb.WatchRequest) *pb.WatchResponse {
	t.Helper()
	if err := s.SendMsg(r); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return answered(t, s)
}

func answered(t *testing.T, s grpc.ClientStream) *pb.WatchResponse {
	t.Helper()
	got := &pb.WatchResponse{}
	if err := s.RecvMsg(got); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestWatchesFromThePast: what a plane's watches take is counted right, and looking for
// what came since takes little.
func TestWatchesFromThePast(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a", "b")
	root := s.root(t)
	ctx := t.Context()
	put := func(key, value string) (revision int64) {
		t.Helper()
		resp, err := root.Put(ctx, key, value)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	put("/planes/a/x", "1")
	put("/planes/b/x", "1")
	if _, err := root.Compact(ctx, put("/planes/a/x", "2")); err != nil {
		t.Fatal(err)
	}
	a := s.plane(t, "a")
	stream := func(ctx context.Context) grpc.ClientStream {
		t.Helper()
		st, err := begin(ctx, a, pb.Watch_Watch_FullMethodName, nil)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if _, err := a.Get(ctx, "/planes/a/x"); err != nil {
		t.Fatal(err)
	}
	f.shares.mu.Lock()
	share := f.shares.planes["plane-a"]
	f.shares.mu.Unlock()
	counted := func(want int64, what string) {
		t.Helper()
		if got := share.watchers.Load(); got != want {
			t.Errorf("%d watches are counted %s, want %d", got, what, want)
		}
	}

	// Whoever is told of a compaction has his watch until he cancels it, and it counts for one.
	some, end := context.WithCancel(ctx)
	st := stream(some)
	for range 3 {
		if got := ask(t, st, createWatch(&pb.WatchCreateRequest{Key: []byte("/planes/a/x"), StartRevision: 1, WatchId: 7})); !got.Created || got.Canceled {
			t.Fatalf("from before the compaction: %v", got)
		}
		if got := answered(t, st); !got.Canceled || got.CompactRevision == 0 {
			t.Fatalf("from before the compaction, then: %v", got)
		}
		counted(1, "after a compaction")
		if got := ask(t, st, cancelWatch(7)); !got.Canceled || got.CompactRevision != 0 {
			t.Fatalf("its end: %v", got)
		}
		counted(0, "after its end")
		// Nobody is told of the end of none.
		if err := st.SendMsg(cancelWatch(7)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if got := ask(t, st, createWatch(&pb.WatchCreateRequest{Key: []byte("/planes/a/x")})); !got.Created || got.Canceled {
			t.Fatalf("from now: %v", got)
		}
	}
	counted(3, "while they are open")
	end()
	wait.For(t, wait.Patience, "no watches", func(context.Context) error {
		if n := share.watchers.Load(); n != 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})

	// Of what others have nothing is looked for, and nothing told; and of its own one at a time.
	first := put("/planes/b/x", "3")
	put("/planes/a/x", "3")
	for i := range 9 {
		put(fmt.Sprint("/planes/b/", i), strings.Repeat("b", 600_000))
	}
	share.scans <- struct{}{}
	some, end = context.WithCancel(ctx)
	st = stream(some)
	for _, r := range []*pb.WatchCreateRequest{
		{Key: []byte("/planes/b/"), RangeEnd: []byte("/planes/b0"), StartRevision: first},
		{Key: []byte("/planes/"), RangeEnd: []byte("/planes0"), StartRevision: first},
		{Key: []byte("/planes/a/"), RangeEnd: []byte{0}, StartRevision: first},
		{RangeEnd: []byte{0}, StartRevision: first},
		{StartRevision: first},
	} {
		if got := ask(t, st, createWatch(r)); !got.Canceled || !strings.Contains(got.CancelReason, "permission denied") {
			t.Errorf("a watch of %q to %q: %v", r.Key, r.RangeEnd, got)
		}
	}
	counted(0, "that were refused")
	own := createWatch(&pb.WatchCreateRequest{Key: []byte("/planes/a/"), RangeEnd: []byte("/planes/a0"), StartRevision: first})
	gone, leave := context.WithCancel(ctx)
	if err := stream(gone).SendMsg(own); err != nil {
		t.Fatal(err)
	}
	leave() // whoever waits for his turn may go
	if err := st.SendMsg(own); err != nil {
		t.Fatal(err)
	}
	<-share.scans
	if got := answered(t, st); !got.Created || got.Canceled {
		t.Errorf("of its own: %v", got)
	}
	if got := answered(t, st); len(got.Events) != 1 || string(got.Events[0].Kv.Value) != "3" {
		t.Errorf("of its own, then: %v", got)
	}

	end()

	// Who has something of the share waits for nobody who waits for the share.
	for range sendingAtOnce {
		share.slots <- struct{}{}
	}
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if got := <-a.Watch(short, "/planes/a/x", clientv3.WithRev(first), clientv3.WithPrevKV()); len(got.Events) != 1 || string(got.Events[0].PrevKv.GetValue()) != "2" {
		t.Errorf("while others send: %+v", got)
	}
	for range sendingAtOnce {
		<-share.slots
	}

	// What was there before has a bound, too, however small the changes are.
	for i := range sendingBytes>>20 + 1 {
		put(fmt.Sprint("/planes/a/fat/", i), strings.Repeat("x", 1<<20))
	}
	resp, err := root.Delete(ctx, "/planes/a/fat/0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Delete(ctx, "/planes/a/fat/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	since := func(revision int64) error {
		for got := range a.Watch(short, "/planes/a/fat/", clientv3.WithPrefix(), clientv3.WithRev(revision), clientv3.WithPrevKV()) {
			if got.Err() != nil || len(got.Events) == 0 || len(got.Events) == 1 && got.Events[0].PrevKv != nil {
				return got.Err()
			}
		}
		return errors.New("it ended without a word")
	}
	if err := since(resp.Header.Revision); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("small changes of what was large: %v", err)
	}
	put("/planes/a/fat/0", strings.Repeat("x", 1<<20))
	if resp, err = root.Delete(ctx, "/planes/a/fat/0"); err != nil {
		t.Fatal(err)
	}
	if err := since(resp.Header.Revision); err != nil {
		t.Errorf("after that: %v", err)
	}
	wait.For(t, wait.Patience, "nothing is held", func(context.Context) error {
		share.mu.Lock()
		defer share.mu.Unlock()
		if share.before != 0 {
			return fmt.Errorf("%d bytes of what was there before", share.before)
		}
		return f.shares.empty()
	})
}
