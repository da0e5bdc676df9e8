package etcd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
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
	// each, sendingAtOnce with that, and as much beyond its share.
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
//
// No stream waits for itself. What one has of the share for the past goes back only as it
// sends, so SendMsg waits, for the share or for a slot, only while the stream has none of
// that and asks for none. RecvMsg takes its turn before it asks: what SendMsg waits for
// then is with other streams, of which by the same rule none waits for this one.
type watches struct {
	grpc.ServerStream
	of     *connection
	member *etcdserver.EtcdServer
	// turn is taken by SendMsg while it may wait, and by RecvMsg to say that it is about to.
	turn chan struct{}

	mu     sync.Mutex
	ended  bool
	open   map[int64]struct{} // by id: those that are counted
	made   []*behind          // those that are being made, in order
	behind map[int64]*behind  // by id
	prev   map[int64]bool     // by id: what was there before each change is sent too
}

// behind is a watch that begins in the past, until it has been sent what came since.
type behind struct {
	hold *hold // nil: it needs none of the share
	last int64 // revision of the last change
	prev bool
}

func (f *front) watches(c *connection, s grpc.ServerStream) *watches {
	w := newWatches(c, s)
	w.member = f.log.member.Load()
	return w
}

func newWatches(c *connection, s grpc.ServerStream) *watches {
	return &watches{ServerStream: s, of: c, turn: make(chan struct{}, 1),
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
	look := w.changes(r)
	// What filters leave out would be waited for.
	if len(r.Key)+len(r.RangeEnd) > maxKey || len(r.Filters) > 0 || w.of.share.watchers.Load() >= maxWatchers {
		look = func() (_, _ int64, ok bool, _ error) { return 0, 0, false, nil }
	}
	ok, err := w.begin(b, look)
	if !ok {
		r.Key, r.RangeEnd, r.StartRevision = nil, nil, -1
	}
	return err
}

// begin notes a watch that is about to be made, which has then what it takes of the share.
// Look says how many bytes it is behind by, and the last revision of them: while the watch
// waits that may become more. Not ok: it is too much.
func (w *watches) begin(b *behind, look func() (size, last int64, ok bool, err error)) (ok bool, err error) {
	size, last, ok, err := look()
	if err != nil {
		return false, err
	}
	if ok && size > 0 {
		b.hold = &hold{of: w.of}
	}
	if err := w.expect(b); err != nil {
		return false, err
	}
	for has := int64(0); ok && behindCopies*size > has; {
		b.free()
		has = min(max(behindCopies*size, 2*has, freeBytes), planeBytes)
		if err := b.hold.take(w.Context(), has); err != nil {
			return false, err
		}
		b.hold.wait(true)
		w.mu.Lock()
		ended := w.ended
		w.mu.Unlock()
		if ended { // etcd doesn't wait for who reads
			b.free()
			return false, io.EOF
		}
		if size, last, ok, err = look(); err != nil {
			return false, err
		}
	}
	if !ok {
		b.free()
	}
	b.last = last
	return ok, nil
}

// expect notes a watch that etcd makes next.
func (w *watches) expect(b *behind) error {
	if b.hold != nil {
		select {
		case w.turn <- struct{}{}:
			defer func() { <-w.turn }()
		case <-w.Context().Done():
			return status.FromContextError(w.Context().Err()).Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
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
	b, ok, release, err := w.room(r)
	defer release()
	if err != nil {
		return err
	}
	if !ok {
		w.done(r.WatchId)
		// As after a compaction: whoever wants it lists anew.
		return w.send(&pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Canceled: true, CompactRevision: r.Header.Revision})
	}
	if b == nil {
		return w.send(r)
	}
	p := page{hold: b.hold}
	if err := p.add(r); err != nil {
		b.free()
		return err
	}
	if n := len(r.Events); n > 0 && r.Events[n-1].Kv.ModRevision < b.last {
		return w.send(&ready{p.data, b.hold}) // there is more
	}
	w.mu.Lock()
	delete(w.behind, r.WatchId)
	w.mu.Unlock()
	err = w.send(p.ready())
	// Of a stream that is over meanwhile gRPC forgets to say that it won't be sent.
	if w.Context().Err() != nil {
		b.free()
	}
	return err
}

// room is what r is sent with: nil if it needs nothing. Not ok: with what was there before
// it is too much. Release what it has besides once it is sent, whatever the error.
func (w *watches) room(r *pb.WatchResponse) (b *behind, ok bool, release func(), err error) {
	var slot bool
	var read int64
	release = func() {
		w.of.share.more(-read)
		if slot {
			<-w.of.share.slots
		}
	}
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	b, prev, waits := w.note(r)
	if prev {
		// Who has a slot may wait for the share: so who has some of that doesn't wait for a slot.
		if waits {
			select {
			case w.of.share.slots <- struct{}{}:
				slot = true
			case <-w.Context().Done():
				return nil, false, release, status.FromContextError(w.Context().Err()).Err()
			}
		}
		if read, ok = w.before(r); !ok {
			return nil, false, release, nil
		}
	}
	size := min(int64(proto.Size(r)), planeBytes)
	if b != nil || size <= freeBytes {
		return b, true, release, nil
	}
	var h *hold
	if waits {
		h, err = w.of.hold(w.Context(), size)
	} else {
		h, err = w.of.beyond(size)
	}
	return &behind{hold: h}, true, release, err
}

// done is of a watch that has nothing of the share any more.
func (w *watches) done(id int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind[id].free()
	delete(w.behind, id)
}

// note notes what r says of its watch, and returns what that is behind by, if r has some
// of it. Waits says whether the stream may wait for the share: it has none, and asks for none.
func (w *watches) note(r *pb.WatchResponse) (b *behind, prev, waits bool) {
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
	case r.Canceled && r.CompactRevision != 0: // etcd has it until the client cancels it, but sends no more
		w.behind[r.WatchId].free()
		delete(w.behind, r.WatchId)
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
	past := func(b *behind) bool { return b.hold != nil }
	return b, prev, len(w.behind) == 0 && !slices.ContainsFunc(w.made, past)
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

// changes looks for the bytes that a watch which begins in the past is behind by, and the
// revision of the last of them, each time with what came since. Not ok: they are too many,
// or too far back to say. A plane has that looked for one watch after the other, and never
// among what others have.
func (w *watches) changes(r *pb.WatchCreateRequest) (look func() (size, last int64, ok bool, err error)) {
	m := w.member
	kv := m.KV()
	var size, last, next int64 // next: from there on nobody looked
	return func() (int64, int64, bool, error) {
		if next == 0 && (r.StartRevision <= 0 || r.StartRevision > kv.Rev() || r.StartRevision < kv.FirstRev() || w.denied(r)) {
			return 0, 0, true, nil
		}
		select {
		case w.of.share.scans <- struct{}{}:
			defer func() { <-w.of.share.scans }()
		case <-w.Context().Done():
			return 0, 0, false, w.Context().Err()
		}
		now := kv.Rev()
		if now-r.StartRevision > maxBehind {
			return 0, 0, false, nil
		}
		from, to := mvcc.NewRevBytes(), mvcc.NewRevBytes()
		for at := max(r.StartRevision, next); at <= now; at += behindStep {
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
		next = now + 1
		return size, last, true, nil
	}
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
