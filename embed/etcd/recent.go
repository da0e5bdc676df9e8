package etcd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc/status"
)

const (
	// logBytes of the log's last entries may lie in memory.
	logBytes = 16 << 20
	// logEntries do at most: etcd looks at its log again after a hundred.
	logEntries = keptEntries + 101
	// largeBytes is what waits for room: what is smaller fills no memory.
	largeBytes = 16 << 10
	// pushTimeout: what is pushed is a few KB. If it takes longer, etcd is unwell.
	pushTimeout = 10 * time.Second
)

// recent is what was last written through this member, and may lie in the memory of
// all members: etcd keeps so many entries of its log there, whatever they have in them.
// When they have too much it is pushed out, by entries that have nothing in them.
type recent struct {
	member atomic.Pointer[etcdserver.EtcdServer] // nil: not started

	mu    sync.Mutex
	sizes [logEntries]int
	next  int
	sum   int
	// pushed is closed once there is room; nil: nobody makes any.
	pushed chan struct{}
}

// add notes an entry that is about to be written. A large one waits while there is no room.
func (r *recent) add(ctx context.Context, size int) error {
	r.mu.Lock()
	for size >= largeBytes && r.pushed != nil {
		pushed := r.pushed
		r.mu.Unlock()
		select {
		case <-pushed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	r.note(size)
	if m := r.member.Load(); m != nil && r.sum > logBytes && r.pushed == nil {
		// What comes from now on is behind what is pushed, but for what is under way.
		for range logEntries {
			r.note(0)
		}
		r.pushed = make(chan struct{})
		go r.push(m, r.pushed)
	}
	return nil
}

func (r *recent) note(size int) {
	r.sum += size - r.sizes[r.next]
	r.sizes[r.next] = size
	r.next = (r.next + 1) % len(r.sizes)
}

// push writes what has nothing in it: the question whether users must be somebody goes
// through the log, and changes nothing. All at once, so that many share one sync.
func (r *recent) push(m *etcdserver.EtcdServer, pushed chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), pushTimeout)
	defer cancel()
	var all sync.WaitGroup
	for range logEntries {
		all.Go(func() { _, _ = m.AuthStatus(ctx, &pb.AuthStatusRequest{}) })
	}
	all.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushed = nil
	close(pushed)
}
