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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	// reportEvery is the pace of heartbeats; changes are reported at once.
	reportEvery = 10 * time.Second
	// sweepEvery is how often the agent looks for what nobody wants though nothing
	// has changed.
	sweepEvery = 30 * time.Second
	// stepTimeout bounds one look at an item, so that a program that hangs holds up
	// its own machine only. The first one on a host unpacks the machines' image.
	stepTimeout = 5 * time.Minute
	// workers is how many items are made at a time: to start a machine takes a core
	// for some seconds.
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
}

// Agent keeps this host as the server wants it.
type Agent struct {
	cfg  Config
	loop *reconcile.Loop[Ref]
	tell chan struct{} // something to report
	gone chan struct{} // something was taken away, or is wanted no more

	mu   sync.Mutex
	plan *plan // nil: nobody has said yet what shall be
	live bool  // a state came from the server since this start, not from disk
	done map[Ref]done
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
		cfg:     cfg,
		tell:    make(chan struct{}, 1),
		gone:    make(chan struct{}, 1),
		done:    map[Ref]done{},
		tenants: map[Ref]string{},
	}
	a.loop = reconcile.New(reconcile.Config[Ref]{
		Name:      "agent",
		Log:       cfg.Log,
		Reconcile: a.reconcile,
		Tenant:    a.tenant,
		Workers:   workers,
		Timeout:   stepTimeout,
		Backoff:   200 * time.Millisecond,
		Ended:     a.ended,
	})
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
	wg.Go(func() { a.loop.Run(ctx) })
	wg.Go(func() { a.sweepLoop(sweeping) })
	wg.Go(func() { a.reportLoop(ctx) })
	wg.Go(func() { a.renewLoop(ctx) })
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

// follow reads states until the stream ends.
func (a *Agent) follow(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := a.cfg.Client.do(ctx, http.MethodGet, "/v1/agent/state", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// The server shows a sign of life every AliveEvery. A peer that vanished
	// without a word is noticed here and not by TCP, which takes 15 minutes.
	watchdog := time.AfterFunc(3*wire.AliveEvery, cancel)
	defer watchdog.Stop()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxState)
	for lines.Scan() {
		watchdog.Reset(3 * wire.AliveEvery)
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

func readState(dir string) (*wire.State, error) {
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
	s, err := readState(a.cfg.Client.dir)
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
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(a.cfg.Client.dir, stateName), data, 0o600); err != nil {
			return fmt.Errorf("keep state: %w", err)
		}
		failpoint.Reach("agent/state-kept")
	}
	a.mu.Lock()
	serial := uint64(1)
	if a.plan != nil {
		serial = a.plan.serial + 1
	}
	a.plan, a.live = newPlan(a.cfg.Drivers, s, serial), a.live || live
	for ref, d := range a.done {
		if _, wanted := a.plan.items[ref]; !wanted && d.problem == "" {
			delete(a.done, ref) // the server knows that it is gone, or will hear of it anew
		}
	}
	queue := a.plan.order
	a.mu.Unlock()
	// States are taken one after the other, so no older one is told after this.
	for _, d := range a.cfg.Drivers {
		if t, ok := d.(Taker); ok {
			t.Take(s)
		}
	}
	for _, ref := range queue {
		a.loop.Add(ref)
	}
	wake(a.gone)
	wake(a.tell)
	return nil
}

// tenant is who holds a worker for ref: a workspace holds one of each driver's.
// What nobody wanted when it was first heard of is its own.
func (a *Agent) tenant(ref Ref) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ok := a.tenants[ref]
	if !ok {
		name = ref.String()
		if item, wanted := a.plan.items[ref]; wanted {
			name = ref.Kind + " of " + item.Workspace
		}
		a.tenants[ref] = name
	}
	return name
}

func (a *Agent) driver(kind string) Driver {
	return a.cfg.Drivers[slices.IndexFunc(a.cfg.Drivers, func(d Driver) bool { return d.Kind() == kind })]
}

