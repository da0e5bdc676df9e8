package etcd

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // which the codec is made of
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// front stands in etcd's gRPC server before what serves requests, and gives each plane
// its share of the memory: a request waits before it is read, for the largest that it
// could be; then it holds what it takes; and its answer holds that until it is sent.
type front struct {
	shares *shares
	log    *recent

	planeBytes   int64
	prefixes     *sync.Map
	measureEvery time.Duration // measureEvery, or a test's
}

func newFront() *front {
	return &front{shares: newShares(), log: &recent{}, measureEvery: measureEvery}
}

// options are those of the gRPC server, which knows its clients by c.
func (f *front) options(c credentials.TransportCredentials) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(door{c, f.shares}),
		grpc.InTapHandle(f.tap),
		grpc.StatsHandler(f),
		grpc.ChainUnaryInterceptor(f.unary),
		grpc.ChainStreamInterceptor(f.stream),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		// What came and wasn't read is in no share: 64 KiB a request, where gRPC would
		// let it grow to 16 MiB.
		grpc.StaticStreamWindowSize(64 << 10),
	}
}

type (
	connectionKey struct{}
	holdKey       struct{}
)

// TagConn implements stats.Handler.
func (f *front) TagConn(ctx context.Context, info *stats.ConnTagInfo) context.Context {
	if from, ok := info.RemoteAddr.(from); ok && from.wire.of != nil {
		return context.WithValue(ctx, connectionKey{}, from.wire.of)
	}
	return ctx
}

// HandleConn implements stats.Handler.
func (f *front) HandleConn(context.Context, stats.ConnStats) {}

func planeOf(ctx context.Context) *connection {
	c, _ := ctx.Value(connectionKey{}).(*connection)
	return c
}

// TagRPC implements stats.Handler. gRPC calls it in the request's own goroutine, before
// the request is read.
func (f *front) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	c := planeOf(ctx)
	if c == nil || !strings.HasPrefix(info.FullMethodName, "/"+pb.KV_ServiceDesc.ServiceName+"/") {
		return ctx
	}
	h, err := c.hold(ctx, writeCopies*maxMessage)
	if err != nil {
		return ctx // the client is gone
	}
	h.wait(true)
	return context.WithValue(ctx, holdKey{}, h)
}

// HandleRPC implements stats.Handler.
func (f *front) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		if c := planeOf(ctx); c != nil {
			c.read(int64(in.WireLength))
		}
	}
	h, ok := ctx.Value(holdKey{}).(*hold)
	if !ok {
		return
	}
	switch s := s.(type) {
	case *stats.InPayload:
		h.wait(false)
		switch r := s.Payload.(type) {
		case *pb.RangeRequest:
			if len(r.RangeEnd) == 0 {
				h.shrink(getBytes)
			} else {
				h.shrink(pageBytes)
			}
		default:
			least := int64(leastBytes)
			if gets(s.Payload) {
				least = getBytes
			}
			h.shrink(max(writeCopies*int64(s.Length), least))
		}
	case *stats.OutPayload:
		// Of an answer to who has gone meanwhile gRPC forgets to say that it won't be sent.
		if ctx.Err() != nil {
			h.shrink(0)
		}
	case *stats.End:
		h.mu.Lock()
		sent := h.sent
		h.mu.Unlock()
		if !sent {
			h.shrink(0)
		}
	}
}

