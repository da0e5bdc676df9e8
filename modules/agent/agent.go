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
// Parties: the server's Hub, over HTTPS with the node's certificate; the things
// that it drives, through interfaces declared here. Only package appliance
// imports it.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/modules/wire"

	"k8s.io/client-go/util/workqueue"
)

// reportEvery is the pace of heartbeats; changes are reported at once.
const reportEvery = 10 * time.Second

// lookEvery is how often networks are looked at though nothing has changed.
const lookEvery = 30 * time.Second

// maxState bounds one line of the state stream: 250 machines with 250 members
// each in their networks are 8 MB.
const maxState = 32 << 20

// Networks keeps the host's side of workspaces' networks. Implemented by
// modules/network. All calls are idempotent and may block for seconds.
type Networks interface {
	Attach(ctx context.Context, n wire.Network) error
	Detach(ctx context.Context, id string) error
	Attached() ([]string, error)
	// AttachMachine returns the path of the machine's network namespace.
	AttachMachine(ctx context.Context, m wire.Machine) (string, error)
	DetachMachine(ctx context.Context, uid string) error
	// Machines lists the UIDs of machines that have a place in some network.
	Machines() ([]string, error)
}

// Machines runs machines. Implemented by modules/machine. All calls are
// idempotent and may block for as long as a machine takes to start or stop;
// calls for different machines may be concurrent.
type Machines interface {
	Ensure(ctx context.Context, m wire.Machine, netns string, c Certificates) error
	Remove(ctx context.Context, uid string) error
	// List returns what is there, running or not.
	List(ctx context.Context) ([]wire.MachineReport, error)
}

// Endpoints opens the platform's endpoints inside machines.
type Endpoints interface {
	// Open listens in the namespace; open already is no error.
	Open(ctx context.Context, m wire.Machine, workspace, netns string) error
	Close(uid string)
	// SetState tells names and resolvers, which may change.
	SetState(s *wire.State)
}

// Certificates are a machine's keys and certificates, PEM. The keys are made on
// the node and never leave it.
type Certificates struct {
	KubeletClientKey, KubeletServingKey, KubeProxyKey []byte
	wire.MachineCertificates
}

// Config is what an Agent needs.
type Config struct {
	Log       *slog.Logger
	Dir       string // identity, last state, machines' keys; 0700
	Networks  Networks
	Machines  Machines
	Endpoints Endpoints
	// Facts describes the host for a report: everything but machines and
	// networks. Called for every report.
	Facts func() wire.Report
}

// Agent is the node's side of the platform.
type Agent struct {
	cfg    Config
	client *client

	queue workqueue.TypedRateLimitingInterface[string] // UIDs of machines; "" is the networks
	kick  chan struct{}                                // something to report

	mu       sync.Mutex
	state    *wire.State
	live     bool // state came from the server since this start, not from disk
	problems map[string]string
	removed  map[string]wire.MachineReport
}

// ErrRemoved is returned by Run when the node was removed from the platform:
// machines and identity are gone, the machine may join again.
var ErrRemoved = errors.New("this node was removed from the platform")

// ErrLeftovers comes with ErrRemoved when something could not be taken away.
var ErrLeftovers = errors.New("not all of it could be cleaned up")

// New makes the agent of a machine that has joined (see Join).
func New(cfg Config) (*Agent, error) {
	c, err := newClient(cfg.Dir)
	if err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, client: c, kick: make(chan struct{}, 1),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second)),
		problems: map[string]string{}, removed: map[string]wire.MachineReport{}}, nil
}

