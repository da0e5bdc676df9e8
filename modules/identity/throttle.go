package identity

import (
	"fmt"
	"github.com/multipaas/multipaas/modules/internal/access"
	"math"
	"net/netip"
	"sync"
	"time"
)

const (
	// One user from one source: ten attempts at once, then one every 6 s. That
	// is 14,400 guesses a day, against the 2^50 of a random 10 letter password.
	userBurst  = 10
	userRefill = 6 * time.Second
	// One source, whatever the user: a team behind one address logs in with 100
	// at once, then one per second.
	sourceBurst  = 100
	sourceRefill = time.Second
	// maxBuckets bounds the memory: 20,000 x about 150 octets are 3 MB.
	maxBuckets = 20_000
)

// throttle slows down whoever guesses passwords. An attempt takes from two
// buckets, one of the user as seen from that source and one of the source; a
// right password gives back. A bucket per user alone was rejected: with it
// anybody could lock anybody out.
type throttle struct {
	now     func() time.Time
	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
	burst  float64
	refill time.Duration
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, buckets: map[string]*bucket{}}
}

// attempt counts one attempt, or refuses it with how long to wait. Its answer
// gives the attempt back.
func (t *throttle) attempt(user, source string) (giveBack func(), err error) {
	source = network(source)
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.bucket("u "+user+" "+source, userBurst, userRefill)
	s := t.bucket("s "+source, sourceBurst, sourceRefill)
	for _, b := range []*bucket{u, s} {
		if b.tokens < 1 {
			wait := time.Duration((1 - b.tokens) * float64(b.refill)).Round(time.Second)
			wait = max(wait, time.Second)
			return nil, &access.Refusal{
				Reason:     access.ErrThrottled,
				Text:       "There were too many attempts to log in from your address.",
				Remedy:     fmt.Sprintf("Try again in %s.", wait),
				RetryAfter: wait,
			}
		}
	}
	u.tokens--
	s.tokens--
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		u.tokens = u.burst
		s.tokens = math.Min(s.burst, s.tokens+1)
	}, nil
}

// bucket returns the bucket of key, filled up to now. The caller has the lock.
func (t *throttle) bucket(key string, burst float64, refill time.Duration) *bucket {
	now := t.now()
	b, ok := t.buckets[key]
	if !ok {
		if len(t.buckets) >= maxBuckets {
			t.evict(now)
		}
		b = &bucket{tokens: burst, burst: burst, refill: refill, at: now}
		t.buckets[key] = b
	}
	b.fill(now)
	return b
}

func (b *bucket) fill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = math.Min(b.burst, b.tokens+float64(d)/float64(b.refill))
		b.at = now
	}
}

// evict drops the buckets that are full again; if an attack from everywhere
// left none, all: that costs the attacker's history, not the server's memory.
func (t *throttle) evict(now time.Time) {
	for key, b := range t.buckets {
		if b.fill(now); b.tokens >= b.burst {
			delete(t.buckets, key)
		}
	}
	if len(t.buckets) >= maxBuckets {
		clear(t.buckets)
	}
}

// network is what counts as one source: an IPv4 address, or the /64 that one
// IPv6 host has all to itself.
func network(source string) string {
	ap, err := netip.ParseAddrPort(source)
	addr := ap.Addr()
	if err != nil {
		if addr, err = netip.ParseAddr(source); err != nil {
			return "?"
		}
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	p, _ := addr.Prefix(64)
	return p.String()
}
