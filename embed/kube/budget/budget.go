// Package budget bounds what a workspace keeps in its datastore. All planes of a
// server share its disk, or its etcd, and a tenant is cluster-admin: nothing of
// Kubernetes' own, quotas included, holds him.
//
// It promises that no write is let through that would take the datastore over
// its limit, that deleting is possible at any time, and that what was deleted
// makes room again. Old revisions count until they are compacted: a small
// object that is written a thousand times a second takes as much as a thousand.
//
// Parties: package guard asks Admit at each write; package plane knows the
// datastore and has Run look after it; embed/plane of the main module reads the
// status file. Only these import it.
package budget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Store is the datastore. Its methods are called one at a time.
type Store interface {
	// Used is what it holds, in bytes.
	Used(ctx context.Context) (int64, error)
	// Reclaim gives free what is only history, but for the last keep of it. It is called
	// again and again while the datastore is nearly full, and need not do all at once: writers
	// may have to wait for it.
	Reclaim(ctx context.Context, keep time.Duration) error
}

// Config describes a Budget.
type Config struct {
	// LimitBytes is where it is full. 0: no limit, and Admit lets all pass.
	LimitBytes int64 `json:"limitBytes"`
	// ShareFile holds a Share, which may be less than LimitBytes and change at any time.
	// Without one, or with one that can't be read, LimitBytes stands.
	ShareFile string `json:"shareFile,omitempty"`
	// StatusFile gets a Status each time that it has changed.
	StatusFile string `json:"statusFile"`
	// HistorySeconds is how long old revisions are kept if Store.Used does not
	// count them: what was written in that time is then added to it.
	HistorySeconds int64 `json:"historySeconds,omitempty"`
}

// Share is the content of the share file: what the datastore may take of what it has in
// common with others.
type Share struct {
	LimitBytes int64 `json:"limitBytes"`
	// Why is a sentence for users, on what it is less for.
	Why string `json:"why,omitempty"`
}

// Status is the content of the status file.
type Status struct {
	UsedBytes  int64 `json:"usedBytes"`
	LimitBytes int64 `json:"limitBytes"`
}

const (
	lookEvery    = 15 * time.Second
	reclaimEvery = 3 * time.Second // while it is nearly full
	fresh        = time.Second     // a measurement this young is not made again
	// A list of many pages is of one revision, and begins anew if that becomes history
	// that is gone: so some is kept, less of it when that is in the way of writes.
	keptHistory, keptWhenFull = time.Minute, 10 * time.Second
	// rowBytes is what a revision takes beside its value: its key, in the row and
	// in five indexes of kine's.
	rowBytes = 1 << 10
)

// Budget is safe for concurrent use.
type Budget struct {
	cfg   Config
	store Store
	now   func() time.Time

	asking  chan struct{} // holds one while Store is asked
	mu      sync.Mutex
	used    int64 // as measured
	at      time.Time
	since   int64 // written after at, an upper bound
	history [ages]int64
	age     int64 // the number of the youngest slot of history
	share   Share
	shared  time.Time // when the share file was written that share is from
	told    Status    // of look alone
}

// ages is the number of slots that the time of history is divided into.
const ages = 20

// New returns a Budget. Without a Store there is no limit.
func New(cfg Config, store Store) *Budget {
	if store == nil {
		cfg.LimitBytes = 0
	}
	b := &Budget{cfg: cfg, store: store, now: time.Now, asking: make(chan struct{}, 1), share: Share{LimitBytes: cfg.LimitBytes}}
	b.readShare()
	return b
}

// limit wants b.mu.
func (b *Budget) limit() int64 { return b.share.LimitBytes }

