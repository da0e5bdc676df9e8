package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

// withPlanes runs a member with some planes whose patience is short.
func withPlanes(t *testing.T, own, others time.Duration, planes ...string) (s *Server, f *front) {
	t.Helper()
	s = New(testConfig(t))
	f = newFront()
	f.shares.ownPatience, f.shares.patience = own, others
	s.front = func() *front { return f }
	runServer(t, s)
	for _, plane := range planes {
		if err := s.EnsureUser(t.Context(), "plane-"+plane, "/planes/"+plane+"/"); err != nil {
			t.Fatal(err)
		}
	}
	return s, f
}

func (s *Server) plane(t *testing.T, name string) *clientv3.Client {
	t.Helper()
	return as(t, s, "plane-"+name, s.cfg.CA, s.cfg.CA, s.Endpoint())
}

// full says whether nothing of so many bytes can be had.
func (s *shares) full(bytes int64) error {
	if s.all.TryAcquire(bytes) {
		s.all.Release(bytes)
		return fmt.Errorf("there are %d bytes", bytes)
	}
	return nil
}

// empty says whether all of it can be had.
func (s *shares) empty() error {
	if s.full(allBytes) == nil {
		return errors.New("something is held")
	}
	return nil
}

// begin has a request begin, by its name alone.
func begin(ctx context.Context, c *clientv3.Client, method string, message any) (grpc.ClientStream, error) {
	s, err := c.ActiveConnection().NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err == nil && message != nil {
		if err = s.SendMsg(message); err == nil {
			err = s.CloseSend()
		}
	}
	return s, err
}

// TestPlanesThatStandStill: whatever planes hold that neither send the rest of what
// they ask nor read what they are answered, others wait once, and a short while.
func TestPlanesThatStandStill(t *testing.T) {
	t.Parallel()
	const patience = 500 * time.Millisecond
	for what, hold := range map[string]func(ctx context.Context, c *clientv3.Client, plane string) error{
		"requests without a body": func(ctx context.Context, c *clientv3.Client, _ string) error {
			_, err := begin(ctx, c, pb.KV_Put_FullMethodName, nil)
			return err
		},
		"answers that nobody reads": func(ctx context.Context, c *clientv3.Client, plane string) error {
			prefix := "/planes/" + plane + "/"
			_, err := begin(ctx, c, pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), Limit: 500})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			names := []string{"a", "b", "c", "d", "e", "f"}
			s, f := withPlanes(t, 4*patience, patience, append(names, "other")...)
			other, planes := s.plane(t, "other"), map[string]*clientv3.Client{}
			for _, name := range names {
				planes[name] = s.plane(t, name)
				for i := range 3 {
					if _, err := planes[name].Put(t.Context(), fmt.Sprintf("/planes/%s/%d", name, i), strings.Repeat("x", 1<<20)); err != nil {
						t.Fatal(err)
					}
				}
			}
			all := func() {
				for name, c := range planes {
					for range 8 {
						_ = hold(t.Context(), c, name) // or its connection is just ended
					}
				}
			}
			all()
			wait.For(t, wait.Patience, "they hold all there is", func(context.Context) error { return f.shares.full(writeCopies * maxMessage) })
			// On a busy machine it may stand still itself: then it asks again.
			ask := func() time.Duration {
				began := time.Now()
				wait.For(t, wait.Patience, "another writes", func(ctx context.Context) error {
					_, err := other.Put(ctx, "/planes/other/x", "y")
					if err != nil && status.Code(err) != codes.Unavailable {
						t.Fatal(err)
					}
					return err
				})
				return time.Since(began)
			}
			// Three hold all there is: another waits for each three once, until they are known.
			known := func() (n int) {
				for _, name := range names {
					f.shares.mu.Lock()
					sh := f.shares.planes["plane-"+name]
					f.shares.mu.Unlock()
					if f.shares.isSlow(sh) {
						n++
					}
				}
				return n
			}
			for i := 0; i < 10 || known() < len(names) && i < 100; i++ {
				if took := ask(); took > patience/2 {
					t.Logf("request %d took %s", i, took)
				}
				all()
			}
			// Three hold all there is at first. Whether more of them come into another's way, chance says.
			if n := known(); n < 3 {
				t.Errorf("%d planes are known to stand still", n)
			} else if err := f.shares.full(writeCopies * maxMessage); n == len(names) && err == nil {
				t.Error("others still find no room")
			}
			// They themselves go on when they are well again.
			well := s.plane(t, "a")
			if _, err := well.Get(t.Context(), "/planes/a/0"); err != nil {
				t.Error(err)
			}
			for _, c := range planes {
				_ = c.Close()
			}
			wait.For(t, wait.Patience, "nothing is held", func(context.Context) error { return f.shares.empty() })
		})
	}
}