// Run keeps the node as the server wants it until ctx is done. Machines go on
// running when it returns: they are not children of this process. It is ready
// once it acts on a state, from the server or from disk.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait() // last: what it waits for ends by the two below
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer a.queue.ShutDown()

	ready = sync.OnceFunc(ready)
	if a.loadState() {
		ready()
	}
	// Four machines start at a time: one takes a core for some seconds.
	for range 4 {
		wg.Go(func() { a.work(ctx) })
	}
	wg.Go(func() { a.reportLoop(ctx) })
	wg.Go(func() { a.renewLoop(ctx) })
	wait := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := a.follow(ctx, ready)
		if errors.Is(err, ErrRemoved) {
			a.cfg.Log.Info("removed from the platform; cleaning up")
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
		a.cfg.Log.Warn("no connection to the server; machines go on running", "server", a.client.server, "error", err, "retry", wait)
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
	res, err := a.client.do(ctx, http.MethodGet, "/v1/agent/state", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// The server shows a sign of life every wire.AliveEvery. A peer that vanished
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

func (a *Agent) stateFile() string { return filepath.Join(a.cfg.Dir, stateName) }

func (a *Agent) loadState() bool {
	data, err := os.ReadFile(a.stateFile())
	if err != nil {
		return false
	}
	var s wire.State
	if err := json.Unmarshal(data, &s); err != nil {
		a.cfg.Log.Warn("last state on disk is not usable; waiting for the server", "error", err)
		return false
	}
	a.cfg.Log.Info("going on from the last state", "machines", len(s.Machines))
	return a.take(&s, false) == nil
}

// take makes s the state to work for and queues everything it touches.
func (a *Agent) take(s *wire.State, live bool) error {
	if live {
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(a.stateFile(), data, 0o600); err != nil {
			return fmt.Errorf("keep state: %w", err)
		}
		faultpoint.Reach("agent/state-kept")
	}
	a.mu.Lock()
	a.state, a.live = s, a.live || live
	wanted := map[string]bool{}
	for _, m := range s.Machines {
		wanted[m.UID] = true
	}
	for uid := range a.removed {
		if !wanted[uid] {
			delete(a.removed, uid) // the server knows
		}
	}
	a.mu.Unlock()
	a.cfg.Endpoints.SetState(s)
	a.queue.Add("")
	for _, m := range s.Machines {
		a.queue.Add(m.UID)
	}
	return nil
}

func (a *Agent) work(ctx context.Context) {
	for {
		uid, quit := a.queue.Get()
		if quit {
			return
		}
		err := a.bounded(ctx, uid)
		a.queue.Done(uid)
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		before := a.problems[uid]
		if err != nil {
			a.problems[uid] = err.Error()
		} else {
			delete(a.problems, uid)
		}
		changed := a.problems[uid] != before
		a.mu.Unlock()
		if err != nil {
			if changed {
				a.cfg.Log.Warn("not as wanted yet", "machine", uid, "error", err)
			}
			a.queue.AddRateLimited(uid)
		} else {
			a.queue.Forget(uid)
		}
		a.report()
	}
}

// Wanted says what shall be on this host: the ids of networks and the UIDs of
// machines, those that are being removed included. ok is false before the agent
// has a state. What is there and not wanted, nobody is making: a state is taken
// before anything of it is made.
func (a *Agent) Wanted() (networks, machines []string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil {
		return nil, nil, false
	}
	n, m := wanted(a.state)
	return n, m, true
}

// WantedOnDisk says the same of an agent that does not run, from the last state
// that it has kept in dir. The error wraps fs.ErrNotExist if there is none.
func WantedOnDisk(dir string) (networks, machines []string, err error) {
	data, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, nil, err
	}
	var s wire.State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, nil, fmt.Errorf("last state of the node in %s: %w", dir, err)
	}
	networks, machines = wanted(&s)
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
func (a *Agent) Look() { a.report() }

func (a *Agent) report() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// stepTimeout bounds one step, so that a program that hangs holds up its own
// machine only. The first one on a host unpacks the machines' image.
const stepTimeout = 5 * time.Minute

func (a *Agent) bounded(ctx context.Context, uid string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return a.step(ctx, uid)
}

// step brings one machine, or the networks, closer to the state.
func (a *Agent) step(ctx context.Context, uid string) error {
	a.mu.Lock()
	state, live := a.state, a.live
	a.mu.Unlock()
	if state == nil {
		return nil // nobody has said yet what shall be
	}
	if uid == "" {
		return a.networks(ctx, state, live)
	}
	i := slices.IndexFunc(state.Machines, func(m wire.Machine) bool { return m.UID == uid })
	if i < 0 || state.Machines[i].Remove {
		if i < 0 && !live {
			return nil // only the server itself can say that a machine is no more
		}
		if err := a.removeMachine(ctx, uid); err != nil {
			return err
		}
		if i >= 0 {
			a.mu.Lock()
			a.removed[uid] = wire.MachineReport{Key: state.Machines[i].Key, UID: uid, Removed: true}
			a.mu.Unlock()
		}
		a.queue.Add("")
		return nil
	}
	m := state.Machines[i]
	j := slices.IndexFunc(state.Networks, func(n wire.Network) bool { return n.ID == m.NetworkID })
	if j < 0 {
		return fmt.Errorf("network %s of machine %s is not in the state", m.NetworkID, m.Name)
	}
	network := state.Networks[j]
	if err := a.cfg.Networks.Attach(ctx, network); err != nil {
		return fmt.Errorf("network of machine %s: %w", m.Name, err)
	}
	netns, err := a.cfg.Networks.AttachMachine(ctx, m)
	if err != nil {
		return fmt.Errorf("network of machine %s: %w", m.Name, err)
	}
	if err := a.cfg.Endpoints.Open(ctx, m, network.Workspace, netns); err != nil {
		return fmt.Errorf("endpoints of machine %s: %w", m.Name, err)
	}
	certs, err := a.certificates(ctx, m)
	if err != nil {
		return fmt.Errorf("certificates of machine %s: %w", m.Name, err)
	}
	if err := a.cfg.Machines.Ensure(ctx, m, netns, certs); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return nil
}

// networks attaches what is wanted and, once the server itself has spoken,
// takes away what is not: networks, and machines nobody knows any more.
func (a *Agent) networks(ctx context.Context, state *wire.State, live bool) error {
	var errs []error
	wanted, machines := map[string]bool{}, map[string]bool{}
	for _, n := range state.Networks {
		wanted[n.ID] = true
		if err := a.cfg.Networks.Attach(ctx, n); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", n.ID, err))
		}
	}
	if !live {
		return errors.Join(errs...)
	}
	for _, m := range state.Machines {
		machines[m.UID] = true
	}
	there, err := a.cfg.Machines.List(ctx)
	if err != nil {
		errs = append(errs, err)
	}
	busy := false
	for _, m := range there {
		if !machines[m.UID] {
			busy = true
			a.queue.Add(m.UID)
		}
	}
	netnsMachines, err := a.cfg.Networks.Machines()
	if err != nil {
		errs = append(errs, err)
	}
	for _, uid := range netnsMachines {
		if !machines[uid] {
			busy = true
			a.queue.Add(uid)
		}
	}
	if busy { // their network goes after them; step queues the networks again
		return errors.Join(errs...)
	}
	attached, err := a.cfg.Networks.Attached()
	if err != nil {
		errs = append(errs, err)
	}
	for _, id := range attached {
		if !wanted[id] {
			if err := a.cfg.Networks.Detach(ctx, id); err != nil {
				errs = append(errs, fmt.Errorf("network %s: %w", id, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) removeMachine(ctx context.Context, uid string) error {
	a.cfg.Endpoints.Close(uid)
	if err := a.cfg.Machines.Remove(ctx, uid); err != nil {
		return fmt.Errorf("remove machine %s: %w", uid, err)
	}
	faultpoint.Reach("agent/machine-removed")
	if err := a.cfg.Networks.DetachMachine(ctx, uid); err != nil {
		return fmt.Errorf("remove network of machine %s: %w", uid, err)
	}
	faultpoint.Reach("agent/network-removed")
	if err := os.RemoveAll(a.machineDir(uid)); err != nil {
		return fmt.Errorf("remove keys of machine %s: %w", uid, err)
	}
	faultpoint.Reach("agent/keys-removed")
	return nil
}

// cleanUp takes away every machine, every network and the identity.
func (a *Agent) cleanUp(ctx context.Context) error {
	if err := a.take(&wire.State{Node: a.client.name}, true); err != nil {
		return err
	}
	for ctx.Err() == nil {
		machines, err1 := a.cfg.Machines.List(ctx)
		networks, err2 := a.cfg.Networks.Attached()
		ports, err3 := a.cfg.Networks.Machines()
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if len(machines)+len(networks)+len(ports) == 0 {
			faultpoint.Reach("node/leave/cleaned")
			return os.RemoveAll(a.cfg.Dir)
		}
		a.queue.Add("")
		select {
		case <-ctx.Done():
		case <-a.kick:
		case <-time.After(5 * time.Second): // a step that failed is retried by the queue; look again
		}
	}
	return ctx.Err()
}
