// Package measure is what the benchmarks have in common: what a result is, how
// ours and a peer are measured in turn, what a process costs.
//
// Parties: each section (testing/bench/balancer, registry, api, plane, ws, storage) makes
// results; testing/bench/report shows them. Nothing outside testing/bench may
// import it.
package measure

import (
	"context"
	"fmt"
	"slices"
)

// Better says which way a number is good.
type Better string

// The two ways.
const (
	Higher Better = "higher"
	Lower  Better = "lower"
)

// Stat is what several rounds of one measurement gave.
type Stat struct {
	Median float64 `json:"value"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Rounds int     `json:"rounds"`
}

// Summarize makes a Stat of the values of all rounds; the median of an even
// number is the mean of the middle two.
func Summarize(values ...float64) Stat {
	if len(values) == 0 {
		return Stat{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Stat{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], Rounds: n}
}

// Percentile returns the value that a share p (0 to 1) of values don't exceed.
// It sorts values.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(p*float64(len(values))))]
}

// Result is one number of ours, and a peer's beside it if there is one. Name
// and Peer together are unique.
type Result struct {
	Name   string // section/case/what: "balancer/http1-1k/requests"
	Unit   string // "req/s", "ms", "MB", "s"
	Better Better
	Ours   Stat

	Peer     string // "nginx"; empty: nothing to compare with
	PeerStat Stat
	Goal     Goal
	Note     string // what a reader must know to read the number
}

// Goal is a bound that was set before measuring. The zero value is none.
type Goal struct {
	Ratio float64 // of ours to the peer's; 0: none
	Value float64 // of ours alone; 0: none
}

// One makes a result of a single measurement.
func One(name, unit string, better Better, value float64) Result {
	return Result{Name: name, Unit: unit, Better: better, Ours: Summarize(value)}
}

// Key is the result's name in the JSON.
func (r Result) Key() string {
	if r.Peer == "" {
		return r.Name
	}
	return r.Name + " vs " + r.Peer
}

// Ratio is ours divided by the peer's; 0 if there is none.
func (r Result) Ratio() float64 {
	if r.Peer == "" || r.PeerStat.Median == 0 {
		return 0
	}
	return r.Ours.Median / r.PeerStat.Median
}

// GoalText is the bound as people write it, empty if there is none.
func (r Result) GoalText() string {
	sign := "≥"
	if r.Better == Lower {
		sign = "≤"
	}
	switch {
	case r.Goal.Ratio > 0:
		return fmt.Sprintf("%s%gx", sign, r.Goal.Ratio)
	case r.Goal.Value > 0:
		return fmt.Sprintf("%s%g %s", sign, r.Goal.Value, r.Unit)
	}
	return ""
}

// Met says whether the goal was reached; false also if there is none.
func (r Result) Met() bool {
	got, bound := r.Ratio(), r.Goal.Ratio
	if bound == 0 {
		got, bound = r.Ours.Median, r.Goal.Value
	}
	if bound == 0 || got == 0 {
		return false
	}
	if r.Better == Lower {
		return got <= bound
	}
	return got >= bound
}

// Section is a group of measurements that can be run alone.
type Section struct {
	Name  string // as in --only
	About string // one line, printed above its table
	// Run measures. It returns what it has also when it fails. It leaves
	// nothing running and no file outside of env.Dir.
	Run func(ctx context.Context, env *Env) ([]Result, error)
}
