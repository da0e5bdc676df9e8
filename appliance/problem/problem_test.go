package problem

import (
	"errors"
	"strings"
	"testing"
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
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	r := &Registry{Now: func() time.Time { return now }}
	r.Set(skew, "", "by 3 s")
	r.Set(full, "n1", "")
	if got, want := codes(r), "disk-full/n1/"; got != want {
		t.Errorf("at once: got %q, want %q", got, want)
	}
	now = now.Add(time.Minute)
	r.Set(skew, "", "by 4 s")
	r.Update(full, "n2", errors.New("no room"))
	if got, want := codes(r), "clock-skew//by 4 s disk-full/n1/ disk-full/n2/no room"; got != want {
		t.Errorf("later: got %q, want %q", got, want)
	}
	if got, want := now.Sub(r.List()[0].Since), time.Minute; got != want {
		t.Errorf("setting it again changed since when: got %v, want %v", got, want)
	}
	r.Clear(skew, "")
	r.Clear(skew, "never set")
	r.Update(full, "n2", nil)
	if got, want := codes(r), "disk-full/n1/"; got != want {
		t.Errorf("cleared: got %q, want %q", got, want)
	}
	var none *Registry
	none.Set(skew, "", "")
	none.Clear(skew, "")
	if got := none.List(); got != nil {
		t.Errorf("got %v of no registry", got)
	}
}
