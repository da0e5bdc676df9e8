package gluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Lead makes a cluster be as somebody wants it: its nodes, its volumes. One node's glusterd is
// asked, and only one of a cluster's nodes ought to lead at a time; a second one does no harm, but gets ErrBusy. It
// is safe for concurrent use, and makes one change after the other, as glusterd does. What is to be healed it asks
// apart from that, one volume at a time: see Heal.
type Lead struct {
	client Client
	own    netip.Addr
	name   string // of its node's certificate

	mu      sync.Mutex // of changes
	last    look
	started map[string]start
	odd     map[netip.Addr]time.Time // since when nodes were seen that are asked in and no members

	asking chan struct{} // full while somebody asks what is to be healed

	muHeals sync.Mutex // of this alone: nobody waits with it
	heals   map[string]heal
}

// NewLead makes the lead of the node with this address, whose certificate has this common name.
func NewLead(c Client, own netip.Addr, name string) *Lead {
	return &Lead{client: c, own: own, name: name, heals: map[string]heal{}, odd: map[netip.Addr]time.Time{},
		started: map[string]start{},
		asking:  make(chan struct{}, 1)}
}

// startEvery is how often the same bricks of a volume are started: it takes some seconds, in which no other
// volume is changed, and those on a broken disk stay down.
const startEvery = time.Minute

// start is which bricks of a volume were last to be started.
type start struct {
	at   time.Time
	down []Brick
}

// lookEvery is for how long what was seen of all volumes is taken to be so: a look is two commands of
// some tenths of a second and more the more volumes there are, and takes lookPart of the time at most.
const (
	lookEvery = 10 * time.Second
	lookPart  = 5
)

// look is what is seen of all volumes.
type look struct {
	until   time.Time // so long it holds
	volumes []Volume
	bricks  map[string][]BrickState // nil if they were not asked for yet: see states
}

// Wanted is a volume as it shall be.
type Wanted struct {
	Name    string
	Bricks  []WantedBrick // in order, an arbiter last
	Arbiter bool
	Hosts   []string // the common names of hosts that may have it
	// Made says that there was one: if glusterd has none, it isn't made anew.
	Made bool
	// Stopped says that nobody shall have it.
	Stopped bool
	// Look is a number that grows whenever somebody wants to know anew how its bricks are: see SeenBrick.Looked.
	Look int64
}

// WantedBrick is a brick of a Wanted.
type WantedBrick struct {
	Brick
	Ready    bool   // its file system is there
	Lost     bool   // its node is gone for good
	Replaces string // path of the brick whose place it takes, "" for none
	// ReplacesLost says that the node of that one is gone for good.
	ReplacesLost bool
	// Filling says that it is empty, and others have what is in the volume: it is made of those, and gets this one once they
	// are all there, and the same.
	Filling bool
}

// SeenBrick is a brick that a volume has.
type SeenBrick struct {
	Brick
	Online  bool
	PID     int   // of its process, which has others' bricks too; 0 if it is unknown
	Pending int64 // see Healing; -1 if it is unknown
	// Looked is the Wanted.Look after which was asked what is said here; 0 if that isn't known.
	Looked int64
}

// ErrEarly is returned for what waits for others: hosts, bricks.
var ErrEarly = errors.New("it waits")

// ErrMissing is returned for a volume that was made and that glusterd doesn't have.
var ErrMissing = errors.New("glusterd has no such volume any more: it is not made anew")

// Gather makes these nodes, and no others, the cluster, as far as they are there: the error is of
// those that aren't. A node that has a brick of a volume stays: with it glusterd would forget the volume, if it
// has no other. members are all that are in the cluster then.
func (l *Lead) Gather(ctx context.Context, nodes []netip.Addr) (members []netip.Addr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	peers, err := l.client.Peers(ctx)
	if err != nil {
		return nil, err
	}
	now, err := l.look(ctx)
	if err != nil {
		return nil, err
	}
	used := map[netip.Addr]bool{}
	for _, v := range now.volumes {
		for _, b := range v.Bricks {
			used[b.Host] = true
		}
	}
	members = []netip.Addr{l.own}
	var errs []error
	for _, p := range peers {
		switch {
		case !p.Host.IsValid():
			continue
		case used[p.Host]:
		case slices.Contains(nodes, p.Host) && !l.forgetful(p):
			if !p.Member {
				errs = append(errs, fmt.Errorf("node %v was asked in, and is no member yet", p.Host))
			}
		default:
			if err := l.client.Leave(ctx, p.Host); err == nil {
				continue
			} else {
				errs = append(errs, err)
			}
		}
		members = append(members, p.Host)
	}
	for _, n := range nodes {
		if slices.Contains(members, n) {
			continue
		}
		if err := l.client.Join(ctx, n); err != nil {
			errs = append(errs, err)
			continue
		}
		members = append(members, n)
	}
	return members, errors.Join(errs...)
}

