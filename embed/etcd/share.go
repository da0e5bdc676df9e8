package etcd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What requests of planes may have in this process's memory at one time. A tenant
// makes his plane ask for whatever he has written, as often and as many at once as he
// likes, and the server's memory is everybody's.
const (
	// allBytes is for all planes, and planeBytes the share of one. Garbage comes on
	// top, about as much again.
	allBytes, planeBytes = 48 << 20, 16 << 20

	// maxMessage is the largest request that etcd takes: 1.5 MiB, and 512 KiB around it.
	maxMessage = 2 << 20
	// writeCopies of a request lie about until it is applied: as it was decoded, for the
	// log, on its way to the log's file, and in the database's buffer.
	writeCopies = 4
	// getBytes is for the answer with one object: as it was read, and as it is sent.
	getBytes = 3 << 20
	// pageBytes is for a page of a list, of which half is sent: what is read at a time
	// has the other half, on average. wholeBytes is for a list that isn't paged.
	pageBytes, wholeBytes = 4 << 20, 12 << 20
	// leastBytes is what any request takes.
	leastBytes = 16 << 10

	// ownPatience is how long a plane may leave the rest of a request unsent, or an answer
	// unread, while only its own requests wait for that; patience, while others' do. It
	// is the same machine, and no network: one that is well takes milliseconds.
	ownPatience, patience = time.Minute, 10 * time.Second
	// slowFor is how long a plane that stood still has its memory with others that did.
	slowFor = 10 * time.Minute
	// remembered is how long a plane without connections is.
	remembered = time.Hour
)

// errUnread is what a stream ends with whose connection does, for what its plane doesn't read.
var errUnread = status.Error(codes.ResourceExhausted, "this workspace's plane reads its watches too slowly")

// shares are what all planes have in memory together.
type shares struct {
	all *semaphore.Weighted
	// slow is, of that, for planes that stood still a short while ago: as much as for
	// one of them, so that others have the rest whatever those do.
	slow *semaphore.Weighted

	ownPatience, patience time.Duration // as above, or a test's

	mu     sync.Mutex
	planes map[string]*share
}

// share is what one plane has.
type share struct {
	user     string
	bytes    *semaphore.Weighted
	leases   *rate.Limiter
	requests atomic.Int64 // under way, but for streams
	streams  atomic.Int64
	watchers atomic.Int64
	unread   atomic.Int64 // bytes of bodies that came

	mu      sync.Mutex
	ledger  *ledger            // nil: it hasn't written yet
	written int64              // bytes, since ever
	sending map[*watches]int64 // with what was written when each began to send
	// onTheWay are the bytes of what they send.
	onTheWay int64
	// before are the bytes of what was there before, of that.
	before int64
	// beyond are the bytes that streams send beyond the share, since they can't wait for it.
	beyond int64
	slots  chan struct{} // of watches that send with what was there before
	scans  chan struct{} // of watches that begin in the past

	// These are under the shares' mu.
	connections map[*connection]struct{}
	ended       time.Time // the last of them
	stood       time.Time // still
	// oldest is no later than anything of it came to wait for the plane, but for
	// what is on connections that were ended.
	oldest time.Time
}

func newShares() *shares {
	return &shares{all: semaphore.NewWeighted(allBytes), slow: semaphore.NewWeighted(planeBytes),
		ownPatience: ownPatience, patience: patience, planes: map[string]*share{}}
}

// connection is one of a plane's. What it holds ends with it: gRPC forgets what it had
// still to send.
type connection struct {
	shares *shares
	share  *share
	wire   *wire // nil in tests
	over   bool  // it was ended for standing still; under the shares' mu

	mu     sync.Mutex
	holds  map[*hold]struct{} // nil: it has ended
	unread int64
	cut    bool // it was ended for what is unread, which counts no more
}

// connect counts a connection. It is an error if the plane has too many.
func (s *shares) connect(user string, w *wire) (*connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for user, sh := range s.planes {
		if len(sh.connections) == 0 && time.Since(sh.ended) > remembered {
			delete(s.planes, user)
		}
	}
	sh := s.planes[user]
	if sh == nil {
		sh = &share{user: user, bytes: semaphore.NewWeighted(planeBytes), leases: rate.NewLimiter(leasesPerSecond, leasesAtOnce),
			sending: map[*watches]int64{}, slots: make(chan struct{}, sendingAtOnce), scans: make(chan struct{}, 1),
			connections: map[*connection]struct{}{}}
		s.planes[user] = sh
	}
	if len(sh.connections) >= maxConnections {
		return nil, fmt.Errorf("%s has %d connections: close some of them", user, maxConnections)
	}
	c := &connection{shares: s, share: sh, wire: w, holds: map[*hold]struct{}{}}
	sh.connections[c] = struct{}{}
	return c, nil
}