// readShare looks whether the share has changed.
func (b *Budget) readShare() {
	if b.cfg.ShareFile == "" || b.cfg.LimitBytes == 0 {
		return
	}
	share := Share{LimitBytes: b.cfg.LimitBytes}
	info, err := os.Stat(b.cfg.ShareFile)
	if err == nil {
		b.mu.Lock()
		same := b.shared.Equal(info.ModTime())
		b.mu.Unlock()
		if same {
			return
		}
		var data []byte
		if data, err = os.ReadFile(b.cfg.ShareFile); err == nil {
			var read Share
			if err = json.Unmarshal(data, &read); err == nil && read.LimitBytes > 0 && read.LimitBytes < share.LimitBytes {
				share = read
			}
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "Read the share of the room for datastores")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.share, b.shared = share, time.Time{}
	if err == nil {
		b.shared = info.ModTime()
	}
}

// A Write says how far over its limit the datastore may be for it, as a
// multiple of the limit.
type Write struct {
	Bytes int64
	// Replaced is what the object has that this is written over, in bytes. kine keeps it a second
	// time, beside what is written; etcd doesn't.
	Replaced int64
	Ceiling  float64
}

// Admit counts a write and says whether it may be done. The error is for users.
// It may ask the datastore first, once a second at most.
func (b *Budget) Admit(ctx context.Context, w Write) error {
	if b.cfg.LimitBytes == 0 {
		return nil
	}
	size := w.Bytes + rowBytes
	if b.cfg.HistorySeconds == 0 {
		size += w.Replaced
	}
	b.mu.Lock()
	used, at := b.estimate(), b.at
	ceiling := int64(float64(b.limit()) * w.Ceiling)
	b.mu.Unlock()
	if used+size > ceiling && b.now().Sub(at) >= fresh {
		if err := b.measure(ctx, at); err != nil {
			klog.ErrorS(err, "Measure the datastore")
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if used = b.estimate(); used+size > ceiling {
		why := ""
		if b.share.Why != "" {
			why = ", as " + b.share.Why
		}
		return fmt.Errorf("the workspace's datastore is full (%s of %s%s): "+
			"delete objects that are not needed; the room they took can be used soon after", Size(used), Size(b.limit()), why)
	}
	b.since += size
	b.history[b.slot()] += size
	return nil
}

// estimate wants b.mu.
func (b *Budget) estimate() int64 {
	if b.cfg.HistorySeconds == 0 {
		return b.used + b.since
	}
	b.slot()
	used := b.used
	for _, n := range b.history {
		used += n
	}
	return used
}

// slot empties what has become too old and returns the slot for now. It wants b.mu.
func (b *Budget) slot() int64 {
	if b.cfg.HistorySeconds == 0 {
		return 0
	}
	age := b.now().UnixMilli() * ages / (b.cfg.HistorySeconds * 1000)
	for i := max(b.age+1, age-ages+1); i <= age; i++ {
		b.history[i%ages] = 0
	}
	b.age = max(b.age, age)
	return b.age % ages
}

// ask waits until nobody else asks the Store. Without an error asked has to follow.
func (b *Budget) ask(ctx context.Context) error {
	select {
	case b.asking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Budget) asked() { <-b.asking }

// measure asks the datastore, unless somebody else has done it since at.
func (b *Budget) measure(ctx context.Context, at time.Time) error {
	// Not ctx's end alone: a datastore that hangs, or makes room, must not hold every writer.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := b.ask(ctx); err != nil {
		return err
	}
	defer b.asked()
	b.mu.Lock()
	done, before := b.at != at, b.since
	b.mu.Unlock()
	if done {
		return nil
	}
	used, err := b.store.Used(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = b.now()
	if err != nil {
		return err
	}
	b.used, b.since = used, b.since-before
	return nil
}

// Run looks after the datastore until ctx is done.
func (b *Budget) Run(ctx context.Context) {
	if b.cfg.LimitBytes == 0 {
		return
	}
	var last time.Time // of a measurement or a reclaim here
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		b.readShare()
		b.mu.Lock()
		used, at, since, limit := b.estimate(), b.at, b.since, b.limit()
		b.mu.Unlock()
		near := used > limit/10*9
		// An idle plane is not asked: it writes some hundred bytes a second.
		untold := b.cfg.StatusFile != "" && limit != b.told.LimitBytes
		if near || at.IsZero() || untold || b.now().Sub(last) >= lookEvery && since > limit/256 {
			last = b.now()
			if err := b.look(ctx, near, at); err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "Look after the datastore")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look measures, makes room if it is time to, and says so in the status file.
func (b *Budget) look(ctx context.Context, near bool, at time.Time) error {
	if near {
		keep := keptHistory
		b.mu.Lock()
		if b.estimate() > b.limit()/100*98 {
			keep = keptWhenFull
		}
		b.mu.Unlock()
		err := b.ask(ctx)
		if err == nil {
			err = b.store.Reclaim(ctx, keep)
			b.asked()
		}
		if err != nil {
			return fmt.Errorf("reclaim: %w", err)
		}
	}
	if err := b.measure(ctx, at); err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	b.mu.Lock()
	status := Status{UsedBytes: b.estimate(), LimitBytes: b.limit()}
	changed := status.UsedBytes - b.told.UsedBytes
	b.mu.Unlock()
	if b.cfg.StatusFile == "" || b.told.LimitBytes == status.LimitBytes && changed > -status.LimitBytes/100 && changed < status.LimitBytes/100 {
		return nil
	}
	data, err := json.Marshal(status)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.cfg.StatusFile+".new", data, 0o600); err != nil {
		return err
	}
	b.told = status
	return os.Rename(b.cfg.StatusFile+".new", b.cfg.StatusFile)
}

// Size writes bytes the way people read them.
func Size(bytes int64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}
