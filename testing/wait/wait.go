// Package wait waits for what a test, or a program of the tests, wants to see: as
// long as it takes, and no longer. Patience is for machines that do ten other
// things; it costs nothing where all is well.
//
// Parties: every test; testing/datacenter and testing/bench. It does not import
// package testing.
package wait

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// TB is what is needed of a *testing.T.
type TB interface {
	Helper()
	Context() context.Context
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Patience is for one step of an operation on a machine that does ten other
// things; on an idle one most take less than a second, a plane five.
const Patience = 4 * time.Minute

// The pause between two questions is as long as the answer took, so that what is
// asked has half of a busy machine for itself; within these bounds.
const (
	shortest = 20 * time.Millisecond
	longest  = 2 * time.Second
)

// Until asks again and again until there is no error any more, or no patience, or
// ctx is done. The error is the last one.
func Until(ctx context.Context, patience time.Duration, what string, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	var last error
	for {
		asked := time.Now()
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if f := (final{}); errors.As(err, &f) {
			return fmt.Errorf("%s: %w", what, f.error)
		}
		if last == nil || ctx.Err() == nil {
			last = err // one that was cut short says nothing
		}
		select {
		case <-time.After(min(max(time.Since(asked), shortest), longest)):
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, time.Since(began).Round(10*time.Millisecond), last)
		}
	}
}

// final is an error that no patience helps against.
type final struct{ error }

// Final marks an error as one after which Until gives up.
func Final(err error) error { return final{err} }

// For is Until for a test, which ends if what it wants does not come.
func For(t TB, patience time.Duration, what string, ask func(ctx context.Context) error) {
	t.Helper()
	began := time.Now()
	if err := Until(t.Context(), patience, what, ask); err != nil {
		t.Fatalf("%v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Logf("%s: after %s", what, took.Round(100*time.Millisecond))
	}
}

// True is For for what is so or not, and has nothing else to say.
func True(t TB, patience time.Duration, what string, is func() bool) {
	t.Helper()
	For(t, patience, what, func(context.Context) error {
		if !is() {
			return errors.New("it is not so")
		}
		return nil
	})
}
