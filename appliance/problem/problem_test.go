package problem

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	skew = Problem{Code: "clock-skew", Title: "The clock is wrong", Severity: High, After: 30 * time.Second}
	full = Problem{Code: "disk-full", Title: "The disk is full", Severity: Medium}
)

func codes(r *Registry) string {
	var all []string
	for _, p := range r.List() {
		all = append(all, p.Code+"/"+p.Object+"/"+p.Detail)
	}
	return strings.Join(all, " ")
}

func TestRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(slog.New(slog.DiscardHandler))
		r.Update(skew, "", errors.New("by 3 s"))
		r.Update(full, "n1", errors.New("9 of 10"))
		if got, want := codes(r), "disk-full/n1/9 of 10"; got != want {
			t.Errorf("at once: got %q, want %q", got, want)
		}
		time.Sleep(time.Minute)
		r.Update(skew, "", errors.New("by 4 s"))
		r.Update(full, "n2", errors.New("no room"))
		if got, want := codes(r), "clock-skew//by 4 s disk-full/n1/9 of 10 disk-full/n2/no room"; got != want {
			t.Errorf("later: got %q, want %q", got, want)
		}
		if got, want := time.Since(r.List()[0].Since), time.Minute; got != want {
			t.Errorf("setting it again changed since when: got %v, want %v", got, want)
		}
		r.Update(skew, "", nil)
		r.Update(skew, "never set", nil)
		r.Update(full, "n2", nil)
		if got, want := codes(r), "disk-full/n1/9 of 10"; got != want {
			t.Errorf("cleared: got %q, want %q", got, want)
		}
		r.Update(full, "n3", errors.New("no room"))
		r.ClearOthers(full, map[string]bool{"n3": true})
		if got, want := codes(r), "disk-full/n3/no room"; got != want {
			t.Errorf("cleared but for n3: got %q, want %q", got, want)
		}
	})
}
