package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// anonymous is the memory of a process that no file has, in bytes.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			n, _ := strconv.Atoi(f[1])
			return n << 10
		}
	}
	t.Fatalf("no RssAnon in %s", data)
	return 0
}

// TestMemoryOfPlanes: what one plane writes and asks for takes a bounded part of the
// server's memory, however much it is and however many ask at once.
func TestMemoryOfPlanes(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes several times the memory")
	}
	dir, err := os.MkdirTemp("", "mp-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg, err := memberConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, pid := startMember(t, dir)
	s := New(cfg)
	if err := s.EnsureUser(t.Context(), "plane-a", "/planes/a/"); err != nil {
		t.Fatal(err)
	}
	// An API server has a connection for each kind.
	var clients []*clientv3.Client
	for range 8 {
		clients = append(clients, as(t, s, "plane-a", cfg.CA, cfg.CA, s.Endpoint()))
	}
	before := anonymous(t, pid)
	var most atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var watched sync.WaitGroup
	watched.Go(func() {
		for ctx.Err() == nil {
			most.Store(max(most.Load(), int64(anonymous(t, pid))))
			time.Sleep(20 * time.Millisecond) // between two looks
		}
	})
	all := func(n int, do func(c *clientv3.Client, i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		var errs []error
		var mu sync.Mutex
		for i := range n {
			wg.Go(func() {
				if err := do(clients[i%len(clients)], i); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	const objects = 16
	fat := strings.Repeat("x", 1<<20)
	for _, row := range []struct {
		what string
		do   func()
	}{
		{"writes", func() {
			all(6*objects, func(c *clientv3.Client, i int) error {
				_, err := c.Put(ctx, fmt.Sprintf("/planes/a/%d", i%objects), fat)
				return err
			})
		}},
		{"lists", func() {
			all(40, func(c *clientv3.Client, _ int) error {
				got, _, err := paged(ctx, c, "/planes/a/", 10_000)
				if err == nil && len(got) != objects {
					err = fmt.Errorf("%d objects, not %d", len(got), objects)
				}
				return err
			})
		}},
		{"single objects", func() {
			all(100, func(c *clientv3.Client, i int) error {
				_, err := c.Get(ctx, fmt.Sprintf("/planes/a/%d", i%objects))
				return err
			})
		}},
	} {
		most.Store(0)
		began := time.Now()
		row.do()
		if more := int(most.Load()) - before; more > 150<<20 {
			t.Errorf("%s: the member took %d MiB more, want at most 150", row.what, more>>20)
		} else {
			t.Logf("%s: %d MiB more than %d, in %v", row.what, more>>20, before>>20, time.Since(began))
		}
	}
	cancel()
	watched.Wait()
}

// paged lists as an API server does: pages of one revision until there is no more.
func paged(ctx context.Context, c *clientv3.Client, prefix string, limit int64) (keys []string, pages int, err error) {
	from, revision := prefix, int64(0)
	for {
		pages++
		resp, err := c.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(limit), clientv3.WithRev(revision))
		if err != nil {
			return nil, pages, err
		}
		for _, kv := range resp.Kvs {
			keys = append(keys, fmt.Sprintf("%s %d %d", kv.Key, kv.ModRevision, len(kv.Value)))
		}
		if more := int64(len(resp.Kvs)) < resp.Count; more != resp.More {
			return nil, pages, fmt.Errorf("%d of %d, and more: %v", len(resp.Kvs), resp.Count, resp.More)
		}
		if !resp.More {
			return keys, pages, nil
		}
		if len(resp.Kvs) == 0 {
			return nil, pages, errors.New("an empty page, and more to come")
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// TestListsOfPlanes: a plane's lists are those of etcd, but for where their pages end.
func TestListsOfPlanes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := testConfig(t)
	s, _ := run(t, cfg)
	for _, plane := range []string{"a", "b", "c"} {
		if err := s.EnsureUser(ctx, "plane-"+plane, "/planes/"+plane+"/"); err != nil {
			t.Fatal(err)
		}
	}
	root := s.root(t)
	write := func(key string, size int) {
		t.Helper()
		if _, err := root.Put(ctx, key, strings.Repeat("x", size)); err != nil {
			t.Fatal(err)
		}
	}
	// Small ones among large ones, so that no guess of what comes next is right.
	for i := range 60 {
		write(fmt.Sprintf("/planes/a/%02d", i), []int{0, 10, 100, 1 << 20, 900, 3, 300_000, 1, 1, 1, 1, 1}[i%12])
	}
	middle, err := root.Get(ctx, "/planes/a/00")
	if err != nil {
		t.Fatal(err)
	}
	write("/planes/a/00", 5)
	if _, err := root.Delete(ctx, "/planes/a/01"); err != nil {
		t.Fatal(err)
	}
	a := as(t, s, "plane-a", cfg.CA, cfg.CA, s.Endpoint())
	for _, limit := range []int64{0, 1, 3, 8, 9, 58, 59, 60, 500, 10_000} {
		got, pages, err := paged(ctx, a, "/planes/a/", limit)
		want, _, err2 := paged(ctx, root, "/planes/a/", limit)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("limit %d: %v", limit, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
		if limit == 0 && pages != 1 {
			t.Errorf("who asks for all got %d pages", pages)
		}
	}
	for what, options := range map[string][]clientv3.OpOption{
		"keys":          {clientv3.WithPrefix(), clientv3.WithKeysOnly()},
		"some keys":     {clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(7)},
		"the number":    {clientv3.WithPrefix(), clientv3.WithCountOnly()},
		"as it was":     {clientv3.WithPrefix(), clientv3.WithRev(middle.Header.Revision), clientv3.WithLimit(4)},
		"one":           {clientv3.WithLimit(1)},
		"one as it was": {clientv3.WithRev(middle.Header.Revision)},
		"a range":       {clientv3.WithRange("/planes/a/05"), clientv3.WithSerializable()},
		"nothing":       {clientv3.WithRange("/planes/a/00\x00"), clientv3.WithLimit(9)},
	} {
		got, err := a.Get(ctx, "/planes/a/00", options...)
		want, err2 := root.Get(ctx, "/planes/a/00", options...)
		if err := errors.Join(err, err2); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got, want := (*pb.RangeResponse)(got).String(), (*pb.RangeResponse)(want).String(); got != want {
			t.Errorf("%s: got %.300s, want %.300s", what, got, want)
		}
	}

	// What is larger than a plane may have at once is had in pages.
	for i := range 14 {
		write(fmt.Sprintf("/planes/b/%02d", i), 1<<20)
	}
	b := as(t, s, "plane-b", cfg.CA, cfg.CA, s.Endpoint())
	for range 3 { // which leaves nothing held
		if _, _, err := paged(ctx, b, "/planes/b/", 0); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "limit=500") {
			t.Errorf("14 MiB at once: %v", err)
		}
	}
	if got, pages, err := paged(ctx, b, "/planes/b/", 500); err != nil || len(got) != 14 || pages < 3 {
		t.Errorf("14 MiB in pages: %d in %d pages, %v", len(got), pages, err)
	}

	for what, do := range map[string]func() error{
		"a transaction that lists": func() error {
			return errOf(b.Txn(ctx).Then(clientv3.OpGet("/planes/b/", clientv3.WithPrefix())).Commit())
		},
		"a transaction in a transaction": func() error {
			return errOf(b.Txn(ctx).Else(clientv3.OpTxn(nil, nil, nil)).Commit())
		},
		"many objects in a transaction": func() error {
			return errOf(b.Txn(ctx).Then(slices.Repeat([]clientv3.Op{clientv3.OpGet("/planes/b/00")}, 20)...).Commit())
		},
		"a deletion that shows what it deleted": func() error {
			return errOf(b.Delete(ctx, "/planes/b/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
		},
		"a write that shows what was there": func() error { return errOf(b.Put(ctx, "/planes/b/00", "x", clientv3.WithPrevKV())) },
		"the same in a transaction, of one key": func() error {
			return errOf(b.Txn(ctx).Then(clientv3.OpPut("/planes/b/00", "x", clientv3.WithPrevKV())).Commit())
		},
		"a deletion of one key that shows it": func() error { return errOf(b.Delete(ctx, "/planes/b/00", clientv3.WithPrevKV())) },
		"two objects in a transaction": func() error {
			return errOf(b.Txn(ctx).Else(clientv3.OpGet("/planes/b/00"), clientv3.OpGet("/planes/b/01")).Commit())
		},
		"the same in a transaction": func() error {
			return errOf(b.Txn(ctx).Then(clientv3.OpDelete("/planes/b/", clientv3.WithPrefix(), clientv3.WithPrevKV())).Commit())
		},
		"a list by size": func() error {
			return errOf(b.Get(ctx, "/planes/b/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)))
		},
		"a list of what was written since": func() error {
			return errOf(b.Get(ctx, "/planes/b/", clientv3.WithPrefix(), clientv3.WithMinModRev(2)))
		},
		"a list as a stream": func() error {
			stream, err := pb.NewKVClient(b.ActiveConnection()).RangeStream(ctx, &pb.RangeRequest{Key: []byte("/planes/b/"), RangeEnd: []byte("/planes/b0")})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	} {
		if code := status.Code(do()); code != codes.InvalidArgument && code != codes.Unimplemented {
			t.Errorf("%s: %v", what, code)
		}
	}
	if _, pages, err := paged(ctx, b, "/planes/b/", 500); err != nil || pages < 3 {
		t.Errorf("after all of that: %d pages, %v", pages, err)
	}

	// What API servers do about a conflict: the object that is in the way is in the answer.
	write("/planes/b/fat", 1<<20)
	for range 40 {
		resp, err := b.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("/planes/b/fat"), "=", 1)).
			Then(clientv3.OpPut("/planes/b/fat", "x")).Else(clientv3.OpGet("/planes/b/fat")).Commit()
		if err != nil || resp.Succeeded || len(resp.Responses) != 1 || len(resp.Responses[0].GetResponseRange().Kvs[0].Value) != 1<<20 {
			t.Fatalf("a conflict: %v, %v", resp, err)
		}
	}

	// Who goes away in the middle of an answer, or never reads it, leaves nothing held.
	for range 2 {
		gone := as(t, s, "plane-b", cfg.CA, cfg.CA, s.Endpoint())
		short, cancel := context.WithCancel(ctx)
		var asked sync.WaitGroup
		for range 8 {
			asked.Go(func() { _, _, _ = paged(short, gone, "/planes/b/", 500) })
		}
		if _, _, err := paged(ctx, gone, "/planes/b/", 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = gone.Close()
		asked.Wait()
	}
	if _, pages, err := paged(ctx, b, "/planes/b/", 500); err != nil || pages < 3 {
		t.Errorf("after others were gone: %d pages, %v", pages, err)
	}
}

// TestSharesOfPlanes: a plane that never ends what it asks for keeps none but itself waiting.
func TestSharesOfPlanes(t *testing.T) {
	s := newShares()
	connect := func(user string) *connection {
		c, err := s.connect(user, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := connect("a"), connect("b")
	var held []*hold
	for range planeBytes / pageBytes {
		h, err := a.hold(t.Context(), pageBytes)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, h)
	}
	waiting, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := a.hold(waiting, leastBytes)
		failed <- err
	}()
	h, err := b.hold(t.Context(), pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("beyond its share: %v", err)
	}

	// What is given back is there again, once.
	h.shrink(100)
	h.give(60)
	h.give(60)
	h.shrink(0)
	held[0].shrink(0)
	held[0].shrink(0)
	if h, err := a.hold(t.Context(), pageBytes); err != nil {
		t.Error(err)
	} else {
		held = append(held, h)
	}
	a.close()
	b.close()
	for _, h := range held { // what gRPC says after the connection's end
		h.give(1)
	}
	if !s.all.TryAcquire(allBytes) {
		t.Error("connections that ended hold something")
	}
	s.all.Release(allBytes)
	for _, sh := range s.planes {
		sh.ended = sh.ended.Add(-2 * remembered)
	}
	connect("c").close()
	if len(s.planes) != 1 {
		t.Errorf("planes without connections for long: %v", s.planes)
	}
	if _, err := a.hold(t.Context(), 1); err == nil {
		t.Error("a connection that ended got something")
	}
}
