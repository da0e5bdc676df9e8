// Package lifecycle starts the parts of an appliance in dependency order and
// stops them in the reverse order.
//
// A part is started once every part it comes after is ready. It is told to stop
// once every part that comes after it has stopped, so no part ever outlives one
// that it needs. The first part to fail stops them all.
//
// Parties: the composition root builds a Graph and runs it; the parts have the
// method Run and don't know of this package; package status shows Status.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Component is one part of the appliance.
//
// Run serves until ctx is done, then returns nil. It calls ready once it can
// serve the parts that come after it; calling it again does nothing. Returning
// before ctx is done is a failure, whatever the error. Run is called once.
type Component interface {
	Run(ctx context.Context, ready func()) error
}

// Task is a Component that does one thing before it is ready, then only waits.
type Task func(ctx context.Context) error

// Run does the task. ctx ends the task too, if it is stopped in the middle.
func (t Task) Run(ctx context.Context, ready func()) error {
	if err := t(ctx); err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}

// Func is a Component that is one function.
type Func func(ctx context.Context, ready func()) error

// Run calls f.
func (f Func) Run(ctx context.Context, ready func()) error { return f(ctx, ready) }

// Errors that Graph.Run wraps with the name of the part.
var (
	// ErrExited is returned when a part returned before it was asked to stop.
	ErrExited = errors.New("exited before it was asked to stop")
	// ErrStopTimeout is returned when a part did not return in time after it was
	// asked to. Its goroutine goes on: the process had better end.
	ErrStopTimeout = errors.New("did not stop in time")
)

// defaultStopTimeout is what a part gets to stop in if Graph.StopTimeout is 0.
const defaultStopTimeout = 30 * time.Second

// Graph is a set of parts and the order between them. Build it with Add, then
// call Run once. Status may be called at any time from anywhere.
type Graph struct {
	Log         *slog.Logger  // nil: nothing is logged
	StopTimeout time.Duration // for each part, from being told to stop; 0: 30 s
	OnReady     func()        // called once, when every part has become ready; nil: nobody is told

	mu    sync.Mutex // guards nodes against Status; Add and Run are one goroutine's
	nodes []*Node
}

// Node is a part that was added to a Graph.
type Node struct {
	name   string
	part   Component
	after  []*Node
	before []*Node

	ready   chan struct{} // closed when the part may serve others
	stopped chan struct{} // closed when the part and all those after it have stopped, or never started
	status  status
}

// Add adds a part that starts after the given ones are ready. The parts it
// comes after exist already, so a graph can hold no cycle and no unknown name.
func (g *Graph) Add(name string, part Component, after ...*Node) *Node {
	n := &Node{
		name: name, part: part, after: after,
		ready: make(chan struct{}), stopped: make(chan struct{}),
		status: status{part: PartStatus{Name: name, State: Waiting, Since: time.Now()}},
	}
	for _, dep := range after {
		dep.before = append(dep.before, n)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nodes = append(g.nodes, n)
	return n
}

// Run runs every part until ctx is done or one fails, and returns when all have
// stopped. The error joins the failure that stopped the graph, first, with any
// that came of stopping it; it is nil if ctx ended the run and all went well.
func (g *Graph) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if g.Log == nil {
		g.Log = slog.New(slog.DiscardHandler)
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, n := range g.nodes {
		wg.Go(func() {
			err := g.run(ctx, n)
			n.status.end(err)
			if err != nil {
				g.Log.Error("part failed", "component", n.name, "err", err)
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
				mu.Unlock()
				stop()
			}
			// A part that failed has stopped before those after it have. Wait for
			// them all the same: what n comes after must outlive them too.
			n.awaitDependants()
			close(n.stopped)
		})
	}
	if g.OnReady != nil {
		wg.Go(func() { g.tellReady(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tellReady calls OnReady once every part is, unless the graph stops before.
func (g *Graph) tellReady(ctx context.Context) {
	for _, n := range g.nodes {
		select {
		case <-n.ready:
		case <-ctx.Done():
			return
		}
	}
	g.OnReady()
}

// run takes n through its life. The graph stops when ctx is done.
func (g *Graph) run(ctx context.Context, n *Node) error {
	for _, dep := range n.after {
		select {
		case <-dep.ready:
			continue
		default:
		}
		g.Log.Debug("waiting", "component", n.name, "for", dep.name)
		select {
		case <-dep.ready:
		case <-ctx.Done():
		}
	}
	// Asked last, and not in the select above: with both channels ready, select
	// takes either, and a graph that is stopping must start nothing.
	if ctx.Err() != nil {
		return nil
	}

	// The part's own context outlives ctx: it ends when nobody needs the part.
	partCtx, stopPart := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPart()
	began := time.Now()
	n.status.set(Starting)
	g.Log.Debug("starting", "component", n.name)
	ready := sync.OnceFunc(func() {
		n.status.set(Ready)
		g.Log.Info("ready", "component", n.name, "after", time.Since(began).Round(time.Millisecond))
		close(n.ready)
	})
	exited := make(chan error, 1)
	go func() { exited <- call(partCtx, n.part, ready) }()

	select {
	case err := <-exited:
		if err == nil {
			return ErrExited
		}
		return fmt.Errorf("%w: %w", ErrExited, err)
	case <-ctx.Done():
	}
	n.status.set(Stopping)
	n.awaitDependants()
	g.Log.Debug("stopping", "component", n.name)
	stopPart()
	timeout := cmp.Or(g.StopTimeout, defaultStopTimeout)
	select {
	case err := <-exited:
		return err
	case <-time.After(timeout):
		return fmt.Errorf("%w (%s)", ErrStopTimeout, timeout)
	}
}

// awaitDependants waits until every part that comes after n has stopped.
func (n *Node) awaitDependants() {
	for _, dependant := range n.before {
		<-dependant.stopped
	}
}

// call turns a panic on the part's own goroutine into an error. A panic on a
// goroutine the part started still ends the process.
func call(ctx context.Context, part Component, ready func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return part.Run(ctx, ready)
}