// reconcile brings one item closer to the state.
func (a *Agent) reconcile(ctx context.Context, ref Ref) (again time.Duration, err error) {
	a.mu.Lock()
	p, live, removed := a.plan, a.live, a.done[ref].removed
	item, wanted := p.items[ref]
	waits := wanted && slices.ContainsFunc(item.Needs, func(need Ref) bool { return !a.isReady(need) })
	a.mu.Unlock()
	switch {
	case !wanted && !live:
		return 0, nil // only the server itself can say that a thing is no more
	case !wanted:
		if on, err := a.unwanted(ctx, p, ref.Kind); err != nil || len(on) > 0 {
			return 0, err // sweep comes back to it once they are gone
		}
		if err := a.driver(ref.Kind).Remove(ctx, ref.Key); err != nil {
			return 0, err
		}
		a.note(ref, func(d *done) { *d = done{} })
		wake(a.gone)
		return 0, nil
	case item.Remove:
		if removed {
			return 0, nil
		}
		if err := a.driver(ref.Kind).Remove(ctx, ref.Key); err != nil {
			return 0, err
		}
		a.note(ref, func(d *done) { *d = done{removed: true} })
		wake(a.gone)
		return 0, nil
	case waits:
		return 0, nil // it is queued when what it needs is there
	}
	if err := item.Ensure(ctx); err != nil {
		return 0, err
	}
	if a.note(ref, func(d *done) { *d = done{serial: p.serial} }) {
		for _, user := range p.users[ref] {
			a.loop.Add(user)
		}
	}
	return item.Every, nil
}

// isReady says whether an item is as the newest state wants it. The caller holds
// a.mu.
func (a *Agent) isReady(ref Ref) bool {
	d := a.done[ref]
	return d.serial == a.plan.serial && d.problem == ""
}

// ended takes down how a look at an item ended.
func (a *Agent) ended(ref Ref, err error) {
	a.note(ref, func(d *done) {
		d.problem = ""
		if err != nil {
			d.problem = err.Error()
		}
	})
}

// note changes what is remembered of an item. What is news is reported, and only
// that: a report has items looked at, so one for each look would have no end.
func (a *Agent) note(ref Ref, change func(d *done)) (news bool) {
	a.mu.Lock()
	before := a.done[ref]
	d := before
	change(&d)
	if d == (done{}) {
		delete(a.done, ref)
	} else {
		a.done[ref] = d
	}
	a.mu.Unlock()
	if d == before {
		return false
	}
	wake(a.tell)
	return true
}

// progress says how far the agent has come with an item of a plan. One that waits
// has the problems of what it waits for.
func (a *Agent) progress(p *plan, ref Ref) Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.done[ref]
	out := Progress{Ready: d.serial > 0 && d.problem == "", Removed: d.removed, Problem: d.problem}
	if item := p.items[ref]; out.Problem == "" && !item.Remove {
		for _, need := range item.Needs {
			if problem := a.done[need].problem; problem != "" {
				out.Problem = need.String() + ": " + problem
			} else if _, ok := p.items[need]; !ok {
				out.Problem = need.String() + " is not in the state"
			}
		}
	}
	return out
}

// sweepLoop has things taken away that nobody wants, whenever something may have
// become such a thing.
func (a *Agent) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.gone:
		}
		if _, err := a.sweep(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("look for what nobody wants", "err", err)
		}
	}
}

// sweep queues what is on this host and not in the state, once the server itself
// has spoken. It returns whether nothing is.
func (a *Agent) sweep(ctx context.Context) (clean bool, err error) {
	a.mu.Lock()
	p, live := a.plan, a.live
	a.mu.Unlock()
	if !live {
		return false, nil
	}
	refs, err := a.unwanted(ctx, p, "")
	for _, ref := range refs {
		a.loop.Add(ref)
	}
	return err == nil && len(refs) == 0, err
}

