package etcd

import (
	"bytes"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// keysAtOnce is how many keys of a list are looked up at a time: 1 MiB of them.
	keysAtOnce = 5000
	// objectsAtOnce is how many objects are read at a time: 12 MiB if they are as large
	// as can be, 2 MiB once one was that large.
	objectsAtOnce, objectBytes = 8, 2 << 20
)

// errWhole is said to who asks for too much at once. He sees it in his own cluster.
var errWhole = status.Errorf(codes.ResourceExhausted,
	"this list has more than %d MiB: ask for it in pages (limit=500, then continue)", wholeBytes>>20)

// errTooBig is returned by page for a list that doesn't fit.
var errTooBig = status.Error(codes.ResourceExhausted, "the list is too big")

type ranger func(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)

// answer answers a plane's Range with what h holds. A list with a limit ends where a
// page is full, with more to come, which etcd's clients go on from; etcd itself makes
// it all in memory, and then the answer from it. A list without a limit has a bound.
func answer(ctx context.Context, h *hold, r *pb.RangeRequest, read ranger) (any, error) {
	if len(r.RangeEnd) == 0 || r.CountOnly {
		resp, err := read(ctx, r)
		if err != nil {
			return nil, err
		}
		p := page{hold: h}
		if err := p.add(resp); err != nil {
			return nil, err
		}
		return p.ready(), nil
	}
	if r.SortOrder == pb.RangeRequest_DESCEND || r.SortTarget != pb.RangeRequest_KEY ||
		r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0 {
		return nil, status.Error(codes.Unimplemented, "planes list by key, upwards, and all that there is")
	}
	resp, err := list(ctx, h, r, read, pageBytes/2)
	if err == errTooBig {
		h.shrink(0)
		if err := h.take(ctx, wholeBytes+objectBytes); err != nil {
			return nil, status.FromContextError(err).Err()
		}
		if resp, err = list(ctx, h, r, read, wholeBytes); err == errTooBig {
			err = errWhole
		}
	}
	return resp, err
}

// list answers with at most about so many bytes. ErrTooBig: r has no limit, and there is
// more. The list is of one revision, and so nothing is missed or there twice.
func list(ctx context.Context, h *hold, r *pb.RangeRequest, read ranger, most int) (any, error) {
	p := page{hold: h}
	var last *pb.RangeResponse // with what is said about all of the list
	keys, n, step := proto.Clone(r).(*pb.RangeRequest), int64(0), 1
	keys.KeysOnly = true
	for {
		keys.Limit = keysAtOnce
		if r.Limit > 0 {
			keys.Limit = min(keys.Limit, r.Limit-n)
		}
		found, err := read(ctx, keys)
		if err != nil {
			return nil, err
		}
		if last == nil {
			last = &pb.RangeResponse{Header: found.Header, Count: found.Count}
			// This member has it now, or has said that it can't.
			keys.Serializable = true
			if keys.Revision == 0 {
				keys.Revision = found.Header.Revision
			}
		}
		for len(found.Kvs) > 0 && p.bytes < most {
			now := min(step, len(found.Kvs))
			if r.KeysOnly {
				now = len(found.Kvs)
			}
			objects := &pb.RangeResponse{Kvs: found.Kvs[:now]}
			if !r.KeysOnly {
				end := append(bytes.Clone(found.Kvs[now-1].Key), 0)
				resp, err := read(ctx, &pb.RangeRequest{Key: found.Kvs[0].Key, RangeEnd: end, Revision: keys.Revision, Serializable: true})
				if err != nil {
					return nil, err
				}
				objects.Kvs = resp.Kvs
			}
			before := p.bytes
			if err := p.add(objects); err != nil {
				return nil, err
			}
			step = min(2*step, objectsAtOnce, max(1, objectBytes*now/max(1, p.bytes-before)))
			keys.Key = append(bytes.Clone(found.Kvs[now-1].Key), 0)
			found.Kvs, n = found.Kvs[now:], n+int64(now)
		}
		last.More = len(found.Kvs) > 0 || found.More
		if p.bytes >= most && last.More && r.Limit == 0 {
			return nil, errTooBig
		}
		if !last.More || p.bytes >= most || n == r.Limit {
			break
		}
	}
	if err := p.add(last); err != nil {
		return nil, err
	}
	return p.ready(), nil
}

// page is an answer that grows.
type page struct {
	hold  *hold
	data  mem.BufferSlice
	bytes int
}

// add adds to the answer: protobuf takes messages behind one another for one with all
// that is in them.
func (p *page) add(part proto.Message) error {
	data, err := proto.Marshal(part)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	p.bytes += len(data)
	p.data = append(p.data, mem.NewBuffer(&data, sent{p.hold}))
	return nil
}

// ready is the answer, which holds what it takes and no more.
func (p *page) ready() *ready {
	var held int64
	for _, b := range p.data {
		if _, small := b.(mem.SliceBuffer); !small { // gRPC doesn't say when it has sent those
			held += int64(b.Len())
		}
	}
	p.hold.shrink(held)
	p.hold.wait(true)
	return &ready{p.data, p.hold}
}

// sent is told when a part of an answer is sent, or won't be.
type sent struct{ hold *hold }

// Get implements mem.BufferPool. Nobody calls it.
func (s sent) Get(n int) *[]byte { b := make([]byte, n); return &b }

// Put implements mem.BufferPool.
func (s sent) Put(data *[]byte) { s.hold.give(int64(len(*data))) }
