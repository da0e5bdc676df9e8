package budget

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// disk is a Store that holds used bytes; reclaim of them are history.
type disk struct {
	used, history atomic.Int64
	asked         atomic.Int64
	kept          atomic.Int64
	fail          error
}

func (d *disk) Used(context.Context) (int64, error) {
	d.asked.Add(1)
	return d.used.Load() + d.history.Load(), d.fail
}

func (d *disk) Reclaim(_ context.Context, keep time.Duration) error {
	d.kept.Store(int64(keep))
	d.history.Store(0)
	return nil
}

// at is a Budget whose clock stands where its test puts it.
func at(cfg Config, d *disk) (b *Budget, clock *time.Time) {
	now := time.Unix(1e9, 0)
	b = New(cfg, d)
	b.now = func() time.Time { return now }
	return b, &now
}

const mib = 1 << 20

func growth(bytes int64) Write { return Write{Bytes: bytes, Ceiling: 1} }

func TestLimitHoldsBetweenMeasurements(t *testing.T) {
	d := &disk{}
	b, _ := at(Config{LimitBytes: 10 * mib}, d)
	var let int64
	for range 100 { // all in the same moment, so nothing is measured in between
		if b.Admit(t.Context(), growth(mib)) == nil {
			d.used.Add(mib + rowBytes)
			let++
		}
	}
	if let != 9 { // the tenth does not fit with what a row takes beside its value
		t.Errorf("let %d writes of 1 MiB through a limit of 10 MiB, want 9", let)
	}
	if n := d.asked.Load(); n > 1 {
		t.Errorf("asked the datastore %d times within a second, want at most once", n)
	}
}

// TestReplacedCounts: what is written over stays beside it, where the datastore keeps it so.
func TestReplacedCounts(t *testing.T) {
	for historySeconds, want := range map[int64]int64{0: 4, 600: 9} {
		d := &disk{}
		b, _ := at(Config{LimitBytes: 10 * mib, HistorySeconds: historySeconds}, d)
		var let int64
		for range 100 {
			if b.Admit(t.Context(), Write{Bytes: mib, Replaced: mib, Ceiling: 1}) == nil {
				let++
				if historySeconds == 0 {
					d.used.Add(2*mib + rowBytes)
				}
			}
		}
		if let != want {
			t.Errorf("with %d s of history: let %d updates of 1 MiB through a limit of 10 MiB, want %d", historySeconds, let, want)
		}
	}
}

func TestRefusalNamesTheRemedy(t *testing.T) {
	d := &disk{}
	d.used.Store(2 << 30)
	b, _ := at(Config{LimitBytes: 2 << 30}, d)
	b.used = 2 << 30
	err := b.Admit(t.Context(), growth(1))
	if err == nil || !strings.Contains(err.Error(), "full (2.0 GiB of 2.0 GiB): delete objects") {
		t.Errorf("got %v, want full (2.0 GiB of 2.0 GiB): delete objects", err)
	}
	for ceiling, want := range map[float64]bool{1.25: true, 1: false} {
		if got := b.Admit(t.Context(), Write{Bytes: 100, Ceiling: ceiling}) == nil; got != want {
			t.Errorf("ceiling %v: let through: %v, want %v", ceiling, got, want)
		}
	}
}

func TestRoomComesBack(t *testing.T) {
	d := &disk{}
	d.used.Store(10 * mib)
	b, clock := at(Config{LimitBytes: 10 * mib}, d)
	b.used, b.at = 10*mib, *clock
	if b.Admit(t.Context(), growth(mib)) == nil {
		t.Error("let through while full")
	}
	d.used.Store(5 * mib)
	*clock = clock.Add(2 * time.Second)
	if err := b.Admit(t.Context(), growth(mib)); err != nil {
		t.Errorf("2 s after half was deleted: %v", err)
	}
}

// A store that doesn't count history has it counted by what was written.
func TestHistoryCounts(t *testing.T) {
	d := &disk{}
	b, clock := at(Config{LimitBytes: 10 * mib, HistorySeconds: 600}, d)
	for range 9 {
		if err := b.Admit(t.Context(), growth(mib)); err != nil {
			t.Fatal(err)
		}
		*clock = clock.Add(10 * time.Second)
	}
	if b.Admit(t.Context(), growth(mib)) == nil {
		t.Error("9 MiB of history and 1 MiB more were let through 10 MiB")
	}
	*clock = clock.Add(700 * time.Second)
	if err := b.Admit(t.Context(), growth(9*mib)); err != nil {
		t.Errorf("after the history was compacted: %v", err)
	}
}

