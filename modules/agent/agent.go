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
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
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
	// Heard is told each state, in their order, before anything of it is made. It
	// does not block.
	Heard func(s *wire.State)
}

// Agent keeps this host as the server wants it.
type Agent struct {
	cfg  Config
	loop *reconcile.Loop[Ref]
	tell chan struct{}           // something to report
	pace flowcontrol.RateLimiter // of reports
	gone chan struct{}           // something was taken away, or is wanted no more
	show chan []netip.Addr       // addresses to be shown

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
		cfg:     cfg,
		tell:    make(chan struct{}, 1),
		pace:    flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(wire.ReportPace), wire.ReportBurst/2),
		gone:    make(chan struct{}, 1),
		show:    make(chan []netip.Addr, 1),
		plan:    &plan{},
		done:    map[Ref]Progress{},
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
	wg.Go(func() {
		a.every(sweeping, sweepEvery, a.gone, "look for what nobody wants", func(ctx context.Context, _ bool) error {
			_, err := a.sweep(ctx)
			return err
		})
	})
	wg.Go(func() { a.every(ctx, wire.ReportEvery, a.tell, "report to the server", a.report) })
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
	p, live, removed := a.plan, a.live, a.done[ref].Removed
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
		drop := func(ctx context.Context) error { return a.driver(ref.Kind).Drop(ctx, ref.Key) }
		return 0, a.remove(ctx, ref, drop, Progress{})
	case item.Remove != nil && removed:
		return 0, nil
	case item.Remove != nil:
		return 0, a.remove(ctx, ref, item.Remove, Progress{Removed: true})
	case waits:
		return 0, nil // it is queued when what it needs is there
	}
	if err := item.Ensure(ctx); err != nil {
		return 0, err
	}
	if a.note(ref, func(d *Progress) { *d = Progress{serial: p.serial} }) {
		for user, item := range p.items {
			if slices.Contains(item.Needs, ref) {
				a.loop.Add(user)
			}
		}
	}
	return item.Every, nil
}

// remove takes an item away by do. after is what is remembered of it then.
func (a *Agent) remove(ctx context.Context, ref Ref, do func(context.Context) error, after Progress) error {
	if err := do(ctx); err != nil {
		return err
	}
	a.note(ref, func(d *Progress) { *d = after })
	wake(a.gone)
	return nil
}

// isReady says whether an item is as the newest state wants it. The caller holds
// a.mu.
func (a *Agent) isReady(ref Ref) bool {
	d := a.done[ref]
	return d.serial == a.plan.serial && d.Problem == ""
}

// ended takes down how a look at an item ended.
func (a *Agent) ended(ref Ref, err error) {
	a.note(ref, func(d *Progress) {
		d.Problem = ""
		if err != nil {
			d.Problem = err.Error()
		}
	})
}

