// Package agent is the host's side of the platform: it joins this machine to a
// server and then keeps what is on it as the server wants it. Everything here
// runs on a host that is a node; the server's side is modules/node, and what the
// two say to each other is modules/wire.
//
// It promises that what runs on the host goes on when the server is away: the
// last state is on disk, so that a host which boots without its server still
// starts its machines. It takes something away only when the server itself says
// so in this run, never since a file does not name it.
//
// Parties: the server's Hub, over HTTPS with the node's certificate; the modules
// that have a hand on the host, through the interfaces that the drivers here
// declare. Only package appliance may import it. DESIGN.md says how and why.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	// sweepEvery is how often the agent looks for what nobody wants though nothing
	// has changed.
	sweepEvery = 30 * time.Second
	// stepTimeout bounds one look at an item, so that a program that hangs holds up
	// its own machine only. The first one on a host unpacks the machines' image.
	stepTimeout = 5 * time.Minute
	// workers is how many items of a driver are made at a time: to start a machine takes
	// a core for some seconds. Each driver has its own, for a disk that hangs holds those of
	// what is on it for ever.
	workers = 4
	// maxState bounds one line of the state stream: 250 machines with 250 members
	// each in their networks are 8 MB.
	maxState = 32 << 20
)

// Config is what an Agent needs.
type Config struct {
	Log    *slog.Logger
	Client *Client
	// Drivers are in the order in which things stand on each other: networks before
	// the machines in them. What nobody wants is taken away in reverse.
	Drivers []Driver
	// Facts describes the host for a report: everything but what drivers report.
	// Called for every report.
	Facts func() wire.Report
	// Heard is told each state, in their order, before anything of it is made. It
	// does not block.
	Heard func(s *wire.State)
}

// Agent keeps this host as the server wants it.
type Agent struct {
	cfg       Config
	loops     map[string]*reconcile.Loop[Ref] // by the kind of a driver
	items     outbox
	tell      chan struct{}           // something to report
	tellItems chan struct{}           // something of items to report
	pace      flowcontrol.RateLimiter // of reports
	pages     flowcontrol.RateLimiter // of pages of items
	later     *time.Timer             // wakes a report that its pace held up; report's alone
	gone      chan struct{}           // something was taken away, or is wanted no more
	show      chan []netip.Addr       // addresses to be shown

	mu   sync.Mutex
	plan *plan
	live bool // a state came from the server since this start, not from disk
	done map[Ref]Progress
	said []byte // the last report, if the server has taken it down and needn't hear it again
	// tenants are whose items are, as first heard of: the loop can't have them
	// change. Nobody is forgotten; it is 200 octets for each machine ever here.
	tenants map[Ref]string
}

// ErrRemoved is returned by Run when the node was removed from the platform:
// machines and identity are gone, the machine may join again.
var ErrRemoved = errors.New("this node was removed from the platform")

// ErrLeftovers comes with ErrRemoved when something could not be taken away.
var ErrLeftovers = errors.New("not all of it could be cleaned up")

// New makes the agent of a machine that has joined (see Join).
func New(cfg Config) *Agent {
	a := &Agent{
		cfg:       cfg,
		loops:     map[string]*reconcile.Loop[Ref]{},
		tell:      make(chan struct{}, 1),
		tellItems: make(chan struct{}, 1),
		pace:      flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(wire.ReportPace), wire.ReportBurst/2),
		pages:     flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(wire.PagePace), wire.PageBurst/2),
		gone:      make(chan struct{}, 1),
		show:      make(chan []netip.Addr, 1),
		plan:      &plan{},
		done:      map[Ref]Progress{},
		tenants:   map[Ref]string{},
	}
	a.later = time.AfterFunc(time.Hour, func() { wake(a.tell) })
	a.later.Stop()
	a.items.anew()
	for _, d := range cfg.Drivers {
		a.loops[d.Kind()] = reconcile.New(reconcile.Config[Ref]{
			Name:      "agent",
			Log:       cfg.Log,
			Reconcile: a.reconcile,
			Tenant:    a.tenant,
			Workers:   workers,
			Timeout:   stepTimeout,
			Backoff:   200 * time.Millisecond,
			Ended:     a.ended,
		})
	}
	return a
}