// joinTime is more than it takes a node that is there to become a member.
const joinTime = 30 * time.Second

// forgetful says whether a node that the others take for theirs knows nothing of them: it was made
// anew. It is asked in again.
func (l *Lead) forgetful(p Peer) bool {
	if p.Member || !p.Connected {
		delete(l.odd, p.Host)
		return false
	}
	since, ok := l.odd[p.Host]
	if !ok {
		l.odd[p.Host] = time.Now()
		return false
	}
	if time.Since(since) < joinTime {
		return false
	}
	delete(l.odd, p.Host)
	return true
}

// look says which volumes there are.
func (l *Lead) look(ctx context.Context) (look, error) {
	began := time.Now()
	if began.Before(l.last.until) {
		return l.last, nil
	}
	var now look
	var err error
	if now.volumes, err = l.client.Volumes(ctx); err != nil {
		return now, err
	}
	now.until = time.Now().Add(max(lookEvery, lookPart*time.Since(began)))
	l.last = now
	return now, nil
}

// states says besides how bricks are. It is the dearer question, and who makes a volume has nothing to ask.
func (l *Lead) states(ctx context.Context) (look, error) {
	now, err := l.look(ctx)
	if err != nil || now.bricks != nil {
		return now, err
	}
	began := time.Now()
	now.bricks = map[string][]BrickState{}
	if slices.ContainsFunc(now.volumes, func(v Volume) bool { return v.Started }) {
		if now.bricks, err = l.client.AllBricks(ctx); err != nil {
			return now, err
		}
	}
	if until := time.Now().Add(lookPart * time.Since(began)); until.After(now.until) {
		now.until = until
	}
	l.last = now
	return now, nil
}

// changed has the next look be a new one.
func (l *Lead) changed() { l.last.until = time.Time{} }

// Bring has a volume be as it shall: made once all its bricks are there, by nodes of a cluster that nodes
// are those of; started, and what of it is down, or stopped; with bricks in the place of others, and with more of them, as
// far as they are ready. It returns what the volume has, also with an error if that is known. What was seen
// some seconds ago it does not ask for again.
func (l *Lead) Bring(ctx context.Context, nodes []netip.Addr, v Wanted) ([]SeenBrick, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wantLook(v.Name, v.Look) {
		l.changed()
	}
	all, err := l.look(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all.volumes, func(now Volume) bool { return now.Name == v.Name })
	switch {
	case i < 0 && v.Made:
		return nil, fmt.Errorf("volume %s: %w", v.Name, ErrMissing)
	case i < 0:
		if err := l.create(ctx, nodes, v); err != nil {
			return nil, err
		}
		l.changed()
		if all, err = l.look(ctx); err != nil {
			return nil, err
		}
		i = slices.IndexFunc(all.volumes, func(now Volume) bool { return now.Name == v.Name })
		if i < 0 {
			return nil, fmt.Errorf("volume %s: %w", v.Name, ErrNotFound)
		}
	}
	now := all.volumes[i]
	if v.Stopped {
		return nil, l.stop(ctx, now, v)
	}
	now.Bricks = slices.Clone(now.Bricks)
	err = l.replace(ctx, &now, v)
	if err := l.set(ctx, v.Name, now.Options, v.Hosts); err != nil {
		return nil, err
	}
	if !now.Started {
		l.changed()
		if err := l.client.ask(ctx, nil, "volume", "start", v.Name); err != nil {
			return nil, err
		}
	}
	all, errLook := l.states(ctx)
	if errLook != nil {
		return nil, errors.Join(err, errLook)
	}
	seen, errSee := l.see(ctx, now, all.bricks[v.Name])
	if err = errors.Join(err, errSee); err == nil {
		err = l.add(ctx, now, seen, v)
	}
	return seen, err
}