// TestPlaneInItsOwnWay: a plane that holds its whole share is served again a while later.
func TestPlaneInItsOwnWay(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, 300*time.Millisecond, time.Hour, "a")
	stuck, well := s.plane(t, "a"), s.plane(t, "a")
	for range 5 {
		if _, err := begin(t.Context(), stuck, pb.KV_Put_FullMethodName, nil); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, wait.Patience, "it holds its share", func(context.Context) error { return f.shares.full(allBytes - planeBytes + 1) })
	if _, err := well.Put(t.Context(), "/planes/a/x", "y"); err != nil {
		t.Error(err)
	}
}

// TestWhatPlanesAsk: planes get what API servers ask for, and so much of it at once.
func TestWhatPlanesAsk(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a", "b")
	a, ctx := s.plane(t, "a"), t.Context()
	for what, err := range map[string]error{
		"a compaction":      errOf(a.Compact(ctx, 1)),
		"its leases":        errOf(a.Leases(ctx)),
		"members":           errOf(a.MemberList(ctx)),
		"a removal":         errOf(a.MemberRemove(ctx, 1)),
		"alarms":            errOf(a.AlarmList(ctx)),
		"a defragment":      errOf(a.Defragment(ctx, s.Endpoint())),
		"a hash":            errOf(a.HashKV(ctx, s.Endpoint(), 0)),
		"users":             errOf(a.UserList(ctx)),
		"a role of root":    errOf(a.UserGrantRole(ctx, "plane-a", Root)),
		"a password":        errOf(a.Authenticate(ctx, "root", "root")),
		"no more users":     errOf(a.AuthDisable(ctx)),
		"a kind unknown":    a.ActiveConnection().Invoke(ctx, "/etcdserverpb.KV/Everything", &pb.PutRequest{}, &pb.PutResponse{}),
		"a lock":            a.ActiveConnection().Invoke(ctx, "/v3lockpb.Lock/Lock", &pb.PutRequest{}, &pb.PutResponse{}),
		"an election":       a.ActiveConnection().Invoke(ctx, "/v3electionpb.Election/Campaign", &pb.PutRequest{}, &pb.PutResponse{}),
		"an end of a lease": errOf(a.Revoke(ctx, 1)),
		"a longer lease":    errOf(a.KeepAliveOnce(ctx, 1)),
		"health, for all":   a.ActiveConnection().Invoke(ctx, "/grpc.health.v1.Health/List", &pb.PutRequest{}, &pb.PutResponse{}),
	} {
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := a.Status(ctx, s.Endpoint()); err != nil {
		t.Error(err)
	}

	chosen := a.ActiveConnection().Invoke(ctx, pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{TTL: 60, ID: 7}, &pb.LeaseGrantResponse{})
	if status.Code(chosen) != codes.InvalidArgument {
		t.Errorf("a lease with a number of its own: %v", chosen)
	}
	if _, err := a.Grant(ctx, maxTTL+1); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a lease of %d s: %v", maxTTL+1, err)
	}
	began := time.Now()
	for i := range leasesAtOnce {
		if _, err := a.Grant(ctx, 3600); err != nil {
			t.Fatalf("lease %d: %v", i, err)
		}
	}
	more := 0
	for ; more < leasesAtOnce; more++ {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_, err := a.Grant(short, 3600)
		cancel()
		if err != nil {
			t.Logf("lease %d: %v", leasesAtOnce+more, err)
			break
		}
	}
	if most := int(time.Since(began).Seconds()*leasesPerSecond) + 1; more > most {
		t.Errorf("%d leases more than %d at once, want at most %d", more, leasesAtOnce, most)
	}

	// Requests that wait, and streams.
	for what, row := range map[string]struct {
		method string
		most   int
	}{"requests": {pb.KV_Put_FullMethodName, maxRequests}, "streams": {pb.Watch_Watch_FullMethodName, maxStreams}} {
		c := s.plane(t, "b")
		held, release := context.WithCancel(ctx)
		var refused error
		n := 0
		for ; n < row.most+10 && refused == nil; n++ {
			st, err := begin(held, c, row.method, nil)
			if err != nil {
				t.Fatal(err)
			}
			if n < row.most {
				continue
			}
			refused = st.RecvMsg(&pb.PutResponse{})
		}
		if n != row.most+1 || status.Code(refused) != codes.ResourceExhausted || !strings.Contains(refused.Error(), "wait for some") {
			t.Errorf("%d %s at once: %v", n, what, refused)
		}
		release()
		wait.For(t, wait.Patience, "they are over", func(context.Context) error {
			f.shares.mu.Lock()
			defer f.shares.mu.Unlock()
			if sh := f.shares.planes["plane-b"]; sh.requests.Load()+sh.streams.Load() != 0 {
				return fmt.Errorf("%d requests and %d streams", sh.requests.Load(), sh.streams.Load())
			}
			return nil
		})
		if _, err := c.Put(ctx, "/planes/b/x", "y"); err != nil {
			t.Error(err)
		}
	}
}

