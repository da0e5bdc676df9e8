package etcd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/auth"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// maxWatchers of a plane, of 2 KiB each, and maxKey of what one is for: API servers have
	// one for each kind of object, and one for each of a tenant's own on events.
	maxWatchers, maxKey = 10_000, 2 << 10
	// A watch that begins in the past is sent what came since all at once: as it was read, what
	// was there before each change, and both as they are sent.
	behindCopies = 4
	behindBytes  = planeBytes / behindCopies
	// maxBehind revisions, of all planes, are looked through for that, and behindStep at a time.
	maxBehind, behindStep = 100_000, 500
	// freeBytes of what a watch sends are in no share: streams have a bound.
	freeBytes = 64 << 10
	// sendingBytes of events may be on the way to a plane, as much of what was there before
	// each, and sendingAtOnce with that.
	sendingBytes, sendingAtOnce = planeBytes, 8

	// A lease for events ends with the youngest of them, an hour and a little after it was made;
	// one is made a minute, or for a thousand events.
	maxTTL          = 2 * 60 * 60 // s
	leasesPerSecond = 1
	leasesAtOnce    = 100
)

// watches is the stream of a plane's watches. What waits there to be read is in no share
// as it is read, since etcd keeps it for each stream: who doesn't read for long, or
// writes much meanwhile, has his connection ended, and his watches begin where they were.
type watches struct {
	grpc.ServerStream
	of     *connection
	member *etcdserver.EtcdServer

	mu     sync.Mutex
	ended  bool
	open   map[int64]struct{} // by id: those that are counted
	made   []*behind          // those that are being made, in order
	behind map[int64]*behind  // by id
	prev   map[int64]bool     // by id: what was there before each change is sent too
}

// behind is a watch that begins in the past, until it has been sent what came since.
type behind struct {
	hold *hold
	last int64 // revision of the last change
	prev bool
}

func (f *front) watches(c *connection, s grpc.ServerStream) *watches {
	return &watches{ServerStream: s, of: c, member: f.log.member.Load(),
		open: map[int64]struct{}{}, behind: map[int64]*behind{}, prev: map[int64]bool{}}
}

// end gives back what the stream has.
func (w *watches) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.of.share.watchers.Add(-int64(len(w.open)))
	for _, b := range w.made {
		b.free()
	}
	for _, b := range w.behind {
		b.free()
	}
}

func (b *behind) free() {
	if b != nil && b.hold != nil {
		b.hold.shrink(0)
	}
}

// RecvMsg implements grpc.ServerStream. A watch that can't be is told that it begins
// too far in the past, as after a compaction: whoever wants it lists anew, and sees
// how it is.
func (w *watches) RecvMsg(m any) error {
	if err := w.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r := m.(*pb.WatchRequest).GetCreateRequest()
	if r == nil {
		return nil
	}
	// etcd would read it for all streams at once, whoever waits to send.
	b := &behind{prev: r.PrevKv}
	r.PrevKv = false
	size, last, ok, err := w.changes(r)
	if err != nil {
		return err
	}
	switch {
	case !ok, len(r.Key)+len(r.RangeEnd) > maxKey, w.of.share.watchers.Load() >= maxWatchers:
		r.Key, r.RangeEnd, r.StartRevision = nil, nil, -1
	case size > 0:
		h, err := w.of.hold(w.Context(), behindCopies*size)
		if err != nil {
			return err
		}
		h.wait(true)
		b.hold, b.last = h, last
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended { // etcd doesn't wait for who reads
		b.free()
		return io.EOF
	}
	w.made = append(w.made, b)
	return nil
}

// SendMsg implements grpc.ServerStream.
func (w *watches) SendMsg(m any) error {
	r := m.(*pb.WatchResponse)
	size := int64(proto.Size(r))
	defer w.of.share.done(w, size)
	w.of.share.begin(w, size)
	b, prev, inShare := w.note(r)
	if prev {
		// Who has a slot may wait for the share: so who has some of that doesn't wait for a slot.
		if inShare {
			select {
			case w.of.share.slots <- struct{}{}:
				defer func() { <-w.of.share.slots }()
			case <-w.Context().Done():
				return status.FromContextError(w.Context().Err()).Err()
			}
		}
		read, ok := w.before(r)
		defer w.of.share.more(-read)
		if !ok {
			w.mu.Lock()
			delete(w.behind, r.WatchId)
			w.mu.Unlock()
			b.free()
			// As after a compaction: whoever wants it lists anew.
			return w.send(&pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Canceled: true, CompactRevision: r.Header.Revision})
		}
		size = int64(proto.Size(r))
	}
	if b == nil && inShare {
		if size > freeBytes {
			h, err := w.of.hold(w.Context(), min(size, planeBytes))
			if err != nil {
				return err
			}
			b = &behind{hold: h}
		}
	}
	if b == nil {
		return w.send(r)
	}
	p := page{hold: b.hold}
	if err := p.add(r); err != nil {
		return err
	}
	if n := len(r.Events); n > 0 && r.Events[n-1].Kv.ModRevision < b.last {
		return w.send(&ready{p.data, b.hold}) // there is more
	}
	w.mu.Lock()
	delete(w.behind, r.WatchId)
	w.mu.Unlock()
	return w.send(p.ready())
}

