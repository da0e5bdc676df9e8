package identity

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
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
	// Logins of one user that are right, from wherever: 60 at once, then one a second.
	// Each is a session in the datastore.
	loginBurst  = 60
	loginRefill = time.Second
	// Tokens that are not known to be good, from one source: each costs a read of the
	// datastore. A team's robots come with as many at once.
	tokensPerSecond = 100
	tokensAtOnce    = 1000
	// maxBuckets bounds the memory: 20,000 x about 300 octets are 6 MB. An attack
	// from everywhere pushes out the oldest: that costs the attacker's history.
	maxBuckets = 20_000
)

// throttle slows down whoever guesses passwords. An attempt takes from two
// buckets, one of the user as seen from that source and one of the source; a
// right password gives back. A bucket per user alone was rejected: with it
// anybody could lock anybody out.
type throttle struct {
	now     func() time.Time
	mu      sync.Mutex
	buckets *cache.LRUExpireCache
}

type bucket struct {
	key    string
	tokens float64
	at     time.Time
	burst  float64
	refill time.Duration
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, buckets: cache.NewLRUExpireCacheWithClock(maxBuckets, timer(now))}
}

// attempt counts one attempt, or refuses it with how long to wait. Its answer
// gives the attempt back.
func (t *throttle) attempt(user, source string) (giveBack func(), err error) {
	source = limiter.Network(source)
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.bucket("u "+user+" "+source, userBurst, userRefill)
	s := t.bucket("s "+source, sourceBurst, sourceRefill)
	both := []*bucket{u, s}
	for _, b := range both {
		if b.tokens < 1 {
			wait := max(time.Duration((1-b.tokens)*float64(b.refill)).Round(time.Second), time.Second)
			return nil, &access.Refusal{
				Reason:     access.ErrThrottled,
				Text:       "There were too many attempts to log in from your address.",
				Remedy:     fmt.Sprintf("Try again in %s.", wait),
				RetryAfter: wait,
			}
		}
	}
	// Only what was taken from is kept: else names that are refused anyway would push
	// out those of before.
	for _, b := range both {
		b.tokens--
		t.buckets.Add(b.key, b, time.Duration(b.burst)*b.refill) // full again by then, as a new one is
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		u.tokens = u.burst
		s.tokens = min(s.burst, s.tokens+1)
	}, nil
}

// login counts a login of user with the right password, or refuses it.
func (t *throttle) login(user string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.bucket("l "+user, loginBurst, loginRefill)
	if b.tokens < 1 {
		return &access.Refusal{
			Reason:     access.ErrThrottled,
			Text:       user + " logs in too often.",
			Remedy:     "Use the token of one login for more, or try again in a second.",
			RetryAfter: time.Second,
		}
	}
	b.tokens--
	t.buckets.Add(b.key, b, time.Duration(b.burst)*b.refill)
	return nil
}

// bucket returns the bucket of key, filled up to now. The caller has the lock.
func (t *throttle) bucket(key string, burst float64, refill time.Duration) *bucket {
	now := t.now()
	b := &bucket{key: key, tokens: burst, burst: burst, refill: refill}
	if known, ok := t.buckets.Get(key); ok {
		b = known.(*bucket)
		b.tokens = min(burst, b.tokens+float64(max(now.Sub(b.at), 0))/float64(refill))
	}
	b.at = now
	return b
}
