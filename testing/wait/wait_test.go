package wait

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestUntil(t *testing.T) {
	notYet := errors.New("not yet")
	for _, c := range []struct {
		name    string
		answers []error // the last one again and again
		answer  time.Duration
		took    time.Duration
		asked   int
		want    string
	}{
		{"at once", []error{nil}, 0, 0, 1, ""},
		{"the third time", []error{notYet, notYet, nil}, 0, 2 * shortest, 3, ""},
		{"slow answers", []error{notYet, nil}, time.Second, 3 * time.Second, 2, ""},
		{"slower than the longest pause", []error{notYet, nil}, 5 * time.Second, 12 * time.Second, 2, ""},
		{"never", []error{notYet}, 0, time.Minute, 3000, "the end: not within 1m0s: not yet"},
		{"given up", []error{Final(notYet)}, 0, 0, 1, "the end: not yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, asked := time.Now(), 0
				err := Until(t.Context(), time.Minute, "the end", func(context.Context) error {
					asked++
					time.Sleep(c.answer)
					return c.answers[min(asked, len(c.answers))-1]
				})
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				if c.want != "" && !errors.Is(err, notYet) {
					t.Errorf("%v does not wrap the last error", err)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				if asked < c.asked || asked > c.asked+1 {
					t.Errorf("asked %d times, want %d", asked, c.asked)
				}
			})
		})
	}
}

// A question that was cut short at the end does not hide what was wrong.
func TestUntilKeepsTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		err := Until(t.Context(), time.Second, "it", func(ctx context.Context) error {
			if asked++; asked == 1 {
				return errors.New("the reason")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "the reason") {
			t.Errorf("got %v", err)
		}
	})
}
