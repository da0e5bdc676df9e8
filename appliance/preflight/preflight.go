// Package preflight checks, before any part starts, what upstream servers would
// otherwise die of with a message that nobody understands. It changes nothing
// on the machine that it does not undo.
//
// Parties: the roles choose the checks that matter to them; the installer shows
// the same. Any package may import it.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Check is one thing to look at.
type Check struct {
	Name   string
	Remedy string // one sentence: what to do if it fails
	// Warn says that the appliance works without, only not as well.
	Warn bool
	// Run returns nil if all is well, else what is not, without a remedy. A
	// *Skipped says that it could not be looked at.
	Run func(ctx context.Context) error
}

// Result is what came of a Check.
type Result struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// State is how a check came out.
type State string

// The states of a Result.
const (
	OK      State = "ok"
	Warning State = "warning"
	Failed  State = "failed"
	Skip    State = "skipped"
)

// Skipped is an error that says that a check could not be made here.
type Skipped struct{ Reason string }

func (s *Skipped) Error() string { return s.Reason }

// timeout for one check: they read files and open sockets.
const timeout = 10 * time.Second

// Run makes all checks, in order, whatever comes of each.
func Run(ctx context.Context, checks []Check) []Result {
	results := make([]Result, 0, len(checks))
	for _, c := range checks {
		cctx, cancel := context.WithTimeout(ctx, timeout)
		err := c.Run(cctx)
		cancel()
		r := Result{Name: c.Name, State: OK}
		var skipped *Skipped
		switch {
		case err == nil:
		case errors.As(err, &skipped):
			r.State, r.Reason = Skip, err.Error()
		default:
			r.State, r.Reason, r.Remedy = Failed, err.Error(), c.Remedy
			if c.Warn {
				r.State = Warning
			}
		}
		results = append(results, r)
	}
	return results
}

// String is one sentence: "preflight: ports: 443 is taken: stop what uses it".
func (r Result) String() string {
	s := r.Name
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	if r.Remedy != "" {
		s += ": " + r.Remedy
	}
	return s
}

// Failures are the checks that failed, an error each.
func Failures(results []Result) (errs []error) {
	for _, r := range results {
		if r.State == Failed {
			errs = append(errs, errors.New("preflight: "+r.String()))
		}
	}
	return errs
}

// Render writes a line for each result.
func Render(w io.Writer, results []Result) error {
	var b strings.Builder
	for _, r := range results {
		fmt.Fprintf(&b, "%-8s %s\n", r.State, r)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