func TestNoLimit(t *testing.T) {
	for name, b := range map[string]*Budget{"no store": New(Config{LimitBytes: 1}, nil), "no limit": New(Config{}, &disk{})} {
		if err := b.Admit(t.Context(), growth(1<<40)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b.Run(t.Context()) // returns
	}
}

// A datastore that can't be measured is taken for what it was.
func TestUnmeasurable(t *testing.T) {
	d := &disk{fail: errors.New("locked")}
	b, clock := at(Config{LimitBytes: 10 * mib}, d)
	b.used = 9 * mib
	if b.Admit(t.Context(), growth(2*mib)) == nil {
		t.Error("let through what does not fit")
	}
	*clock = clock.Add(time.Minute)
	if err := b.Admit(t.Context(), growth(mib/2)); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

func TestRunReclaimsAndTells(t *testing.T) {
	d := &disk{}
	d.used.Store(2 * mib)
	d.history.Store(8 * mib)
	file := filepath.Join(t.TempDir(), "status")
	b := New(Config{LimitBytes: 10 * mib, StatusFile: file}, d)
	b.used = 10 * mib
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { b.Run(ctx); close(ended) }()
	var status Status
	for deadline := time.Now().Add(30 * time.Second); status.UsedBytes != 2*mib; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("status %+v, want 2 MiB used", status)
		}
		if data, err := os.ReadFile(file); err == nil {
			if err := json.Unmarshal(data, &status); err != nil {
				t.Fatal(err)
			}
		}
	}
	if status.LimitBytes != 10*mib {
		t.Errorf("limit %d, want 10 MiB", status.LimitBytes)
	}
	if kept := time.Duration(d.kept.Load()); kept != keptWhenFull {
		t.Errorf("full, it keeps %s of history", kept)
	}
	stop()
	<-ended
}

// TestNearlyFull: while there is room, lists of many pages are not cut short.
func TestNearlyFull(t *testing.T) {
	d := &disk{}
	d.used.Store(95 * mib / 10)
	b := New(Config{LimitBytes: 10 * mib}, d)
	b.used = 95 * mib / 10
	if err := b.look(t.Context(), true, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if kept := time.Duration(d.kept.Load()); kept != keptHistory {
		t.Errorf("at 95 %% it keeps %s of history", kept)
	}
}

// TestShare: what others have of the same room makes the limit lower, and higher
// again, without a restart.
func TestShare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "share.json")
	written := time.Unix(1e9, 0)
	put := func(text string) {
		t.Helper()
		written = written.Add(time.Second)
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chtimes(file, written, written)); err != nil {
			t.Fatal(err)
		}
	}
	d := &disk{}
	d.used.Store(4 * mib)
	b, clock := at(Config{LimitBytes: 10 * mib, ShareFile: file}, d)
	b.used, b.at = 4*mib, *clock
	for _, step := range []struct {
		text string // of the file; "": there is none
		want int64
		says string
	}{
		{"", 10 * mib, ""},
		{`{"limitBytes":4194304,"why":"others have the rest"}`, 4 * mib, "full (4.0 MiB of 4.0 MiB, as others have the rest): delete"},
		{`{"limitBytes":8388608}`, 8 * mib, ""},
		{`{"limitBytes":83886080}`, 10 * mib, ""}, // never more
		{`{"limitBytes":0}`, 10 * mib, ""},
		{`{"limitBytes":-1}`, 10 * mib, ""},
		{`{"limitBytes":1}`, 1, "full"},
		{`{`, 10 * mib, ""},
	} {
		if step.text != "" {
			put(step.text)
		}
		*clock = clock.Add(2 * time.Second)
		b.readShare()
		if got := b.limit(); got != step.want {
			t.Errorf("%q: the limit is %d, want %d", step.text, got, step.want)
		}
		err := b.Admit(t.Context(), growth(mib))
		if (err == nil) != (step.says == "") || err != nil && !strings.Contains(err.Error(), step.says) {
			t.Errorf("%q: a write: %v, want %q", step.text, err, step.says)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	put(`{"limitBytes":4194304}`)
	b.readShare()
	_ = os.Remove(file)
	b.readShare()
	if got := b.limit(); got != 10*mib {
		t.Errorf("without the file: the limit is %d, want its own", got)
	}
}

// slow is a disk that makes room until it is told to stop.
type slow struct {
	disk
	stop chan struct{}
}

func (s *slow) Reclaim(context.Context, time.Duration) error {
	<-s.stop
	return nil
}

// TestMakingRoomHoldsNoWriter: a write that has to wait for the datastore is refused by
// what is known, and not held until the API server gives it up.
func TestMakingRoomHoldsNoWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slow{stop: make(chan struct{})}
		store.used.Store(10 * mib)
		b := New(Config{LimitBytes: 10 * mib}, store)
		b.used, b.at = 10*mib, time.Now().Add(-time.Minute)
		go func() { _ = b.look(t.Context(), true, b.at) }()
		synctest.Wait()
		begun := time.Now()
		if err := b.Admit(t.Context(), growth(1)); err == nil || !strings.Contains(err.Error(), "full") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("the write was held for %s", took)
		}
		close(store.stop)
		synctest.Wait()
	})
}
