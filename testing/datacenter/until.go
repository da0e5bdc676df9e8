package datacenter

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Until asks again and again until there is no error any more, or no patience, or
// ctx is done. The error is the last one. It waits as long as an answer took: what
// is asked on a busy machine has the other half of the time for itself.
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
		case <-time.After(min(max(time.Since(asked), 100*time.Millisecond), 2*time.Second)):
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, time.Since(began).Round(time.Second), last)
		}
	}
}

// final is an error that no patience helps against.
type final struct{ error }

// Final marks an error as one that Until need not ask again after.
func Final(err error) error { return final{err} }