// Run keeps the node as the server wants it until ctx is done. Machines go on
// running when it returns: they are not children of this process. It is ready
// once it acts on a state, from the server or from disk.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait() // last: what it waits for ends by the one below
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	ready = sync.OnceFunc(ready)
	if a.loadState() {
		ready()
	}
	sweeping, stopSweeping := context.WithCancel(ctx)
	defer stopSweeping()
	for _, loop := range a.loops {
		wg.Go(func() { loop.Run(ctx) })
	}
	wg.Go(func() {
		a.every(sweeping, sweepEvery, a.gone, "look for what nobody wants", func(ctx context.Context, _ bool) error {
			_, err := a.sweep(ctx)
			return err
		})
	})
	wg.Go(func() { a.every(ctx, wire.ReportEvery, a.tell, "report to the server", a.report) })
	wg.Go(func() { a.every(ctx, wire.ReportEvery, a.tellItems, "report volumes to the server", a.reportItems) })
	wg.Go(func() {
		a.every(ctx, time.Hour, nil, "renew this node's certificate", func(ctx context.Context, _ bool) error {
			return a.cfg.Client.renew(ctx)
		})
	})
	wg.Go(func() { a.showAddresses(ctx) })
	wait := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := a.follow(ctx, ready)
		if errors.Is(err, ErrRemoved) {
			a.cfg.Log.Info("removed from the platform; cleaning up")
			stopSweeping()
			if err := a.cleanUp(ctx); err != nil {
				return fmt.Errorf("%w: %w: %w", ErrRemoved, ErrLeftovers, err)
			}
			return ErrRemoved
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		a.cfg.Log.Warn("no connection to the server; machines go on running", "server", a.cfg.Client.server, "err", err, "retry", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait): // not waiting for an event: pacing retries
		}
		wait = min(2*wait, 15*time.Second)
	}
	return nil
}

// every does something at once, at a pace and when it is woken, which do is told,
// until ctx is done. An error that repeats is logged once in a while.
func (a *Agent) every(
	ctx context.Context, pace time.Duration, wakes chan struct{}, what string, do func(ctx context.Context, woken bool) error,
) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	said, at, woken := "", time.Time{}, false
	for {
		text := ""
		if err := do(ctx, woken); err != nil {
			text = err.Error()
		}
		if text != "" && ctx.Err() == nil && (text != said || time.Since(at) > 50*time.Minute) {
			a.cfg.Log.Warn(what, "err", text)
			at = time.Now()
		}
		said = text
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			woken = false
		case <-wakes:
			woken = true
		}
	}
}

// follow reads states until the stream ends.
func (a *Agent) follow(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := a.cfg.Client.do(ctx, http.MethodGet, wire.StatePath, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	a.forget() // it may be another server, or know less than it did
	a.items.anew()
	// The server shows a sign of life every AliveEvery. A peer that vanished
	// without a word is noticed here and not by TCP, which takes 15 minutes.
	watchdog := time.AfterFunc(wire.DeadAfter, cancel)
	defer watchdog.Stop()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxState)
	for lines.Scan() {
		watchdog.Reset(wire.DeadAfter)
		if len(lines.Bytes()) == 0 {
			continue
		}
		var s wire.State
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return fmt.Errorf("state from the server: %w", err)
		}
		if err := a.take(&s, true); err != nil {
			return err
		}
		ready()
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the server ended the connection")
}

const stateName = "state.json"

// StateOnDisk is the last state that an agent has kept in dir. The error wraps
// fs.ErrNotExist if there is none.
func StateOnDisk(dir string) (*wire.State, error) {
	data, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	var s wire.State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("last state of the node in %s: %w", dir, err)
	}
	return &s, nil
}

func (a *Agent) loadState() bool {
	s, err := StateOnDisk(a.cfg.Client.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		a.cfg.Log.Warn("last state on disk is not usable; waiting for the server", "err", err)
		return false
	}
	a.cfg.Log.Info("going on from the last state", "machines", len(s.Machines))
	return a.take(s, false) == nil
}

// take makes s the state to work for and queues everything it touches.
func (a *Agent) take(s *wire.State, live bool) error {
	if live {
		if err := atomicfile.WriteJSON(filepath.Join(a.cfg.Client.dir, stateName), s); err != nil {
			return fmt.Errorf("keep state: %w", err)
		}
		failpoint.Reach("agent/state-kept")
	}
	a.mu.Lock()
	p := newPlan(a.cfg.Drivers, s, a.plan.serial+1)
	a.plan, a.live = p, a.live || live
	for ref, d := range a.done {
		if _, wanted := p.items[ref]; !wanted && d.Problem == "" {
			delete(a.done, ref) // the server knows that it is gone, or will hear of it anew
		}
	}
	a.mu.Unlock()
	// States are taken one after the other, so no older one is told after this.
	a.cfg.Heard(s)
	for ref := range p.items {
		a.add(ref)
	}
	wake(a.gone)
	wake(a.tell)
	return nil
}

// State is what shall be on this host, nil before anybody has said. What is there
// and not in it, nobody is making: a state is taken before anything of it is made.
func (a *Agent) State() *wire.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.plan.state
}

// Wants says whether something with this key, a UID, shall be on this host. As long as nobody has
// said what shall be, all shall.
func (a *Agent) Wants(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plan.state == nil {
		return true
	}
	return slices.ContainsFunc(a.cfg.Drivers, func(d Driver) bool {
		_, wanted := a.plan.items[Ref{d.Kind(), key}]
		return wanted
	})
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