// unwanted lists what is here and not in the plan, of the last of the drivers
// after the one of this kind that has any; the kind "" is before all. What stands
// on other things goes before them.
func (a *Agent) unwanted(ctx context.Context, p *plan, after string) (refs []Ref, err error) {
	for _, d := range slices.Backward(a.cfg.Drivers) {
		if d.Kind() == after {
			return nil, nil
		}
		keys, err := d.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			ref := Ref{d.Kind(), key}
			if _, wanted := p.items[ref]; !wanted {
				refs = append(refs, ref)
			}
		}
		if len(refs) > 0 {
			return refs, nil
		}
	}
	return nil, nil
}

// Wanted says what shall be on this host: the ids of networks and the UIDs of
// machines, those that are being removed included. ok is false before the agent
// has a state. What is there and not wanted, nobody is making: a state is taken
// before anything of it is made.
func (a *Agent) Wanted() (networks, machines []string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plan == nil {
		return nil, nil, false
	}
	networks, machines = wanted(a.plan.state)
	return networks, machines, true
}

// WantedOnDisk says the same of an agent that does not run, from the last state
// that it has kept in dir. The error wraps fs.ErrNotExist if there is none.
func WantedOnDisk(dir string) (networks, machines []string, err error) {
	s, err := readState(dir)
	if err != nil {
		return nil, nil, err
	}
	networks, machines = wanted(s)
	return networks, machines, nil
}

func wanted(s *wire.State) (networks, machines []string) {
	for _, n := range s.Networks {
		networks = append(networks, n.ID)
	}
	for _, m := range s.Machines {
		machines = append(machines, m.UID)
	}
	return networks, machines
}

// Look has the agent look after its machines now: one has ended, say. It does
// not block.
func (a *Agent) Look() { wake(a.tell) }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// reportLoop tells the server what is, every reportEvery and on change.
func (a *Agent) reportLoop(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	failing := false
	for {
		err := a.report(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			a.cfg.Log.Warn("report to the server", "err", err)
		}
		failing = err != nil
		if errors.Is(err, ErrRemoved) {
			return // follow is told too and cleans up
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.tell:
		}
	}
}

func (a *Agent) report(ctx context.Context) error {
	rep := a.cfg.Facts()
	a.mu.Lock()
	p := a.plan
	a.mu.Unlock()
	if p != nil {
		for _, d := range a.cfg.Drivers {
			kind := d.Kind()
			fallen, err := d.Report(ctx, p.state, func(key string) Progress { return a.progress(p, Ref{kind, key}) }, &rep)
			if err != nil {
				return err
			}
			for _, key := range fallen {
				// Until it is ensured it isn't as any state wants it: what needs it
				// waits, and that it is back is news.
				ref := Ref{kind, key}
				a.note(ref, func(d *done) { d.serial = 0 })
				a.loop.Add(ref)
			}
		}
		rep.Problems = append(rep.Problems, a.leftovers(p)...)
	}
	return a.cfg.Client.call(ctx, http.MethodPost, "/v1/agent/report", rep, nil)
}

// leftovers says what nobody wants and can't be taken away.
func (a *Agent) leftovers(p *plan) []resource.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	var texts []string
	for ref, d := range a.done {
		if _, wanted := p.items[ref]; !wanted && d.problem != "" {
			texts = append(texts, ref.String()+": "+d.problem)
		}
	}
	if texts == nil {
		return nil
	}
	slices.Sort(texts)
	return []resource.Condition{{
		Type:    "CleanedUp",
		Status:  resource.False,
		Reason:  "NotRemoved",
		Message: strings.Join(texts, "; "),
	}}
}

// renewLoop looks once an hour whether the node's own certificate is due.
func (a *Agent) renewLoop(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := a.cfg.Client.renew(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("renew this node's certificate", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// cleanUp takes away everything that drivers have made, and the identity.
func (a *Agent) cleanUp(ctx context.Context) error {
	if err := a.take(&wire.State{Node: a.cfg.Client.name}, true); err != nil {
		return err
	}
	for {
		clean, err := a.sweep(ctx)
		if err != nil {
			return err
		}
		if clean {
			failpoint.Reach("node/leave/cleaned")
			return os.RemoveAll(a.cfg.Client.dir)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.gone:
		case <-time.After(5 * time.Second): // a look that failed is repeated by the loop; see again
		}
	}
}
