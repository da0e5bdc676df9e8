package report

import (
	"encoding/json"
	"fmt"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// File is dist/bench.json.
type File struct {
	Machine  measure.Machine   `json:"machine"`
	Versions map[string]string `json:"versions"`
	Quick    bool              `json:"quick,omitempty"` // one round of few sizes: no numbers to keep
	Seconds  float64           `json:"seconds"`
	Failed   []string          `json:"failed,omitempty"` // sections that could not be measured
	Results  map[string]Entry  `json:"results"`          // by Result.Key
}

// Entry is one result.
type Entry struct {
	measure.Stat
	Unit      string  `json:"unit"`
	Better    string  `json:"better"` // "higher" or "lower"
	Peer      string  `json:"peer,omitempty"`
	PeerValue float64 `json:"peer_value,omitempty"`
	PeerMin   float64 `json:"peer_min,omitempty"`
	PeerMax   float64 `json:"peer_max,omitempty"`
	Ratio     float64 `json:"ratio,omitempty"` // ours divided by the peer's
	Goal      string  `json:"goal,omitempty"`
	Met       *bool   `json:"goal_met,omitempty"`
	Note      string  `json:"note,omitempty"`
}

// Add puts results into the file. Two of the same key are a mistake of the
// benchmark.
func (f *File) Add(results []measure.Result) error {
	if f.Results == nil {
		f.Results = map[string]Entry{}
	}
	for _, r := range results {
		if _, ok := f.Results[r.Key()]; ok {
			return fmt.Errorf("two results are called %q", r.Key())
		}
		e := Entry{Stat: r.Ours, Unit: r.Unit, Better: string(r.Better), Goal: r.GoalText(), Note: r.Note}
		if r.Peer != "" {
			e.Peer, e.Ratio = r.Peer, r.Ratio()
			e.PeerValue, e.PeerMin, e.PeerMax = r.PeerStat.Median, r.PeerStat.Min, r.PeerStat.Max
		}
		if e.Goal != "" {
			met := r.Met()
			e.Met = &met
		}
		f.Results[r.Key()] = e
	}
	return nil
}

// Write writes the file.
func (f *File) Write(name string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(name, append(data, '\n'), 0o644)
}
