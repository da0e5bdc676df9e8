package measure

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Env is what a section is given.
type Env struct {
	Quick  bool   // fewer rounds, fewer sizes: to see that everything works
	Root   string // of the repository, absolute
	Binary string // dist/multipaas, absolute
	Dir    string // a folder for files that are removed at the end
	// Profile is where CPU profiles of ours go: each gets a suffix. Empty: none.
	Profile string
	// Log tells what is being measured. It may be nil.
	Log func(format string, args ...any)

	mu       sync.Mutex
	versions map[string]string
	kept     map[string]any
	ends     []func() error
}

// Keep keeps something that several sections share until the run is over; then
// end is called, if there is one.
func (e *Env) Keep(key string, value any, end func() error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kept == nil {
		e.kept = map[string]any{}
	}
	e.kept[key] = value
	if end != nil {
		e.ends = append(e.ends, end)
	}
}

// Kept returns what was kept, or nil.
func (e *Env) Kept(key string) any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.kept[key]
}

// End ends what was kept, the last first.
func (e *Env) End() error {
	e.mu.Lock()
	ends := e.ends
	e.ends, e.kept = nil, nil
	e.mu.Unlock()
	var err error
	for _, end := range slices.Backward(ends) {
		err = errors.Join(err, end())
	}
	return err
}

// Logf tells what is being measured.
func (e *Env) Logf(format string, args ...any) {
	if e.Log != nil {
		e.Log(format, args...)
	}
}

// Version notes the version of something measured, for the report.
func (e *Env) Version(name, version string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.versions == nil {
		e.versions = map[string]string{}
	}
	e.versions[name] = version
}

// VersionOf notes the first line that a command prints as the version of
// something.
func (e *Env) VersionOf(ctx context.Context, name string, args ...string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		line = fmt.Sprintf("unknown: %v", err)
	}
	e.Version(name, line)
}

// Versions are those that were noted.
func (e *Env) Versions() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]string{}
	for k, v := range e.versions {
		out[k] = v
	}
	return out
}

// Rounds is n, or 1 in a quick run.
func (e *Env) Rounds(n int) int {
	if e.Quick {
		return 1
	}
	return n
}

// Sample is what one round of one contender gave, by the name of the number.
type Sample map[string]float64

// Contender is one of those that are measured beside each other.
type Contender struct {
	Name    string
	Measure func(ctx context.Context) (Sample, error)
}

// Alternate measures all contenders in turn, several rounds; every other round
// goes backwards, so that a machine that slows down harms all alike. It returns
// the Stat of each number by contender and name.
func Alternate(ctx context.Context, rounds int, contenders ...Contender) (map[string]map[string]Stat, error) {
	values := map[string]map[string][]float64{}
	for round := range rounds {
		for i := range contenders {
			c := contenders[i]
			if round%2 == 1 {
				c = contenders[len(contenders)-1-i]
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			sample, err := c.Measure(ctx)
			if err != nil {
				return nil, fmt.Errorf("measure %s: %w", c.Name, err)
			}
			if values[c.Name] == nil {
				values[c.Name] = map[string][]float64{}
			}
			for name, v := range sample {
				values[c.Name][name] = append(values[c.Name][name], v)
			}
		}
	}
	out := map[string]map[string]Stat{}
	for c, numbers := range values {
		out[c] = map[string]Stat{}
		for name, v := range numbers {
			out[c][name] = Summarize(v...)
		}
	}
	return out, nil
}
