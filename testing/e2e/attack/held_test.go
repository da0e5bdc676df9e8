package attack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

const planeCode = "code of A in A's plane"

// heldFor is how long each attack on the datastore's memory goes on.
const heldFor = 2 * time.Second

// testHeld has code in A's plane, whose datastore is the platform's etcd, ask etcd for
// what no API server does: everything that there is to ask, what others have there, and
// whatever of etcd's memory, which is the server's and so everybody's, can be held.
func testHeld(t *testing.T, s *suite) {
	h := &held{suite: s, id: s.workspaceID(t, dctest.Rival, "box")}
	h.prefix = "/planes/" + h.id + "/"
	c := h.client(t)
	_, err := c.Get(t.Context(), h.prefix+"namespaces/default")
	if !s.control(t, "A's plane reads its own", err) {
		return
	}
	h.methods(t, c)
	h.others(t, c)
	h.shapes(t, c)
	h.memory(t)
	if r := s.Kube(t, s.box, "", "get", "--raw", "/readyz"); r.Code != 0 {
		t.Errorf("A's plane afterwards: %s", r)
	}
}

type held struct {
	*suite
	id, prefix string
}

// client has one connection, as A's plane.
func (h *held) client(t *testing.T) *clientv3.Client {
	t.Helper()
	own := h.Server.Root("var/lib/multipaas/planes", h.id)
	pair, err := tls.LoadX509KeyPair(filepath.Join(own, "etcd.crt"), filepath.Join(own, "etcd.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(own, "etcd-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"unixs://" + h.Server.Root("run/multipaas/etcd.sock")},
		TLS:       &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (h *held) blocked(t *testing.T, what string, err error, want ...codes.Code) {
	t.Helper()
	code := status.Code(err)
	var known interface{ Code() codes.Code } // of etcd's client
	if errors.As(err, &known) {
		code = known.Code()
	}
	h.record(t, attempt{What: what, From: planeCode, Want: fmt.Sprint("one of ", want), Got: fmt.Sprint(err), Blocked: err != nil && slices.Contains(want, code)})
}

// methods asks for everything that etcd can do.
func (h *held) methods(t *testing.T, c *clientv3.Client) {
	uses := []string{"KV/Range", "KV/Put", "KV/DeleteRange", "KV/Txn", "Watch/Watch", "Lease/LeaseGrant", "Maintenance/Status"}
	var all []string
	for _, service := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc, pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc} {
		for _, m := range service.Methods {
			all = append(all, service.ServiceName+"/"+m.MethodName)
		}
		for _, m := range service.Streams {
			all = append(all, service.ServiceName+"/"+m.StreamName)
		}
	}
	all = append(all, "v3lockpb.Lock/Lock", "v3lockpb.Lock/Unlock", "v3electionpb.Election/Campaign", "v3electionpb.Election/Proclaim", "v3electionpb.Election/Leader",
		"v3electionpb.Election/Observe", "v3electionpb.Election/Resign", "grpc.health.v1.Health/Watch", "grpc.health.v1.Health/List",
		"grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "grpc.channelz.v1.Channelz/GetServers")
	for _, m := range all {
		if slices.ContainsFunc(uses, func(use string) bool { return strings.HasSuffix(m, "."+use) }) {
			continue
		}
		h.blocked(t, "ask the datastore for "+m, c.ActiveConnection().Invoke(t.Context(), "/"+m, &emptypb.Empty{}, &emptypb.Empty{}),
			codes.Unimplemented, codes.PermissionDenied, codes.Unauthenticated)
	}
}

// others reaches for what others have in the same etcd.
func (h *held) others(t *testing.T, c *clientv3.Client) {
	ctx := t.Context()
	shop := "/planes/" + h.workspaceID(t, datacenter.Owner, "shop") + "/"
	for _, target := range []struct{ key, end string }{
		{shop, clientv3.GetPrefixRangeEnd(shop)}, {shop + "secrets/default/x", ""}, {"/planes/", "/planes0"}, {"\x00", "\x00"},
		{h.prefix, "\x00"}, {h.prefix[:len(h.prefix)-1], ""}, {h.prefix[:len(h.prefix)-1] + "0", "\xff"}, {"/", "0"}, {"users/", "users0"},
	} {
		name := fmt.Sprintf("%q to %q", target.key, target.end)
		range_ := []clientv3.OpOption{}
		if target.end != "" {
			range_ = append(range_, clientv3.WithRange(target.end))
		}
		_, err := c.Get(ctx, target.key, append(range_, clientv3.WithLimit(1), clientv3.WithKeysOnly())...)
		h.blocked(t, "read "+name, err, codes.PermissionDenied)
		_, err = c.Get(ctx, target.key, append(range_, clientv3.WithCountOnly())...)
		h.blocked(t, "count "+name, err, codes.PermissionDenied)
		_, err = c.Delete(ctx, target.key, range_...)
		h.blocked(t, "delete "+name, err, codes.PermissionDenied)
		if target.key != h.prefix {
			_, err = c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(target.key), ">", 0)).Then(clientv3.OpPut(target.key, "A")).Commit()
			h.blocked(t, "write if it is there "+name, err, codes.PermissionDenied)
		}
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		resp, ok := <-c.Watch(short, target.key, append(range_, clientv3.WithCreatedNotify())...)
		cancel()
		got := errors.New("it is watched")
		if !ok {
			got = errors.New("it ended without a word")
		} else if resp.Err() != nil {
			got = resp.Err()
		}
		h.record(t, attempt{What: "watch " + name, From: planeCode, Want: "permission denied", Got: got.Error(), Blocked: strings.Contains(got.Error(), "permission denied")})
	}
}

