package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// ScrubHost compares the copies of shared volumes. Implemented by package appliance, with embed/gluster. See SharedHost.
type ScrubHost interface {
	// Scrub goes on with a scrub for some minutes at most, and says what was found so far, also with an error. Of one that was
	// cut off nothing is known, and it begins again.
	Scrub(ctx context.Context, s wire.Scrub) (wire.ScrubReport, error)
	// EndScrub takes away what is there of one, by the name (wire.GlusterName) of its volume. Scrubbed are the names of those of
	// which something is there.
	EndScrub(ctx context.Context, name string) error
	Scrubbed() (names []string, err error)
}

// Scrubs drives the comparison of shared volumes' copies: one volume at a time, and a workspace after the other, for a
// minute or so each.
func Scrubs(host ScrubHost) Driver {
	return &scrubs{host: host, seen: map[string]wire.ScrubReport{}, turns: map[string]time.Time{}, failed: map[string]time.Time{}}
}

type scrubs struct {
	host ScrubHost

	mu     sync.Mutex
	busy   bool
	runs   wire.Scrub         // while busy
	cancel context.CancelFunc // of that
	wanted []wire.Scrub
	seen   map[string]wire.ScrubReport // by UID of the volume
	turns  map[string]time.Time        // when a workspace had its last turn
	failed map[string]time.Time        // when a volume's turn ended with an error; by its UID
}

// scrubEvery is how often a volume asks whether it is its turn.
const scrubEvery = 5 * time.Second

func (*scrubs) Kind() string { return wire.ScrubItem }

func (d *scrubs) Wanted(s *wire.State) (items []Item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = nil
	if s.Storage != nil {
		d.wanted = s.Storage.Scrubs
	}
	if d.busy && !slices.Contains(d.wanted, d.runs) {
		d.cancel() // what drops it waits for the step, and others may for that
	}
	is := func(uid string) func(wire.Scrub) bool { return func(w wire.Scrub) bool { return w.UID == uid } }
	maps.DeleteFunc(d.seen, func(uid string, _ wire.ScrubReport) bool { return !slices.ContainsFunc(d.wanted, is(uid)) })
	maps.DeleteFunc(d.failed, func(uid string, _ time.Time) bool { return !slices.ContainsFunc(d.wanted, is(uid)) })
	maps.DeleteFunc(d.turns, func(id string, _ time.Time) bool {
		return !slices.ContainsFunc(d.wanted, func(w wire.Scrub) bool { return w.NetworkID == id })
	})
	for _, one := range d.wanted {
		items = append(items, Item{Key: wire.GlusterName(one.UID), Workspace: one.NetworkID, Needs: []Ref{{servingKind, serverKey}},
			Every: scrubEvery, Ensure: func(ctx context.Context) error { return d.step(ctx, one) }})
	}
	return items
}

// step goes on with a scrub if it is its turn.
func (d *scrubs) step(ctx context.Context, one wire.Scrub) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !d.take(one, cancel) {
		return nil
	}
	rep, err := d.host.Scrub(ctx, one)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy = false
	if !slices.Contains(d.wanted, one) {
		return err
	}
	d.turns[one.NetworkID] = time.Now()
	if err != nil {
		d.failed[one.UID] = time.Now()
	}
	rep.Key, rep.UID, rep.Number = one.Key, one.UID, one.Number
	d.seen[one.UID] = rep
	return err
}

// take says whether it is the turn of one: of the workspace that had none for longest, its first that is not done, or if
// that failed the one that did so longest ago.
func (d *scrubs) take(one wire.Scrub, cancel context.CancelFunc) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(d.wanted), d.done)
	if d.busy || len(left) == 0 {
		return false
	}
	next := slices.MinFunc(left, func(a, b wire.Scrub) int {
		if c := d.turns[a.NetworkID].Compare(d.turns[b.NetworkID]); c != 0 {
			return c
		}
		return d.failed[a.UID].Compare(d.failed[b.UID])
	})
	if next != one {
		return false
	}
	d.busy, d.runs, d.cancel = true, one, cancel
	return true
}

func (d *scrubs) done(s wire.Scrub) bool {
	seen := d.seen[s.UID]
	return seen.Number == s.Number && seen.Done
}

func (d *scrubs) Drop(ctx context.Context, name string) error { return d.host.EndScrub(ctx, name) }

func (d *scrubs) List(context.Context) ([]string, error) { return d.host.Scrubbed() }

func (d *scrubs) Report(_ context.Context, s *wire.State, _ func(string) Progress, r *Report) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Storage == nil {
		return nil, nil
	}
	for _, one := range s.Storage.Scrubs {
		if rep, ok := d.seen[one.UID]; ok && rep.Number == one.Number {
			r.Items[Ref{wire.ScrubItem, one.UID}] = &rep
		}
	}
	return nil, nil
}