// close may be called more than once.
func (c *connection) close() {
	c.mu.Lock()
	holds := c.holds
	c.holds = nil
	c.share.unread.Add(-c.unread)
	c.unread = 0
	c.mu.Unlock()
	for h := range holds {
		h.shrink(0)
	}
	c.shares.mu.Lock()
	defer c.shares.mu.Unlock()
	delete(c.share.connections, c)
	c.share.ended = time.Now()
}

// end has the connection end. It doesn't wait for that.
func (c *connection) end() {
	if c.wire != nil {
		_ = c.wire.raw.Close()
	}
}

// stood ends the connection of a plane that stands still.
func (c *connection) stood() {
	c.shares.mu.Lock()
	c.share.stood = time.Now()
	c.shares.mu.Unlock()
	c.end()
}

// came counts what has come of bodies. When a plane has too much of that, the connection
// ends that has most: what was sent on others, or was never read of requests that are
// long over, is not the doing of whoever sends next.
func (c *connection) came(bytes int64) {
	if c.more(bytes) <= maxUnread {
		return
	}
	if most := c.shares.mostUnread(c.share); most != nil {
		most.end()
	}
}

// mostUnread is the connection of a plane on which most is unread, which counts no more. It
// is nil if too much no longer is.
func (s *shares) mostUnread(sh *share) (most *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh.unread.Load() <= maxUnread {
		return nil
	}
	unread := int64(0)
	for c := range sh.connections {
		c.mu.Lock()
		if c.unread > unread {
			most, unread = c, c.unread
		}
		c.mu.Unlock()
	}
	if most != nil {
		most.mu.Lock()
		most.cut = true
		sh.unread.Add(-most.unread)
		most.unread = 0
		most.mu.Unlock()
	}
	return most
}

// read counts what gRPC has read.
func (c *connection) read(bytes int64) { c.more(-bytes) }

// more counts bytes that came, and returns how many there are of the plane. gRPC may read
// after the connection's end.
func (c *connection) more(bytes int64) (unread int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds == nil || c.cut {
		return 0
	}
	c.unread += bytes
	return c.share.unread.Add(bytes)
}

// isSlow says whether the plane stood still a short while ago.
func (s *shares) isSlow(sh *share) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !sh.stood.IsZero() && time.Since(sh.stood) < slowFor
}

// acquire waits for room. Meanwhile it ends the connections that are in the way, if they
// stand still.
func (s *shares) acquire(
	ctx context.Context, room *semaphore.Weighted, bytes int64, patience time.Duration, inWay func(*share) bool,
) error {
	if room.TryAcquire(bytes) {
		return nil
	}
	got := make(chan error, 1)
	go func() { got <- room.Acquire(ctx, bytes) }()
	look := time.NewTimer(s.endStill(patience, inWay))
	defer look.Stop()
	for {
		select {
		case err := <-got:
			return err
		case <-look.C:
			look.Reset(s.endStill(patience, inWay))
		}
	}
}

// endStill ends connections with something that has waited for their plane for longer
// than patience, and returns after how long there may be more of them.
func (s *shares) endStill(patience time.Duration, inWay func(*share) bool) (next time.Duration) {
	var still []*connection
	next = patience
	s.mu.Lock()
	for _, sh := range s.planes {
		if !inWay(sh) {
			continue
		}
		if time.Since(sh.oldest) >= patience {
			still = append(still, sh.still(patience)...)
		}
		next = min(next, patience-time.Since(sh.oldest))
	}
	s.mu.Unlock()
	for _, c := range still {
		c.stood()
	}
	return max(next, time.Millisecond)
}

// still are the connections with something that has waited for longer than patience.
// The shares' mu is held: it looks at all connections, and so no more often than one of
// them can have come to stand still.
func (s *share) still(patience time.Duration) (still []*connection) {
	s.oldest = time.Now()
	for c := range s.connections {
		if c.over {
			continue
		}
		since := c.waits()
		switch {
		case since.IsZero():
		case time.Since(since) >= patience:
			c.over = true
			still = append(still, c)
		case since.Before(s.oldest):
			s.oldest = since
		}
	}
	return still
}

