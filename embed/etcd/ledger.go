package etcd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A plane keeps itself within what its datastore may take (embed/kube/budget), in words
// for its tenant. Somebody who runs code in it need not: so what is written is counted
// here too, and what there is measured when that could be too much. Its own bound
// ends at one and a half of what it may take, history included. Here objects alone may come
// to that, and what is written while there is history of it to twice: so nobody comes
// here who keeps to his own.
const (
	// defaultPlaneBytes is what one plane's objects may take.
	defaultPlaneBytes = 256 << 20
	// historyFor is how long history is kept, at most: two of etcd's compactions.
	historyFor = 10 * time.Minute
	// rowBytes is what a revision takes beside its key and its value.
	rowBytes = 256
	// unmeasured bytes may be written after a start before it is known what there is.
	unmeasured = 16 << 20
	// measureEvery is how long it is not measured again for.
	measureEvery = 10 * time.Second
	// pageAtOnce is about what is read at a time to measure it.
	pageAtOnce = 1 << 20
)

// errFull is said to a plane that hasn't kept to its bound.
var errFull = status.Error(codes.ResourceExhausted,
	"this workspace's part of the datastore is full: delete objects that are not needed")

// ledger is what a plane takes of the database.
type ledger struct {
	most int64
	pace *rate.Limiter // of history

	mu    sync.Mutex // held while it is measured
	live  int64      // as measured
	since int64      // written since
	at    time.Time  // zero: never
	every time.Duration

	prefix atomic.Value // string; nil: not known, it is not measured
}

func newLedger(bytes int64, every time.Duration) *ledger {
	pace := rate.Limit(2 * float64(bytes) / historyFor.Seconds())
	return &ledger{most: bytes / 2 * 3, every: every, pace: rate.NewLimiter(pace, int(2*bytes))}
}

// admit counts a write of so many bytes, or refuses it. It may read all that the plane has.
func (l *ledger) admit(ctx context.Context, m *etcdserver.EtcdServer, bytes int64) error {
	bytes += rowBytes
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.most
	if l.at.IsZero() {
		known = min(known, unmeasured)
	}
	prefix, _ := l.prefix.Load().(string)
	if l.live+l.since+bytes > known && prefix != "" && time.Since(l.at) > l.every {
		live, err := taken(ctx, m.KV(), prefix)
		if err != nil {
			return err
		}
		l.live, l.since, l.at = live, 0, time.Now()
	}
	if l.live+l.since+bytes > l.most || !l.pace.AllowN(time.Now(), int(bytes)) {
		return errFull
	}
	l.since += bytes
	return nil
}

// taken is what the objects below prefix take. It reads a few at a time: nothing says how
// large the next ones are.
func taken(ctx context.Context, kv mvcc.ReadView, prefix string) (bytes int64, err error) {
	key, end := []byte(prefix), []byte(clientv3.GetPrefixRangeEnd(prefix))
	for step := int64(1); ; {
		resp, err := kv.Range(ctx, key, end, mvcc.RangeOptions{Limit: step})
		if err != nil {
			return 0, status.FromContextError(err).Err()
		}
		page := int64(0)
		for _, kv := range resp.KVs {
			page += int64(len(kv.Key)+len(kv.Value)) + rowBytes
		}
		bytes += page
		if int64(len(resp.KVs)) < step {
			return bytes, nil
		}
		key = append(resp.KVs[len(resp.KVs)-1].Key, 0)
		step = min(2*step, objectsAtOnce, max(1, step*pageAtOnce/max(1, page)))
	}
}
