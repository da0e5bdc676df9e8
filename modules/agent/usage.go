package agent

import (
	"sync"
	"time"
)

const (
	// usedEvery is how often what is used of a thing is told though little has changed: each
	// time is a write of the server's. A thousand volumes that are written to are two in a second.
	usedEvery = 10 * time.Minute
	// usedStep, or a hundredth of its size if that is more, is a change that is told at once.
	usedStep = 16 << 20
)

// usage keeps what is told of how much of things is used from changing with each look. The zero
// value is ready; it is safe for concurrent use.
type usage struct {
	mu   sync.Mutex
	told map[string]toldUsage // by UID
}

type toldUsage struct {
	used int64
	at   time.Time
}

// look begins a look at all of them: of what is not asked for in it nothing is kept. steady is what
// is told of a thing of which so much is used now.
func (u *usage) look() (steady func(uid string, used, size int64) int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before, now := u.told, map[string]toldUsage{}
	u.told = now
	return func(uid string, used, size int64) int64 {
		u.mu.Lock()
		defer u.mu.Unlock()
		is, ok := before[uid]
		change := max(used-is.used, is.used-used)
		// Nothing is what a thing has before it is mounted: what it has then is no small change.
		if began := is.used == 0 && used > 0; !ok || began || change >= max(usedStep, size/100) || time.Since(is.at) >= usedEvery {
			is = toldUsage{used, time.Now()}
		}
		now[uid] = is
		return is.used
	}
}
