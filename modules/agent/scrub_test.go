package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// scrubWorld takes two steps for each volume, and fails one of them for ever.
type scrubWorld struct {
	ScrubHost
	steps []string
}

func (w *scrubWorld) Scrub(_ context.Context, s wire.Scrub) (wire.ScrubReport, error) {
	w.steps = append(w.steps, s.UID)
	if s.UID == "broken" {
		return wire.ScrubReport{}, errors.New("no")
	}
	n := 0
	for _, uid := range w.steps {
		if uid == s.UID {
			n++
		}
	}
	return wire.ScrubReport{Done: n == 2}, nil
}

// TestScrubs: workspaces have turns, whatever one of them has, and what fails holds up none of the others.
func TestScrubs(t *testing.T) {
	w := &scrubWorld{}
	d := Scrubs(w)
	s := &wire.State{Storage: &wire.Storage{Scrubs: []wire.Scrub{
		{UID: "broken", NetworkID: "1", Number: 1}, {UID: "a", NetworkID: "1", Number: 1}, {UID: "b", NetworkID: "1", Number: 1},
		{UID: "c", NetworkID: "2", Number: 1}}}}
	items := d.Wanted(s)
	for range 4 {
		for _, item := range items {
			_ = item.Ensure(t.Context())
		}
	}
	count := map[string]int{}
	for _, uid := range w.steps {
		count[uid]++
	}
	if count["a"] != 2 || count["b"] != 2 || count["c"] != 2 || slices.Index(w.steps, "c") > 2 {
		t.Errorf("the steps are %s", strings.Join(w.steps, " "))
	}
	r := &Report{Items: map[Ref]any{}}
	if _, err := d.Report(t.Context(), s, nil, r); err != nil || len(r.Items) != 4 {
		t.Errorf("it reports %v, %v", r.Items, err)
	}
	for i := range s.Storage.Scrubs {
		s.Storage.Scrubs[i].Number = 2
	}
	r = &Report{Items: map[Ref]any{}}
	d.Wanted(s)
	if _, err := d.Report(t.Context(), s, nil, r); err != nil || len(r.Items) != 0 {
		t.Errorf("of another time it reports %v, %v", r.Items, err)
	}
}

// longScrub is one that goes on until it is ended.
type longScrub struct {
	ScrubHost
	began chan struct{}
}

func (w longScrub) Scrub(ctx context.Context, _ wire.Scrub) (wire.ScrubReport, error) {
	w.began <- struct{}{}
	<-ctx.Done()
	return wire.ScrubReport{Damaged: 1}, ctx.Err()
}

// TestScrubEnds: a step ends when it isn't wanted any more, or another scrub of the volume is, and not before.
func TestScrubEnds(t *testing.T) {
	w := longScrub{began: make(chan struct{})}
	d := Scrubs(w)
	state := func(all ...wire.Scrub) *wire.State { return &wire.State{Storage: &wire.Storage{Scrubs: all}} }
	one := wire.Scrub{UID: "a", NetworkID: "1", Number: 1}
	next := one
	next.Number = 2
	for _, then := range []*wire.State{{}, state(next)} {
		items := d.Wanted(state(one))
		ended := make(chan error, 1)
		go func() { ended <- items[0].Ensure(t.Context()) }()
		<-w.began
		d.Wanted(state(one, wire.Scrub{UID: "b", NetworkID: "2"}))
		if len(ended) > 0 {
			t.Error("it ended while it was wanted")
		}
		d.Wanted(then)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		r := &Report{Items: map[Ref]any{}}
		if _, err := d.Report(t.Context(), then, nil, r); err != nil || len(r.Items) != 0 {
			t.Errorf("it reports %v, %v", r.Items, err)
		}
	}
}