// shapes asks in ways that would take memory without a bound.
func (h *held) shapes(t *testing.T, c *clientv3.Client) {
	ctx, all := t.Context(), clientv3.WithPrefix()
	refused := []codes.Code{codes.InvalidArgument, codes.Unimplemented, codes.ResourceExhausted}
	_, err := c.Get(ctx, h.prefix, all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend))
	h.blocked(t, "a list sorted by value", err, refused...)
	_, err = c.Get(ctx, h.prefix, all, clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend), clientv3.WithLimit(1))
	h.blocked(t, "the oldest of a list", err, refused...)
	_, err = c.Get(ctx, h.prefix, all, clientv3.WithMinModRev(2))
	h.blocked(t, "what was written since", err, refused...)
	_, err = c.Txn(ctx).Then(clientv3.OpGet(h.prefix, all)).Commit()
	h.blocked(t, "a transaction that lists", err, refused...)
	_, err = c.Txn(ctx).Then(slices.Repeat([]clientv3.Op{clientv3.OpGet(h.prefix + "x")}, 100)...).Commit()
	h.blocked(t, "a hundred objects in a transaction", err, refused...)
	_, err = c.Txn(ctx).Then(clientv3.OpTxn(nil, nil, nil)).Commit()
	h.blocked(t, "a transaction in a transaction", err, refused...)
	_, err = c.Put(ctx, h.prefix+"held", "x", clientv3.WithPrevKV())
	h.blocked(t, "a write that shows what was there", err, refused...)
	_, err = c.Delete(ctx, h.prefix+"held", clientv3.WithPrevKV())
	h.blocked(t, "a deletion that shows what was there", err, refused...)
	_, err = c.Put(ctx, h.prefix+"held", strings.Repeat("x", 3<<20))
	h.blocked(t, "an object of 3 MiB", err, refused...)
	for _, hours := range []int64{3, 24, 24 * 365, 24 * 365 * 100} {
		_, err = c.Grant(ctx, hours*3600)
		h.blocked(t, fmt.Sprintf("a lease of %d hours", hours), err, refused...)
	}
	for _, id := range []int64{1, 7, -1, 1 << 62} {
		err = c.ActiveConnection().Invoke(ctx, pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{TTL: 60, ID: id}, &pb.LeaseGrantResponse{})
		h.blocked(t, fmt.Sprintf("a lease of the number %d", id), err, refused...)
	}
	// Leases without end.
	var mu sync.Mutex
	made, last := 0, error(nil)
	var wg sync.WaitGroup
	short, cancel := context.WithTimeout(ctx, heldFor)
	defer cancel()
	for range 16 {
		wg.Go(func() {
			for short.Err() == nil {
				_, err := c.Grant(short, 60)
				mu.Lock()
				if err == nil {
					made++
				} else {
					last = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	h.record(t, attempt{What: "leases without end", From: planeCode, Want: "at most 100, and one a second", Got: fmt.Sprintf("%d in %s, then %v", made, heldFor, last), Blocked: made < 150})
}

// memory holds what it can of the server's memory.
func (h *held) memory(t *testing.T) {
	before, err := h.footprints(t.Context(), true)
	if !h.control(t, "what the server takes is known", err) {
		return
	}
	server := h.Server.Name()
	writer := h.client(t)
	for i := range 12 {
		if _, err := writer.Put(t.Context(), fmt.Sprintf("%sheld/%d", h.prefix, i), strings.Repeat("x", 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if _, err := h.client(t).Delete(ctx, h.prefix+"held/", clientv3.WithPrefix()); err != nil {
			t.Error(err)
		}
	}()
	first, err := writer.Get(t.Context(), h.prefix+"held/0")
	if err != nil {
		t.Fatal(err)
	}
	list := &pb.RangeRequest{Key: []byte(h.prefix + "held/"), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(h.prefix + "held/")), Limit: 500}
	watch := func(from int64) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: list.Key, RangeEnd: list.RangeEnd, StartRevision: from, PrevKv: true}}}
	}
	for _, a := range []struct {
		what        string
		method      string
		connections int
		streams     int // on each
		message     any
		writes      bool // meanwhile
	}{
		{"requests without a body", pb.KV_Put_FullMethodName, 4, 500, nil, false},
		{"lists that are never read", pb.KV_Range_FullMethodName, 4, 500, list, false},
		{"single objects that are never read", pb.KV_Range_FullMethodName, 4, 500, &pb.RangeRequest{Key: []byte(h.prefix + "held/1")}, false},
		{"streams of watches that watch nothing", pb.Watch_Watch_FullMethodName, 4, 1000, nil, false},
		{"watches from the past that are never read", pb.Watch_Watch_FullMethodName, 8, 20, watch(first.Kvs[0].ModRevision), false},
		{"watches that are never read, while much is written", pb.Watch_Watch_FullMethodName, 8, 20, watch(0), true},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		end := time.Now().Add(heldFor)
		var wg sync.WaitGroup
		for range a.connections {
			c := h.client(t)
			wg.Go(func() {
				defer c.Close()
				for range a.streams {
					short, cancel := context.WithDeadline(ctx, end)
					st, err := c.ActiveConnection().NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, a.method)
					if err == nil && a.message != nil {
						_ = st.SendMsg(a.message)
					}
					done := short.Err() != nil
					cancel()
					if done {
						return
					}
				}
				<-ctx.Done()
			})
		}
		if a.writes {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					short, cancel := context.WithDeadline(ctx, end)
					_, _ = writer.Put(short, fmt.Sprintf("%sheld/%d", h.prefix, i%12), strings.Repeat("y", 1<<20))
					cancel()
				}
			})
		}
		most := footprint{}
		for time.Now().Before(end) {
			now, err := h.footprints(ctx, false)
			if err != nil {
				t.Error(err)
				break
			}
			most.memory = max(most.memory, now[server].memory)
			time.Sleep(100 * time.Millisecond) // between two looks
		}
		cancel()
		wg.Wait()
		h.record(t, attempt{What: "take memory of the server's own process by " + a.what, From: planeCode, Want: fmt.Sprintf("at most %d MiB more", moreServer>>20),
			Got: fmt.Sprintf("%d MiB, %d before", most.memory>>20, before[server].memory>>20), Blocked: most.memory <= before[server].memory+moreServer})
		// And A's plane is served again.
		again, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := h.client(t).Get(again, h.prefix+"namespaces/default")
		cancel()
		h.control(t, "A's plane reads its own after "+a.what, err)
	}
}