// note notes what r says of its watch, and returns what that is behind by, if r has some
// of it. The rest is in the share unless the stream has more there: it would wait for itself.
func (w *watches) note(r *pb.WatchResponse) (b *behind, prev, inShare bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.Created && len(w.made) > 0:
		b := w.made[0]
		w.made = w.made[1:]
		if r.Canceled {
			b.free()
			break
		}
		w.open[r.WatchId] = struct{}{}
		w.of.share.watchers.Add(1)
		if b.hold != nil {
			w.behind[r.WatchId] = b
		}
		if b.prev {
			w.prev[r.WatchId] = true
		}
	case r.Canceled && r.CompactRevision != 0: // etcd has it until the client cancels it, too
	case r.Canceled:
		if _, ok := w.open[r.WatchId]; ok {
			delete(w.open, r.WatchId)
			w.of.share.watchers.Add(-1)
		}
		w.behind[r.WatchId].free()
		delete(w.behind, r.WatchId)
		delete(w.prev, r.WatchId)
	case len(r.Events) > 0:
		b, prev = w.behind[r.WatchId], w.prev[r.WatchId]
	}
	return b, prev, len(w.behind) == 0
}

// before adds what was there before each change, as etcd does: if it is known still. The
// events themselves belong to all who watch. It returns how many bytes that is, which the
// share has more of. Not ok: it would be too much.
func (w *watches) before(r *pb.WatchResponse) (read int64, ok bool) {
	for i, e := range r.Events {
		if e.Type == mvccpb.Event_PUT && e.Kv.CreateRevision == e.Kv.ModRevision {
			continue
		}
		was, err := w.member.KV().Range(w.Context(), e.Kv.Key, nil, mvcc.RangeOptions{Rev: e.Kv.ModRevision - 1})
		if err == nil && len(was.KVs) > 0 {
			r.Events[i] = &mvccpb.Event{Type: e.Type, Kv: e.Kv, PrevKv: was.KVs[0]}
			size := int64(len(was.KVs[0].Value))
			read += size
			if !w.of.share.more(size) {
				return read, false
			}
		}
	}
	return read, true
}

// more counts what is read of what was there before. Not ok: it is too much.
func (s *share) more(bytes int64) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before += bytes
	return s.before <= sendingBytes
}

// send sends, and doesn't wait for ever.
func (w *watches) send(m any) error {
	late := time.AfterFunc(w.of.shares.ownPatience, w.of.stood)
	defer late.Stop()
	return w.ServerStream.SendMsg(m)
}

// begin notes what a watch is about to send. The connection of one too many ends.
func (s *share) begin(w *watches, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending[w] = s.written
	if s.onTheWay += size; s.onTheWay > sendingBytes {
		w.of.end()
	}
}

func (s *share) done(w *watches, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sending, w)
	s.onTheWay -= size
}

// wrote counts what the plane writes, which waits for each of its watches that sends.
func (s *share) wrote(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += bytes
	for w, then := range s.sending {
		if s.written-then > planeBytes {
			w.of.end()
		}
	}
}

// changes are the bytes that a watch which begins in the past is behind by, and the
// revision of the last of them. Not ok: they are too many, or too far back to say. A plane
// has them looked for one watch after the other, and never among what others have.
func (w *watches) changes(r *pb.WatchCreateRequest) (size, last int64, ok bool, err error) {
	m := w.member
	kv := m.KV()
	now := kv.Rev()
	if r.StartRevision <= 0 || r.StartRevision > now || r.StartRevision < kv.FirstRev() || w.denied(r) {
		return 0, 0, true, nil
	}
	if now-r.StartRevision > maxBehind {
		return 0, 0, false, nil
	}
	select {
	case w.of.share.scans <- struct{}{}:
		defer func() { <-w.of.share.scans }()
	case <-w.Context().Done():
		return 0, 0, false, w.Context().Err()
	}
	from, to := mvcc.NewRevBytes(), mvcc.NewRevBytes()
	for at := r.StartRevision; at <= now; at += behindStep {
		if err := w.Context().Err(); err != nil {
			return 0, 0, false, err
		}
		from = mvcc.RevToBytes(mvcc.Revision{Main: at}, from)
		to = mvcc.RevToBytes(mvcc.Revision{Main: min(at+behindStep, now+1)}, to)
		tx := m.Backend().ReadTx()
		tx.RLock()
		// Not by number: what is on its way to the disk would come first. These are not
		// copies, and no longer there once the lock is gone.
		revisions, values := tx.UnsafeRange(schema.Key, from, to, 0)
		for i, v := range values {
			if watched(r, keyOf(v)) {
				size += int64(len(v))
				last = int64(binary.BigEndian.Uint64(revisions[i]))
			}
		}
		tx.RUnlock()
		if size > behindBytes {
			return 0, 0, false, nil
		}
	}
	return size, last, true, nil
}

// denied says whether etcd won't have the watch, because it isn't of the plane's own.
func (w *watches) denied(r *pb.WatchCreateRequest) bool {
	if len(r.Key) == 0 {
		r.Key = []byte{0} // as etcd does
	}
	who, err := w.member.AuthInfoFromCtx(w.Context())
	if err != nil || who == nil {
		return false
	}
	return errors.Is(w.member.AuthStore().IsRangePermitted(who, r.Key, r.RangeEnd), auth.ErrPermissionDenied)
}

// keyOf is the key in a mvccpb.KeyValue, of which it is the first field.
func keyOf(kv []byte) []byte {
	number, kind, n := protowire.ConsumeTag(kv)
	if n < 0 || number != 1 || kind != protowire.BytesType {
		return nil
	}
	key, n := protowire.ConsumeBytes(kv[n:])
	if n < 0 {
		return nil
	}
	return key
}

// watched says whether a watch is for the key, as etcd has it.
func watched(r *pb.WatchCreateRequest, key []byte) bool {
	switch {
	case len(r.RangeEnd) == 0:
		return bytes.Equal(key, r.Key)
	case len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0:
		return bytes.Compare(key, r.Key) >= 0
	}
	return bytes.Compare(key, r.Key) >= 0 && bytes.Compare(key, r.RangeEnd) < 0
}
