// Package problem keeps what is wrong with the appliance right now, in words
// that whoever runs it understands, with what to do about it.
//
// Parties: parts declare their problems as data and update them in a
// Registry; package status shows them. Any package may import it.
package problem

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Severity is how much a problem matters.
type Severity string

// The severities.
const (
	Low    Severity = "low"    // something is not as good as it could be
	Medium Severity = "medium" // something will fail if nothing is done
	High   Severity = "high"   // something fails now
)

// Problem is one kind of thing that can be wrong. Packages declare theirs as
// variables that never change.
type Problem struct {
	Code     string        `json:"code"` // stable, for programs: "clock-skew"
	Title    string        `json:"title"`
	Severity Severity      `json:"severity"`
	Text     string        `json:"text,omitempty"`   // what it means, one sentence
	Remedy   string        `json:"remedy,omitempty"` // what to do, one sentence
	After    time.Duration `json:"-"`                // shown only if it lasts that long
}

// Raised is a problem that is there.
type Raised struct {
	Problem
	Object string    `json:"object,omitempty"` // what has the problem, "node n1"
	Detail string    `json:"detail,omitempty"` // what is known about this case
	Since  time.Time `json:"since"`
}

// Registry holds the problems there are. It is safe for concurrent use.
type Registry struct {
	log *slog.Logger

	mu     sync.Mutex
	raised map[key]Raised
}

// New makes a Registry that logs what comes and goes.
func New(log *slog.Logger) *Registry { return &Registry{log: log, raised: map[key]Raised{}} }

type key struct{ code, object string }

// Update says that p is so for the object, "" for the appliance as a whole, with
// err's text as the detail; if err is nil, that it is no longer so. Saying it again
// keeps Since and changes the detail.
func (r *Registry) Update(p Problem, object string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := key{p.Code, object}
	old, was := r.raised[k]
	if err == nil {
		if was {
			r.log.Info("problem solved", "code", p.Code, "object", object, "after", time.Since(old.Since))
		}
		delete(r.raised, k)
		return
	}
	if !was {
		old.Since = time.Now()
		r.log.Warn("problem", "code", p.Code, "title", p.Title, "object", object, "detail", err.Error())
	}
	r.raised[k] = Raised{Problem: p, Object: object, Detail: err.Error(), Since: old.Since}
}

// ClearOthers clears p of all objects but those that are there.
func (r *Registry) ClearOthers(p Problem, there map[string]bool) {
	for _, raised := range r.List() {
		if raised.Code == p.Code && !there[raised.Object] {
			r.Update(p, raised.Object, nil)
		}
	}
}

// List are the problems that have lasted long enough to be shown, the worst
// first, then the oldest.
func (r *Registry) List() []Raised {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Raised
	for _, p := range r.raised {
		if time.Since(p.Since) >= p.After {
			list = append(list, p)
		}
	}
	rank := map[Severity]int{High: 0, Medium: 1, Low: 2}
	slices.SortFunc(list, func(a, b Raised) int {
		return cmp.Or(
			cmp.Compare(rank[a.Severity], rank[b.Severity]),
			a.Since.Compare(b.Since),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Object, b.Object),
		)
	})
	return list
}
