package limiter

import (
	"context"
	"slices"
	"sync"
)

// Turns has some at a time do what takes long, and of each who asks some. Of those who
// wait, the next place goes round: whoever has many waiting keeps nobody who has one.
// Its methods are safe for concurrent use.
type Turns[K comparable] struct {
	in *Limiter[K]

	mu      sync.Mutex
	order   []K // who waits; the first one is next, if he has not all he may have
	waiting map[K][]chan struct{}
}

// NewTurns returns Turns with all places, of which each one has at most each.
func NewTurns[K comparable](each, all int) *Turns[K] {
	return &Turns[K]{in: New[K](each, all), waiting: map[K][]chan struct{}{}}
}

// Take waits for a place until ctx is done; that is its only error. leave is to be called
// once; more often does nothing.
func (t *Turns[K]) Take(ctx context.Context, who K) (leave func(), err error) {
	leave = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.in.Leave(who)
		t.next()
	})
	turn := make(chan struct{})
	t.mu.Lock()
	if t.waiting[who] == nil {
		t.order = append(t.order, who)
	}
	t.waiting[who] = append(t.waiting[who], turn)
	t.next()
	t.mu.Unlock()
	select {
	case <-turn:
		return leave, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	waiting := slices.DeleteFunc(t.waiting[who], func(c chan struct{}) bool { return c == turn })
	given := len(waiting) == len(t.waiting[who])
	t.set(who, waiting)
	t.mu.Unlock()
	if given { // at the same moment
		leave()
	}
	return nil, ctx.Err()
}

// next gives the places that are free. The caller has the lock.
func (t *Turns[K]) next() {
	for i := 0; i < len(t.order); {
		who := t.order[i]
		if !t.in.Enter(who) {
			i++
			continue
		}
		waiting := t.waiting[who]
		close(waiting[0])
		t.order = slices.Delete(t.order, i, i+1)
		if len(waiting) > 1 {
			t.order = append(t.order, who)
		}
		t.set(who, waiting[1:])
		i = 0
	}
}

// set notes who waits. The caller has the lock.
func (t *Turns[K]) set(who K, waiting []chan struct{}) {
	if len(waiting) > 0 {
		t.waiting[who] = waiting
		return
	}
	delete(t.waiting, who)
	t.order = slices.DeleteFunc(t.order, func(k K) bool { return k == who })
}
