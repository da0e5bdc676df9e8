package etcd

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
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
)

// shares are what all planes have in memory together.
type shares struct {
	all *semaphore.Weighted

	mu     sync.Mutex
	planes map[string]*share // with connections
}

// share is what one plane has.
type share struct {
	bytes       *semaphore.Weighted
	connections int
}

func newShares() *shares {
	return &shares{all: semaphore.NewWeighted(allBytes), planes: map[string]*share{}}
}

// connection is one of a plane's. What it holds ends with it: gRPC forgets what it had
// still to send.
type connection struct {
	shares *shares
	user   string
	share  *share

	mu    sync.Mutex
	holds map[*hold]struct{}
}

func (s *shares) connect(user string) *connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.planes[user]
	if sh == nil {
		sh = &share{bytes: semaphore.NewWeighted(planeBytes)}
		s.planes[user] = sh
	}
	sh.connections++
	return &connection{shares: s, user: user, share: sh, holds: map[*hold]struct{}{}}
}

func (c *connection) close() {
	c.mu.Lock()
	holds := c.holds
	c.holds = nil
	c.mu.Unlock()
	for h := range holds {
		h.shrink(0)
	}
	c.shares.mu.Lock()
	defer c.shares.mu.Unlock()
	if c.share.connections--; c.share.connections == 0 {
		delete(c.shares.planes, c.user)
	}
}

// hold is what one request holds. Its methods may be called by several at once, and
// once it is empty they do nothing.
type hold struct {
	of *connection

	mu    sync.Mutex
	bytes int64
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
	if err := c.share.bytes.Acquire(ctx, bytes); err != nil {
		return err
	}
	if err := c.shares.all.Acquire(ctx, bytes); err != nil {
		c.share.bytes.Release(bytes)
		return err
	}
	h.mu.Lock()
	h.bytes = bytes
	h.mu.Unlock()
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

// shrink gives back what is more than bytes.
func (h *hold) shrink(bytes int64) {
	h.mu.Lock()
	more := h.bytes - bytes
	if more > 0 {
		h.bytes = bytes
	}
	h.mu.Unlock()
	h.free(more, bytes)
}

// give gives so many bytes back.
func (h *hold) give(bytes int64) {
	h.mu.Lock()
	bytes = min(bytes, h.bytes)
	h.bytes -= bytes
	left := h.bytes
	h.mu.Unlock()
	h.free(bytes, left)
}

func (h *hold) free(bytes, left int64) {
	if bytes <= 0 {
		return
	}
	h.of.share.bytes.Release(bytes)
	h.of.shares.all.Release(bytes)
	if left == 0 {
		h.of.mu.Lock()
		delete(h.of.holds, h)
		h.of.mu.Unlock()
	}
}