// add gives a volume its next brick, one at a time, once those that it has are all there, and the same. glusterd notes
// in these that the new one lacks everything, which its node sees to by a mount of the volume. Until it has all, the first one
// has to be there (cluster.quorum-type): with it away, nothing is read or written.
func (l *Lead) add(ctx context.Context, now Volume, seen []SeenBrick, v Wanted) error {
	if len(now.Bricks) >= len(v.Bricks) {
		return nil
	}
	next := v.Bricks[len(now.Bricks)]
	same := func(b SeenBrick) bool { return b.Online && b.Pending == 0 }
	if !next.Filling || !next.Ready || slices.ContainsFunc(seen, func(b SeenBrick) bool { return !same(b) }) {
		return nil
	}
	peers, err := l.client.Peers(ctx)
	if err != nil || l.member(peers, next.Host) != nil { // then it waits for that
		return err
	}
	l.changed()
	l.forgetHeal(v.Name)
	return l.client.Add(ctx, v.Name, next.Brick, v.Arbiter && len(now.Bricks) == len(v.Bricks)-1)
}

// stop takes a volume from all who have it. Once it is started again only those get it who may have it then: clients that
// are left come back by themselves, and are let in anew.
func (l *Lead) stop(ctx context.Context, now Volume, v Wanted) error {
	if err := l.set(ctx, v.Name, now.Options, v.Hosts); err != nil || !now.Started {
		return err
	}
	l.changed()
	l.forgetHeal(v.Name)
	return l.client.ask(ctx, nil, "volume", "stop", v.Name, "force")
}