// note changes what is remembered of an item. What is news is reported, and only
// that: a report has items looked at, so one for each look would have no end.
func (a *Agent) note(ref Ref, change func(d *Progress)) (news bool) {
	a.mu.Lock()
	before := a.done[ref]
	d := before
	change(&d)
	if d == (Progress{}) {
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
	out := a.done[ref]
	if item := p.items[ref]; out.Problem == "" && item.Remove == nil {
		for _, need := range item.Needs {
			if problem := a.done[need].Problem; problem != "" {
				out.Problem = need.String() + ": " + problem
			} else if _, ok := p.items[need]; !ok {
				out.Problem = need.String() + " is not in the state"
			}
		}
	}
	return out
}

// sweep queues what is on this host and not in the state, once the server itself
// has spoken. It returns how much that is.
func (a *Agent) sweep(ctx context.Context) (n int, err error) {
	a.mu.Lock()
	p, live := a.plan, a.live
	a.mu.Unlock()
	if !live {
		return 0, nil
	}
	refs, err := a.unwanted(ctx, p, "")
	for _, ref := range refs {
		a.loop.Add(ref)
	}
	return len(refs), err
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

// State is what shall be on this host, nil before anybody has said. What is there
// and not in it, nobody is making: a state is taken before anything of it is made.
func (a *Agent) State() *wire.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.plan.state
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

// report tells the server what is, all that is news since the last time at once. When it
// was woken and there is no news the server hears nothing: half of what wakes it changes
// nothing that is told, and what a node may send is kept for news, which would wait.
func (a *Agent) report(ctx context.Context, woken bool) error {
	rep, text, err := a.see(ctx)
	a.mu.Lock()
	known := string(text) == string(a.said)
	a.mu.Unlock()
	if err != nil || woken && known {
		return err
	}
	if !a.pace.TryAccept() {
		if err := a.pace.Wait(ctx); err != nil {
			return nil // ctx is done
		}
		if rep, text, err = a.see(ctx); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.said = text
	a.mu.Unlock()
	var answer wire.ReportAnswer
	err = a.cfg.Client.call(ctx, wire.ReportPath, rep, &answer)
	if err != nil {
		a.forget()
	} else {
		select {
		case a.show <- answer.Show:
		default: // it is showing some: what is left is asked for again
		}
	}
	if busy, ok := errors.AsType[busy](err); ok {
		select {
		case <-ctx.Done():
		case <-time.After(busy.after): // as long as the server has asked for
		}
		wake(a.tell)
	}
	return err
}

// forget has the next report sent whether it is news or not.
func (a *Agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = nil
}

// see looks at what is on this host, for a report, and has made again what has fallen over.
func (a *Agent) see(ctx context.Context) (rep wire.Report, text []byte, err error) {
	rep = a.cfg.Facts()
	a.mu.Lock()
	p := a.plan
	if a.live {
		rep.Holds = []string{} // what a state from disk wants may be made yet
	}
	a.mu.Unlock()
	if p.state != nil {
		for _, d := range a.cfg.Drivers {
			kind := d.Kind()
			fallen, err := d.Report(ctx, p.state, func(key string) Progress { return a.progress(p, Ref{kind, key}) }, &rep)
			if err != nil {
				return rep, nil, err
			}
			for _, key := range fallen {
				// Until it is ensured it isn't as any state wants it: what needs it
				// waits, and that it is back is news.
				ref := Ref{kind, key}
				a.note(ref, func(d *Progress) { d.serial = 0 })
				a.loop.Add(ref)
			}
		}
		rep.Problems = append(rep.Problems, a.leftovers(p)...)
	}
	text, err = json.Marshal(rep)
	return rep, text, err
}

// An address that could not be shown is left alone for a while, twice as long each time:
// from a bridge's, or a storage network's, no way may ever lead to the server. What was
// shown half an hour ago is asked for half an hour more (modules/node).
const (
	showPause    = wire.ReportEvery / 2
	maxShowPause = 5 * time.Minute
)

// shows says which of the addresses that the server asks for are tried now.
type shows struct {
	pauses *flowcontrol.Backoff
	asked  []netip.Addr
}

func newShows() *shows { return &shows{pauses: flowcontrol.NewBackOff(showPause, maxShowPause)} }

// next is told each list. An address that isn't on one begins anew: it has been shown,
// or this host has lost it.
func (s *shows) next(all []netip.Addr) (now []netip.Addr) {
	for _, was := range s.asked {
		if !slices.Contains(all, was) {
			s.pauses.DeleteEntry(was.String())
		}
	}
	s.asked = all
	for _, address := range all {
		if !s.pauses.IsInBackOffSinceUpdate(address.String(), time.Now()) {
			now = append(now, address)
		}
	}
	return now
}

func (s *shows) failed(address netip.Addr) { s.pauses.Next(address.String(), time.Now()) }

// showsAtOnce is from how many addresses the server is told at a time.
const showsAtOnce = 8

// showAddresses tells the server from addresses that this host has them, as it asks.
// From where no way leads there it can't; the server says so, if it matters.
func (a *Agent) showAddresses(ctx context.Context) {
	shows := newShows()
	for {
		var all []netip.Addr
		select {
		case <-ctx.Done():
			return
		case all = <-a.show:
		}
		var work errgroup.Group
		work.SetLimit(showsAtOnce)
		for _, address := range shows.next(all[:min(len(all), wire.MaxAddresses)]) {
			work.Go(func() error {
				if err := a.cfg.Client.show(ctx, address); err != nil {
					a.cfg.Log.Debug("show the server an address of this host", "address", address, "err", err)
					shows.failed(address)
					return nil
				}
				a.forget() // what the server says of it is over
				wake(a.tell)
				return nil
			})
		}
		_ = work.Wait()
	}
}

// leftovers says what nobody wants and can't be taken away.
func (a *Agent) leftovers(p *plan) []resource.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	var texts []string
	for ref, d := range a.done {
		if _, wanted := p.items[ref]; !wanted && d.Problem != "" {
			texts = append(texts, ref.String()+": "+d.Problem)
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

// leave has drivers let go of what they keep, and says where that is.
func (a *Agent) leave() (kept []string, err error) {
	for _, d := range slices.Backward(a.cfg.Drivers) {
		if k, ok := d.(Keeper); ok {
			places, err := k.Leave()
			if err != nil {
				return nil, err
			}
			kept = append(kept, places...)
		}
	}
	return kept, nil
}

// cleanUp takes away everything that drivers have made and nobody may miss, and the identity.
func (a *Agent) cleanUp(ctx context.Context) error {
	if err := a.take(&wire.State{Node: a.cfg.Client.name}, true); err != nil {
		return err
	}
	for {
		left, err := a.sweep(ctx)
		if err != nil {
			return err
		}
		if left == 0 {
			kept, err := a.leave()
			if err != nil {
				return err
			}
			failpoint.Reach("node/leave/cleaned")
			// Nobody hears of it otherwise: a removed node reports no more. Without an
			// answer what it had is never given to others, which is no harm.
			if len(kept) == 0 {
				err = a.cfg.Client.call(ctx, wire.WipedPath, struct{}{}, nil)
			} else {
				err = errors.New("it keeps volumes")
				a.cfg.Log.Warn("volumes are kept, since nobody has said that what is in them may be lost; "+
					"`multipaas doctor` lists them, and says how they are deleted", "volumes", kept)
			}
			if err != nil {
				a.cfg.Log.Warn("the server does not know that this host holds nothing any more", "err", err)
			}
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