// TestWatchesOfPlanes: a plane's watches are etcd's, but not too many, and not too far back.
func TestWatchesOfPlanes(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a", "b")
	root := s.root(t)
	ctx := t.Context()
	var first int64
	for i := range 40 {
		resp, err := root.Put(ctx, fmt.Sprintf("/planes/a/%d", i%7), strings.Repeat("x", []int{10, 300_000, 0, 5000}[i%4]))
		if err != nil {
			t.Fatal(err)
		}
		if i == 20 {
			first = resp.Header.Revision
			if _, err := root.Delete(ctx, "/planes/a/3"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := root.Put(ctx, "/planes/b/x", strings.Repeat("y", 500_000)); err != nil { // another's isn't its
			t.Fatal(err)
		}
	}
	a := s.plane(t, "a")
	seen := func(c *clientv3.Client, options ...clientv3.OpOption) (events []string, err error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		watch := c.Watch(clientv3.WithRequireLeader(ctx), "/planes/a/", append(options, clientv3.WithPrefix(), clientv3.WithPrevKV())...)
		for resp := range watch {
			if resp.Err() != nil {
				return events, resp.Err()
			}
			for _, e := range resp.Events {
				events = append(events, fmt.Sprint(e.Type, string(e.Kv.Key), e.Kv.ModRevision, len(e.Kv.Value), len(e.PrevKv.GetValue())))
				if string(e.Kv.Key) == "/planes/a/end" {
					return events, nil
				}
			}
		}
		return events, errors.New("the watch ended")
	}
	if _, err := root.Put(ctx, "/planes/a/end", ""); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		got, err := seen(a, clientv3.WithRev(first))
		want, err2 := seen(root, clientv3.WithRev(first))
		if err := errors.Join(err, err2); err != nil || !slices.Equal(got, want) || len(got) != 22 {
			t.Fatalf("since %d: got %q, want %q, %v", first, got, want, err)
		}
	}
	wait.For(t, wait.Patience, "nothing is held", func(context.Context) error { return f.shares.empty() })

	// More than a share has is not sent: as after a compaction, who wants it lists anew.
	for range 8 {
		if _, err := root.Put(ctx, "/planes/a/fat", strings.Repeat("x", 600_000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := seen(a, clientv3.WithRev(first)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("from too far back: %v", err)
	}
	if got, err := a.Get(ctx, "/planes/a/end"); err != nil {
		t.Error(err)
	} else if _, err := root.Put(ctx, "/planes/a/end", ""); err != nil {
		t.Error(err)
	} else if _, err := seen(a, clientv3.WithRev(got.Header.Revision+1)); err != nil {
		t.Error(err)
	}
	if err := watchOf(t, a, strings.Repeat("k", maxKey+1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("a long key: %v", err)
	}

	// So many, and they are given back.
	f.shares.mu.Lock()
	share := f.shares.planes["plane-a"]
	f.shares.mu.Unlock()
	noWatches := func(context.Context) error {
		if n := share.watchers.Load(); n != 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	}
	wait.For(t, wait.Patience, "no watches", noWatches)
	share.watchers.Add(maxWatchers - 1)
	some, cancel := context.WithCancel(ctx)
	if resp := <-a.Watch(some, "/planes/a/x", clientv3.WithCreatedNotify()); !resp.Created {
		t.Errorf("the last one: %+v", resp)
	}
	if err := watchOf(t, a, "/planes/a/y"); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	share.watchers.Add(1 - maxWatchers)
	wait.For(t, wait.Patience, "no watches", noWatches)

	// Who doesn't read has his connection ended when he has written too much.
	b := s.plane(t, "b")
	lazy, err := begin(ctx, b, pb.Watch_Watch_FullMethodName, nil)
	if err == nil {
		err = lazy.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("/planes/b/z")}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	writer := s.plane(t, "b")
	for range 40 {
		if _, err := writer.Put(ctx, "/planes/b/z", strings.Repeat("z", 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, wait.Patience, "its watch is over", func(context.Context) error {
		f.shares.mu.Lock()
		defer f.shares.mu.Unlock()
		if n := f.shares.planes["plane-b"].streams.Load(); n != 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	_ = lazy.CloseSend()
	wait.For(t, wait.Patience, "nothing is held", func(context.Context) error { return f.shares.empty() })
}

// watchOf is how a watch of a key ends.
func watchOf(t *testing.T, c *clientv3.Client, key string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp, ok := <-c.Watch(ctx, key, clientv3.WithCreatedNotify())
	if !ok {
		return errors.New("it ended without a word")
	}
	return resp.Err()
}

// TestRoomOfPlanes: whatever a plane says that it takes, it gets no more than it may, and
// that again when it has deleted something.
func TestRoomOfPlanes(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.PlaneBytes = 24 << 20
	s := New(cfg)
	f := newFront()
	f.measureEvery = 100 * time.Millisecond
	s.front = func() *front { return f }
	runServer(t, s)
	if err := errors.Join(s.EnsureUser(t.Context(), "plane-a", "/planes/a/"), s.EnsureUser(t.Context(), "plane-b", "/planes/b/")); err != nil {
		t.Fatal(err)
	}
	const most = 36 // MiB
	var err error
	a, ctx, began := s.plane(t, "a"), t.Context(), time.Now()
	fat := strings.Repeat("x", 1<<20-rowBytes-100)
	put := func(i int) error { return errOf(a.Put(ctx, fmt.Sprint("/planes/a/", i), fat)) }
	for i := range most {
		if err := put(i); err != nil {
			t.Fatalf("object %d of 1 MiB: %v", i, err)
		}
	}
	wantFull := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "delete objects") {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantFull("one too many", put(most))
	// So much may be written in a time, whatever is deleted meanwhile: it is history.
	if err := errOf(a.Delete(ctx, "/planes/a/", clientv3.WithPrefix())); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "room for what is new", func(context.Context) error { return put(0) })
	more := 0
	for ; more < most && err == nil; more++ {
		if err = put(more); err == nil {
			err = errOf(a.Delete(ctx, fmt.Sprint("/planes/a/", more)))
		}
	}
	wantFull("more than there may be of history", err)
	// The pace goes on meanwhile.
	if more < 9 || more > 14+int(time.Since(began).Seconds())/10 {
		t.Errorf("after %d MiB, and their end, it wrote %d more", most, more)
	}
	// Another isn't in its way, and what there was before a start counts.
	b := s.plane(t, "b")
	root := s.root(t)
	for i := range most - 8 {
		if _, err := root.Put(ctx, fmt.Sprint("/planes/b/", i), fat); err != nil {
			t.Fatal(err)
		}
	}
	took := 0
	for ; took < most; took++ {
		if err = errOf(b.Put(ctx, fmt.Sprint("/planes/b/more", took), fat)); err != nil {
			break
		}
	}
	wantFull("with what there was", err)
	if took < 8 || took > unmeasured>>20+1 {
		t.Errorf("with %d MiB there already it took %d more", most-8, took)
	}
	if err := errOf(b.Delete(ctx, "/planes/b/", clientv3.WithPrefix())); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "room for what is new", func(ctx context.Context) error { return errOf(b.Put(ctx, "/planes/b/x", fat)) })
}

// TestUnreadBodies: what comes of requests that never end has a bound for each plane.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	s, f := withPlanes(t, time.Hour, time.Hour, "a")
	cert, key, err := s.cfg.CA.Issue(pki.Request{CommonName: "plane-a", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("unix", s.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{RootCAs: s.cfg.CA.Pool(), Certificates: []tls.Certificate{pair}, ServerName: s.ServerName(), NextProtos: []string{"h2"}})
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	// Room on the connection, as the server gives it.
	room, ended := make(chan int, 1<<16), make(chan error, 1)
	go func() {
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				ended <- err
				return
			}
			if update, ok := frame.(*http2.WindowUpdateFrame); ok && update.StreamID == 0 {
				room <- int(update.Increment)
			}
		}
	}()
	var head bytes.Buffer
	fields := hpack.NewEncoder(&head)
	left, sent, body := 1<<16-1, 0, make([]byte, 16<<10)
	binary.BigEndian.PutUint32(body[1:], maxMessage-1)
	write := func() error {
		for stream := uint32(1); stream < 2*(maxUnread>>14)+100; stream += 2 {
			head.Reset()
			for _, field := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", pb.Watch_Watch_FullMethodName}, {":authority", "x"},
				{"content-type", "application/grpc"}, {"te", "trailers"}} {
				if err := fields.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
					return err
				}
			}
			if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true}); err != nil {
				return err
			}
			for range 3 {
				for left < len(body) {
					select {
					case n := <-room:
						left += n
					case err := <-ended:
						return err
					}
				}
				if err := framer.WriteData(stream, false, body); err != nil {
					return err
				}
				left, sent = left-len(body), sent+len(body)
			}
		}
		return nil
	}
	if err := write(); err == nil || sent < maxUnread*9/10 {
		t.Errorf("after %d MiB of bodies that never end: %v", sent>>20, err)
	} else {
		t.Logf("ended after %d MiB: %v", sent>>20, err)
	}
	wait.For(t, wait.Patience, "it is forgotten", func(context.Context) error {
		f.shares.mu.Lock()
		defer f.shares.mu.Unlock()
		if n := f.shares.planes["plane-a"].unread.Load(); n != 0 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
}

// TestBodies: a connection's bodies are counted however its frames come.
func TestBodies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var all bytes.Buffer
		all.WriteString(http2.ClientPreface)
		framer, want := http2.NewFramer(&all, nil), int64(0)
		for range r.IntN(30) {
			switch r.IntN(3) {
			case 0:
				_ = framer.WriteSettings()
			case 1:
				_ = framer.WritePing(false, [8]byte{})
			default:
				n := r.IntN(3000)
				_ = framer.WriteData(1, false, make([]byte, n))
				want += int64(n)
			}
		}
		w, got := &wire{left: prefaceBytes}, int64(0)
		for all.Len() > 0 {
			got += w.bodies(all.Next(1 + r.IntN(50)))
		}
		if got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
}