// waits is since when something of the connection has waited for its plane; zero:
// nothing does.
func (c *connection) waits() (since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h := range c.holds {
		h.mu.Lock()
		if !h.since.IsZero() && h.bytes > 0 && (since.IsZero() || h.since.Before(since)) {
			since = h.since
		}
		h.mu.Unlock()
	}
	return since
}

// hold is what one request holds. Its methods may be called by several at once, and
// once it is empty they do nothing.
type hold struct {
	of *connection

	mu    sync.Mutex
	bytes int64
	slow  bool // it is of what slow planes have
	// beyond says that it isn't of the share.
	beyond bool
	// since is when it came to wait for the plane; zero: it doesn't.
	since time.Time
	// sent says that the rest is with what gRPC sends, and ends with that.
	sent bool
}

// hold waits until so many bytes are free, first of the plane's share and then of all:
// so nobody has more waiting before others than his share.
func (c *connection) hold(ctx context.Context, bytes int64) (*hold, error) {
	h := &hold{of: c}
	return h, h.take(ctx, bytes)
}

// take has the hold, which must be empty, hold so many bytes.
func (h *hold) take(ctx context.Context, bytes int64) error {
	c := h.of
	s := c.shares
	if err := s.acquire(ctx, c.share.bytes, bytes, s.ownPatience, func(sh *share) bool { return sh == c.share }); err != nil {
		return err
	}
	slow := s.isSlow(c.share)
	if slow {
		if err := s.acquire(ctx, s.slow, bytes, s.patience, func(sh *share) bool { return !sh.stood.IsZero() }); err != nil {
			c.share.bytes.Release(bytes)
			return err
		}
	}
	if err := s.acquire(ctx, s.all, bytes, s.patience, func(*share) bool { return true }); err != nil {
		c.share.bytes.Release(bytes)
		if slow {
			s.slow.Release(bytes)
		}
		return err
	}
	return h.has(bytes, slow)
}

// beyond is a hold of what a plane may have beyond its share, for which nobody waits.
// What is too much ends the connection.
func (c *connection) beyond(bytes int64) (*hold, error) {
	c.share.mu.Lock()
	c.share.beyond += bytes
	over := c.share.beyond > sendingBytes
	c.share.mu.Unlock()
	h := &hold{of: c, beyond: true}
	err := h.has(bytes, false)
	if over {
		h.shrink(0)
		c.end()
		return nil, errUnread
	}
	return h, err
}

// has notes what the hold has. It is an error if the connection has ended: then it has nothing.
func (h *hold) has(bytes int64, slow bool) error {
	h.mu.Lock()
	h.bytes, h.slow, h.since = bytes, slow, time.Time{}
	h.mu.Unlock()
	c := h.of
	c.mu.Lock()
	closed := c.holds == nil
	if !closed {
		c.holds[h] = struct{}{}
	}
	c.mu.Unlock()
	if closed {
		h.shrink(0)
		return context.Canceled
	}
	return nil
}

// wait says whether it is the plane's turn now: to send the rest, or to read.
func (h *hold) wait(forPlane bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since = time.Time{}
	if forPlane {
		h.since = time.Now()
	}
}

// shrink gives back what is more than bytes.
func (h *hold) shrink(bytes int64) {
	h.mu.Lock()
	more, slow := h.bytes-bytes, h.slow
	if more > 0 {
		h.bytes = bytes
	}
	h.mu.Unlock()
	h.free(more, bytes, slow)
}

// give gives so many bytes back.
func (h *hold) give(bytes int64) {
	h.mu.Lock()
	bytes = min(bytes, h.bytes)
	h.bytes -= bytes
	left, slow := h.bytes, h.slow
	h.mu.Unlock()
	h.free(bytes, left, slow)
}

func (h *hold) free(bytes, left int64, slow bool) {
	if bytes <= 0 {
		return
	}
	if h.beyond {
		h.of.share.mu.Lock()
		h.of.share.beyond -= bytes
		h.of.share.mu.Unlock()
	} else {
		h.of.share.bytes.Release(bytes)
		if slow {
			h.of.shares.slow.Release(bytes)
		}
		h.of.shares.all.Release(bytes)
	}
	if left == 0 {
		h.of.mu.Lock()
		delete(h.of.holds, h)
		h.of.mu.Unlock()
	}
}
