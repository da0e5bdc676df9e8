package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a part. Its zero value is ready at once and stops at once.
type fake struct {
	start   time.Duration // until ready
	stop    time.Duration // from being asked to having stopped
	failAt  time.Duration // 0: never
	err     error         // of the failure; nil: returns without one
	stopErr error
	panics  bool
	silent  bool // never ready
	hangs   bool // never stops, until the test's end
}

// diary notes what happened, in order.
type diary struct {
	mu     sync.Mutex
	events []string
	end    chan struct{}
}

func newDiary(t *testing.T) *diary {
	d := &diary{end: make(chan struct{})}
	t.Cleanup(func() {
		select {
		case <-d.end:
		default:
			close(d.end)
		}
	})
	return d
}

func (d *diary) note(event string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, event)
}

// before checks that a was noted, and before b.
func (d *diary) before(t *testing.T, a, b string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	i, j := slices.Index(d.events, a), slices.Index(d.events, b)
	if i < 0 || j < 0 || i > j {
		t.Errorf("want %q before %q, got %q", a, b, d.events)
	}
}

func (d *diary) has(event string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.events, event)
}

func (d *diary) part(name string, f fake) Component {
	return Func(func(ctx context.Context, ready func()) error {
		d.note(name + " starts")
		defer d.note(name + " stopped")
		if f.panics {
			panic("out of order")
		}
		var failed <-chan time.Time
		if f.failAt > 0 {
			failed = time.After(f.failAt)
		}
		started := time.After(f.start)
		for {
			select {
			case <-started:
				if !f.silent {
					d.note(name + " ready")
					ready()
					ready() // again: nothing happens
				}
			case <-failed:
				d.note(name + " fails")
				return f.err
			case <-ctx.Done():
				d.note(name + " stops")
				if f.hangs {
					<-d.end
				}
				time.Sleep(f.stop)
				return f.stopErr
			}
		}
	})
}

// run runs g for d, then stops it.
func run(t *testing.T, g *Graph, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return g.Run(ctx)
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{StopTimeout: time.Minute}
		slow := fake{start: time.Second, stop: time.Second}
		a := g.Add("a", d.part("a", slow))
		b := g.Add("b", d.part("b", slow), a)
		c := g.Add("c", d.part("c", slow), a)
		g.Add("d", d.part("d", slow), b, c)
		began := time.Now()
		if err := run(t, g, time.Minute); err != nil {
			t.Errorf("got %v, want none", err)
		}
		for _, pair := range [][2]string{
			{"a ready", "b starts"}, {"a ready", "c starts"}, {"b ready", "d starts"}, {"c ready", "d starts"},
			{"d stopped", "b stops"}, {"d stopped", "c stops"}, {"b stopped", "a stops"}, {"c stopped", "a stops"},
		} {
			d.before(t, pair[0], pair[1])
		}
		// b and c stop at the same time: three seconds, not four.
		if got, want := time.Since(began), time.Minute+3*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
}

// A part outlives those that need it through others, even when a part between
// them has failed long before. The last takes its time to stop: otherwise the
// order would be right by chance.
func TestOutlivesTransitively(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		broken := errors.New("broken")
		g := &Graph{StopTimeout: time.Minute}
		a := g.Add("a", d.part("a", fake{}))
		b := g.Add("b", d.part("b", fake{failAt: time.Second, err: broken}), a)
		g.Add("c", d.part("c", fake{stop: 10 * time.Second}), b)
		err := run(t, g, time.Hour)
		if !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
		d.before(t, "b fails", "c stops")
		d.before(t, "c stopped", "a stops")
	})
}

func TestFailureStopsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		broken := errors.New("broken")
		g := &Graph{}
		a := g.Add("a", d.part("a", fake{}))
		g.Add("b", d.part("b", fake{failAt: time.Second, err: broken}), a)
		g.Add("lone", d.part("lone", fake{}))
		began := time.Now()
		err := run(t, g, time.Hour)
		if !errors.Is(err, broken) || !errors.Is(err, ErrExited) || !strings.HasPrefix(err.Error(), "b: ") {
			t.Errorf("got %v, want b's %v", err, broken)
		}
		if got := time.Since(began); got != time.Second {
			t.Errorf("went on for %v after the failure", got-time.Second)
		}
		d.before(t, "b fails", "lone stopped")
		if got, want := states(g), "a=stopped b=failed lone=stopped"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestReturningEarlyIsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{}
		g.Add("a", d.part("a", fake{failAt: time.Second})) // returns nil
		if err := run(t, g, time.Hour); !errors.Is(err, ErrExited) {
			t.Errorf("got %v, want %v", err, ErrExited)
		}
	})
}

func TestPanicIsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{}
		a := g.Add("a", d.part("a", fake{}))
		g.Add("b", d.part("b", fake{panics: true}), a)
		err := run(t, g, time.Hour)
		if err == nil || !strings.Contains(err.Error(), "panic: out of order") {
			t.Errorf("got %v, want the panic", err)
		}
		d.before(t, "b stopped", "a stops")
	})
}

func TestStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{StopTimeout: 5 * time.Second}
		a := g.Add("a", d.part("a", fake{}))
		g.Add("b", d.part("b", fake{hangs: true}), a)
		began := time.Now()
		err := run(t, g, time.Minute)
		if !errors.Is(err, ErrStopTimeout) || !strings.HasPrefix(err.Error(), "b: ") {
			t.Errorf("got %v, want b's %v", err, ErrStopTimeout)
		}
		if got, want := time.Since(began), time.Minute+5*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
		d.before(t, "b stops", "a stops")
		close(d.end)
		synctest.Wait()
	})
}

func TestStopErrorsAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		one, two := errors.New("one"), errors.New("two")
		g := &Graph{}
		a := g.Add("a", d.part("a", fake{stopErr: one}))
		g.Add("b", d.part("b", fake{stopErr: two}), a)
		err := run(t, g, time.Minute)
		if !errors.Is(err, one) || !errors.Is(err, two) {
			t.Errorf("got %v, want both", err)
		}
	})
}

// A graph that is being stopped starts nothing any more, also when what a part
// waits for becomes ready at the same moment.
func TestNothingStartsWhileStopping(t *testing.T) {
	for range 50 { // select takes either of two ready channels by chance
		synctest.Test(t, func(t *testing.T) {
			d := newDiary(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := &Graph{}
			a := g.Add("a", Func(func(ctx context.Context, ready func()) error {
				cancel()
				ready()
				<-ctx.Done()
				return nil
			}))
			g.Add("b", d.part("b", fake{}), a)
			if err := g.Run(ctx); err != nil {
				t.Errorf("got %v, want none", err)
			}
			if d.has("b starts") {
				t.Error("b was started after the stop")
			}
		})
	}
}

func TestStopBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{}
		a := g.Add("a", d.part("a", fake{silent: true}))
		g.Add("b", d.part("b", fake{}), a)
		if err := run(t, g, time.Second); err != nil {
			t.Errorf("got %v, want none", err)
		}
		if d.has("b starts") {
			t.Error("b started before a was ready")
		}
		d.before(t, "a starts", "a stopped")
	})
}

func TestTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		g := &Graph{}
		task := g.Add("task", Task(func(context.Context) error { time.Sleep(time.Second); d.note("task done"); return nil }))
		g.Add("b", d.part("b", fake{}), task)
		if err := run(t, g, time.Minute); err != nil {
			t.Errorf("got %v, want none", err)
		}
		d.before(t, "task done", "b starts")

		broken := errors.New("broken")
		g = &Graph{}
		task = g.Add("task", Task(func(context.Context) error { return broken }))
		g.Add("never", d.part("never", fake{}), task)
		if err := run(t, g, time.Minute); !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
		if d.has("never starts") {
			t.Error("a part started after a task that failed")
		}
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(t)
		var logged bytes.Buffer
		g := &Graph{Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		a := g.Add("a", d.part("a", fake{start: time.Second}))
		b := g.Add("b", d.part("b", fake{start: time.Second}))
		g.Add("c", d.part("c", fake{stop: 10 * time.Second}), a, b)
		if got, want := states(g), "a=waiting b=waiting c=waiting(a,b)"; got != want {
			t.Errorf("before: got %s, want %s", got, want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		if got, want := states(g), "a=starting b=starting c=waiting(a,b)"; got != want {
			t.Errorf("at first: got %s, want %s", got, want)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got, want := states(g), "a=ready b=ready c=ready"; got != want {
			t.Errorf("then: got %s, want %s", got, want)
		}
		if got, want := time.Since(g.Status()[0].Since), time.Second; got != want {
			t.Errorf("a has been ready for %v, want %v", got, want)
		}
		cancel()
		synctest.Wait()
		if got, want := states(g), "a=stopping(c) b=stopping(c) c=stopping"; got != want {
			t.Errorf("stopping: got %s, want %s", got, want)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got, want := states(g), "a=stopped b=stopped c=stopped"; got != want {
			t.Errorf("at last: got %s, want %s", got, want)
		}
		if want := "msg=waiting component=c for=a"; !strings.Contains(logged.String(), want) {
			t.Errorf("log holds no %q:\n%s", want, &logged)
		}
	})
}

func states(g *Graph) string {
	var all []string
	for _, p := range g.Status() {
		s := p.Name + "=" + p.State
		if len(p.WaitingFor) > 0 {
			s += "(" + strings.Join(p.WaitingFor, ",") + ")"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

// OnReady is told when the last part is ready, not before, and not at all by a
// graph that stops before that.
func TestOnReady(t *testing.T) {
	for _, all := range []bool{true, false} {
		told, slow := make(chan bool, 2), make(chan struct{})
		g := &Graph{OnReady: func() { told <- true }}
		g.Add("quick", Task(func(context.Context) error { return nil }))
		g.Add("slow", Func(func(ctx context.Context, ready func()) error {
			select {
			case <-slow:
				ready()
				<-ctx.Done()
			case <-ctx.Done():
			}
			return nil
		}))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		if all {
			if len(told) != 0 {
				t.Error("told before the slow part is ready")
			}
			close(slow)
			<-told
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if got := len(told); got != 0 {
			t.Errorf("all ready: %v: told %d times more, want none", all, got)
		}
	}
}
