package limiter

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/cache"
)

// maxBuckets bounds the memory of a Rate: 20,000 x about 300 octets are 6 MB. Who
// comes from everywhere pushes out the oldest, which were the fullest.
const maxBuckets = 20_000

// Rate bounds how often each one who asks may, by a bucket of tokens for each. Its
// methods are safe for concurrent use.
type Rate[K comparable] struct {
	perSecond float64
	burst     int

	mu      sync.Mutex
	buckets *cache.LRUExpireCache
}

// NewRate returns a Rate that gives each one burst tokens at once, and then perSecond.
func NewRate[K comparable](perSecond float64, burst int) *Rate[K] {
	return &Rate[K]{perSecond: perSecond, burst: burst, buckets: cache.NewLRUExpireCache(maxBuckets)}
}

// Take takes n tokens, of which there can be at most burst, from who's bucket. If it
// has not as many, nothing is taken, and wait is after how long it will have.
func (r *Rate[K]) Take(who K, n int) (wait time.Duration) { return r.take(who, n, true) }

// Due is after how long who's bucket will have n tokens; 0: it has.
func (r *Rate[K]) Due(who K, n int) (wait time.Duration) { return r.take(who, n, false) }

func (r *Rate[K]) take(who K, n int, really bool) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bucket := rate.NewLimiter(rate.Limit(r.perSecond), r.burst)
	if known, ok := r.buckets.Get(who); ok {
		bucket = known.(*rate.Limiter)
	}
	now := time.Now()
	taken := bucket.ReserveN(now, min(n, r.burst))
	if wait = taken.DelayFrom(now); wait > 0 || !really {
		taken.CancelAt(now)
		return wait
	}
	// Full again when it is forgotten, as a new one is.
	r.buckets.Add(who, bucket, time.Duration(float64(r.burst)/r.perSecond*float64(time.Second)))
	return 0
}

// Network is what of an address, with or without a port, counts as one source: an
// IPv4 address, or the /64 that one IPv6 host has all to itself.
func Network(source string) string {
	ap, err := netip.ParseAddrPort(source)
	addr := ap.Addr()
	if err != nil {
		if addr, err = netip.ParseAddr(source); err != nil {
			return "?"
		}
	}
	return SourceOf(addr).String()
}

// Patience is the longest that a client of ours waits because it was told to.
const Patience = 30 * time.Second

// Wait is for clients: it waits as long as an answer with 429 says in Retry-After, up to
// Patience, and then says that the request may be sent again: it was refused before
// anything was done. For any other answer, and once ctx is done, it says no at once.
// It leaves the answer's body alone.
func Wait(ctx context.Context, answer *http.Response) (again bool) {
	if answer.StatusCode != http.StatusTooManyRequests {
		return false
	}
	seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
	wait := time.Duration(max(seconds, 0)) * time.Second
	if err != nil || wait > Patience {
		return false
	}
	select {
	case <-time.After(wait):
		return true
	case <-ctx.Done():
		return false
	}
}
