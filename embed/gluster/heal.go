package gluster

import (
	"context"
	"fmt"
	"maps"
	"time"
)

// To ask what of a volume is to be healed takes a client of its own: a second, and minutes while a node is gone without a word.
// So that is no part of Bring: it holds up neither a change nor what is seen of other volumes.
const (
	// healEvery is how often a volume is asked while all is well, or a brick of it is away: what is missed grows
	// then, and nothing is healed.
	healEvery = 5 * time.Minute
	// healAgain is how often it is asked while something is to be healed.
	healAgain = 10 * time.Second
	// healPart is what part of the time one volume is asked at most.
	healPart = 5
	// healTime bounds one question, so that the volumes of others have their turn.
	healTime = time.Minute
)

// heal is what is known of what a volume's bricks have that others lack.
type heal struct {
	pids    map[Brick]int   // of the bricks' processes, as last seen: another one has missed something, perhaps
	whole   bool            // all bricks were there
	pending map[Brick]int64 // of those that could be asked since
	again   time.Time       // when it is to be asked again; zero: now

	want, looked int64 // the last Wanted.Look, and that after which it was asked last
}

// Heal asks what has to be healed in a volume, if it is time to, once no other is asked any more, for a minute at most.
// What it is told Bring returns from then on. Called in turn for all volumes, it comes to each.
func (l *Lead) Heal(ctx context.Context, name string) error {
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.asking }()
	l.muHeals.Lock()
	h := l.heals[name]
	l.muHeals.Unlock()
	if h.pids == nil || time.Now().Before(h.again) { // of one that Bring has not seen nobody would be told
		return nil
	}
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	all, err := l.client.Healing(limited, name)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("what is to be healed in volume %s: no answer within %v: %w", name, healTime, err)
	}
	wait, pending := healEvery, map[Brick]int64{}
	for _, b := range all {
		if b.Connected {
			pending[b.Brick] = b.Pending
		}
		if b.Pending > 0 && h.whole {
			wait = healAgain
		}
	}
	if h.whole && (err != nil || len(pending) < len(all)) {
		wait = healAgain
	}
	l.muHeals.Lock()
	defer l.muHeals.Unlock()
	now, ok := l.heals[name]
	if !ok || !maps.Equal(now.pids, h.pids) { // what was heard is of before: it is asked again
		return err
	}
	now.again = time.Now().Add(max(wait, healPart*time.Since(began)))
	if err == nil {
		now.pending, now.looked = pending, h.want
	}
	if now.want > h.want { // who asked meanwhile wants to know how it is since
		now.again = time.Time{}
	}
	l.heals[name] = now
	return err
}

// noteBricks takes down which bricks of a volume are there, all of them or not, and returns what they have that others
// lack, as far as it is known, and by which look. Once another one is there, or one less, it isn't.
func (l *Lead) noteBricks(name string, pids map[Brick]int, whole bool) (pending map[Brick]int64, looked int64) {
	l.muHeals.Lock()
	defer l.muHeals.Unlock()
	h, ok := l.heals[name]
	if !ok || !maps.Equal(h.pids, pids) {
		if h.pids != nil {
			h = heal{want: h.want}
		}
		h.pids, h.whole = pids, whole
		l.heals[name] = h
	}
	return h.pending, h.looked
}

// wantLook has a volume asked anew, if it is the first time that this look is wanted.
func (l *Lead) wantLook(name string, look int64) bool {
	l.muHeals.Lock()
	defer l.muHeals.Unlock()
	h := l.heals[name]
	if look <= h.want {
		return false
	}
	h.want, h.again = look, time.Time{}
	l.heals[name] = h
	return true
}

// nothingToHeal takes down that a volume was made just now.
func (l *Lead) nothingToHeal(name string, bricks []Brick) {
	l.muHeals.Lock()
	defer l.muHeals.Unlock()
	h := heal{pending: map[Brick]int64{}, again: time.Now().Add(healEvery)}
	for _, b := range bricks {
		h.pending[b] = 0
	}
	l.heals[name] = h
}

// forgetHeal has a volume asked anew, of which nothing is known.
func (l *Lead) forgetHeal(name string) {
	l.muHeals.Lock()
	defer l.muHeals.Unlock()
	delete(l.heals, name)
}