// unary serves a request that is read.
func (f *front) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c := planeOf(ctx)
	h, held := ctx.Value(holdKey{}).(*hold)
	switch r := req.(type) {
	case *pb.RangeRequest:
		if c == nil {
			break
		}
		if !held {
			return nil, status.FromContextError(context.Canceled).Err()
		}
		return answer(ctx, h, r, func(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
			resp, err := next(ctx, r)
			if err != nil {
				return nil, err
			}
			return resp.(*pb.RangeResponse), nil
		})
	case *pb.TxnRequest, *pb.PutRequest, *pb.DeleteRangeRequest:
		if c != nil {
			if !held {
				return nil, status.FromContextError(context.Canceled).Err()
			}
			if err := plain(req); err != nil {
				return nil, err
			}
			if size := puts(req); size > 0 { // deleting goes on
				if err := f.ledgerOf(c.share).admit(ctx, f.log.member.Load(), size); err != nil {
					return nil, err
				}
				c.share.wrote(size)
			}
		}
		if err := f.log.add(ctx, proto.Size(req.(proto.Message))); err != nil {
			return nil, err
		}
		if c != nil && gets(req) {
			resp, err := next(ctx, req)
			if err != nil {
				return nil, err
			}
			p := page{hold: h}
			if err := p.add(resp.(*pb.TxnResponse)); err != nil {
				return nil, err
			}
			return p.ready(), nil
		}
	case *pb.LeaseGrantRequest:
		// etcd knows no owners of leases, which it keeps in memory and in its database.
		if c == nil {
			break
		}
		if r.ID != 0 { // it would be easy to guess for others
			return nil, status.Error(codes.InvalidArgument, "planes don't choose the number of a lease")
		}
		if r.TTL > maxTTL {
			return nil, status.Errorf(codes.InvalidArgument, "leases of planes end after %d s", int64(maxTTL))
		}
		if err := c.share.leases.Wait(ctx); err != nil {
			return nil, status.Error(codes.ResourceExhausted, "this workspace makes too many leases: "+err.Error())
		}
	}
	return next(ctx, req)
}

// ledgerOf is what the plane with this share has in the database.
func (f *front) ledgerOf(s *share) *ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledger == nil {
		s.ledger = newLedger(f.planeBytes, f.measureEvery)
	}
	if prefix, ok := f.prefixes.Load(s.user); ok {
		s.ledger.prefix.Store(prefix)
	}
	return s.ledger
}

// puts is how many bytes a plain write may add.
func puts(req any) (bytes int64) {
	put := func(r *pb.PutRequest) {
		if r != nil {
			bytes += int64(len(r.Key) + len(r.Value) + 1)
		}
	}
	switch r := req.(type) {
	case *pb.PutRequest:
		put(r)
	case *pb.TxnRequest:
		for _, op := range slices.Concat(r.Success, r.Failure) {
			put(op.GetRequestPut())
		}
	}
	return bytes
}

// stream serves a stream.
func (f *front) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	c := planeOf(s.Context())
	if c == nil || info.FullMethod != pb.Watch_Watch_FullMethodName {
		return next(srv, s)
	}
	w := f.watches(c, s)
	defer w.end()
	return next(srv, w)
}

// maxOps of a plane's transaction: an API server's have three.
const maxOps = 8

// plain refuses a plane's write whose answer could be larger than one object. API
// servers write one object at a time, and read the one that is in the way.
func plain(req any) error {
	refused := status.Error(codes.InvalidArgument, "planes write single keys, and a few at a time")
	switch r := req.(type) {
	case *pb.PutRequest:
		if r.PrevKv {
			return refused
		}
	case *pb.DeleteRangeRequest:
		if r.PrevKv {
			return refused
		}
	case *pb.TxnRequest:
		if len(r.Success)+len(r.Failure) > maxOps {
			return refused
		}
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			read := 0
			for _, op := range ops {
				if op.GetRequestRange() != nil {
					read++
				}
				if read > 1 || op.GetRequestTxn() != nil || len(op.GetRequestRange().GetRangeEnd()) > 0 ||
					op.GetRequestPut().GetPrevKv() || op.GetRequestDeleteRange().GetPrevKv() {
					return refused
				}
			}
		}
	}
	return nil
}

// gets says whether a plain write may be answered with an object.
func gets(req any) bool {
	r, ok := req.(*pb.TxnRequest)
	return ok && slices.ContainsFunc(slices.Concat(r.Success, r.Failure), func(op *pb.RequestOp) bool {
		return op.GetRequestRange() != nil
	})
}

// ready is an answer as it is sent.
type ready struct {
	data mem.BufferSlice
	hold *hold
}

// codec sends answers that are ready, and knows protobuf.
type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*ready)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	r.hold.mu.Lock()
	r.hold.sent = true
	r.hold.mu.Unlock()
	return r.data, nil
}