// set lets these hosts have a volume, and no others.
func (l *Lead) set(ctx context.Context, name string, now map[string]string, hosts []string) error {
	want := VolumeOptions(sorted(hosts))
	for key, value := range want {
		if now[key] != value {
			l.changed()
			return l.client.set(ctx, name, now, want)
		}
	}
	return nil
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

// create makes a volume, once all its bricks are there and their nodes are members.
func (l *Lead) create(ctx context.Context, nodes []netip.Addr, v Wanted) error {
	for _, b := range v.Bricks { // glusterd is asked once it can be
		if !b.Filling && !b.Ready {
			return fmt.Errorf("volume %s: %w: the brick on %v is not made yet", v.Name, ErrEarly, b.Host)
		}
	}
	peers, err := l.client.Peers(ctx)
	if err != nil {
		return err
	}
	// Two nodes that don't know each other must not found two clusters: no node that has volumes
	// is taken into another.
	alone := !slices.ContainsFunc(nodes, func(a netip.Addr) bool { return a != l.own })
	if len(peers) == 0 && !alone {
		return fmt.Errorf("volume %s: %w: none of the other nodes is in the cluster of %v yet", v.Name, ErrEarly, l.own)
	}
	var bricks []Brick
	for _, b := range v.Bricks {
		if b.Filling {
			continue
		}
		if err := l.member(peers, b.Host); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		bricks = append(bricks, b.Brick)
	}
	arbiter := v.Arbiter && len(bricks) == len(v.Bricks)
	if err := l.client.Create(ctx, v.Name, bricks, arbiter, VolumeOptions(sorted(v.Hosts))); err != nil {
		return err
	}
	l.nothingToHeal(v.Name, bricks)
	return nil
}

// member says why no brick of a node can be used now.
func (l *Lead) member(peers []Peer, node netip.Addr) error {
	there := func(p Peer) bool { return p.Host == node && p.Member && p.Connected }
	if node == l.own || slices.ContainsFunc(peers, there) {
		return nil
	}
	return fmt.Errorf("%w: node %v is not in the cluster, or away", ErrEarly, node)
}

// replace puts bricks into the places of others.
func (l *Lead) replace(ctx context.Context, now *Volume, v Wanted) error {
	var errs []error
	for _, b := range v.Bricks {
		if b.Replaces == "" || !b.Ready || slices.Contains(now.Bricks, b.Brick) {
			continue
		}
		i := slices.IndexFunc(now.Bricks, func(old Brick) bool { return old.Path == b.Replaces })
		if i < 0 && b.Filling && len(now.Bricks) < len(v.Bricks) {
			continue // what it replaces never came: see add
		}
		if i < 0 {
			errs = append(errs, fmt.Errorf("volume %s: brick %s: %w", v.Name, b.Replaces, ErrNotFound))
			continue
		}
		peers, err := l.client.Peers(ctx)
		if err == nil {
			err = l.member(peers, b.Host)
		}
		if err == nil {
			// The node that is asked mounts the volume for a moment.
			err = l.set(ctx, v.Name, now.Options, append(slices.Clone(v.Hosts), l.name))
			now.Options = nil // to be set back
		}
		if err == nil {
			l.changed()
			err = l.client.Replace(ctx, v.Name, now.Bricks[i], b.Brick)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now.Bricks[i] = b.Brick
		l.forgetHeal(v.Name)
	}
	return errors.Join(errs...)
}

// see says how a volume's bricks are, and starts what of them is down. What is to be healed is what Heal was
// told last.
func (l *Lead) see(ctx context.Context, now Volume, states []BrickState) (seen []SeenBrick, err error) {
	pids := map[Brick]int{}
	var down []Brick
	for _, b := range now.Bricks {
		i := slices.IndexFunc(states, func(s BrickState) bool { return s.Brick == b })
		online := i >= 0 && states[i].Online
		switch {
		case online:
			pids[b] = states[i].PID
		case i >= 0:
			down = append(down, b)
		}
		seen = append(seen, SeenBrick{Brick: b, Online: online, PID: pids[b]})
	}
	if len(now.Bricks) > 1 {
		pending, looked := l.noteBricks(now.Name, pids, len(pids) == len(now.Bricks))
		for i, b := range seen {
			n, ok := pending[b.Brick]
			if !ok {
				n = -1
			}
			seen[i].Pending, seen[i].Looked = n, looked
		}
	}
	if down == nil {
		delete(l.started, now.Name)
	} else if last := l.started[now.Name]; time.Since(last.at) > startEvery || !slices.Equal(last.down, down) {
		l.started[now.Name] = start{time.Now(), down}
		if err := l.client.StartBricks(ctx, now.Name); err != nil {
			return seen, err
		}
		l.changed()
	}
	return seen, nil
}

// Remove has glusterd forget a volume, as Client.Remove does. One of which all bricks were on nodes
// that are gone for good goes with these.
func (l *Lead) Remove(ctx context.Context, v Wanted) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed()
	l.forgetHeal(v.Name)
	delete(l.started, v.Name)
	err := l.client.Remove(ctx, v.Name)
	lost := map[string]bool{}
	for _, b := range v.Bricks {
		if b.Lost {
			lost[b.Path] = true
		}
		if b.ReplacesLost {
			lost[b.Replaces] = true
		}
	}
	if !errors.Is(err, ErrAway) || len(lost) == 0 {
		return err
	}
	now, err := l.client.Volume(ctx, v.Name)
	if err == nil {
		err = l.giveUp(ctx, now, lost)
	}
	if err == nil {
		err = l.client.Remove(ctx, v.Name)
	}
	if errors.Is(err, ErrNotFound) { // it has gone with its last node
		return nil
	}
	return err
}

// giveUp takes the bricks that are lost out of a volume that goes, and their nodes out of the cluster: no node leaves it
// with a brick of a volume that others have bricks of, too.
func (l *Lead) giveUp(ctx context.Context, now Volume, lost map[string]bool) error {
	if !now.Started {
		if err := l.client.StartBricks(ctx, now.Name); err != nil {
			return err
		}
	}
	var out []Brick
	if n := len(now.Bricks); now.Arbiter {
		out = now.Bricks[n-1:] // no other may go before it
	}
	for _, b := range now.Bricks {
		if lost[b.Path] && !slices.Contains(out, b) {
			out = append(slices.Clone(out), b)
		}
	}
	left := len(now.Bricks)
	for _, b := range out {
		if left--; left == 0 {
			break // all are lost: it goes with its last node
		}
		err := l.client.ask(ctx, nil, "volume", "remove-brick", now.Name, "replica", strconv.Itoa(left), b.String(), "force")
		if err != nil {
			return err
		}
	}
	for _, b := range now.Bricks {
		if !lost[b.Path] {
			continue
		}
		if err := l.client.Leave(ctx, b.Host); err != nil {
			return err
		}
	}
	return nil
}
