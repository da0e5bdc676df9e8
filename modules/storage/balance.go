package storage

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Disks are about equally full if of each two of them the shares that are promised differ by no more than apart. Above that a
// copy goes from the fuller one to the other, if afterwards neither is as full as the fuller was, nor as empty as the other:
// so the sum of all squares of shares, weighed by sizes, is less after each, nothing goes to and fro, and it comes to an end. A
// tenth is what one volume in ten more makes; less isn't worth reading and writing a copy for.
const apart = 0.1

// maxPlan is how many copies of a plan are looked for, and shown.
const maxPlan = 200

// disk is a pool of a host as far as it is promised, in bytes.
type disk struct {
	at       resource.PoolAt
	host     *resource.Node
	name     string // for people
	takes    bool   // copies can be put there
	capacity int64
	taken    int64 // without copies whose place another has taken
	free     int64 // with these, which are there still
	bricks   []brickOf
}

// brickOf is a copy of a volume, by its index.
type brickOf struct {
	v *resource.Volume
	i int
}

func (b brickOf) bytes() int64 { return resource.BrickBytes(b.v.Spec.SizeBytes, false) }

// share is how much of it is promised, more bytes included.
func (d *disk) share(more int64) float64 { return float64(d.taken+more) / float64(d.capacity) }

// ledger is where copies of shared volumes are, while a plan is made.
type ledger struct {
	disks []*disk // the fullest first
	where map[string]*resource.Node
	all   map[string]int    // volumes and copies on a host, by its UID
	own   map[[2]string]int // of a workspace, by its key
}

// newLedger is how it is. Only volumes that may can have a copy moved. The nodes are all of the platform's.
func (p promises) newLedger(nodes []*resource.Node, may func(*resource.Volume) bool) *ledger {
	l := &ledger{where: map[string]*resource.Node{}, all: map[string]int{}, own: map[[2]string]int{}}
	disks, hosts := map[resource.PoolAt]*disk{}, map[string]*resource.Node{}
	for _, n := range nodes {
		hosts[n.UID] = n
		for _, pool := range n.Status.Pools {
			d := &disk{at: resource.PoolAt{Node: n.UID, Pool: pool.UID}, host: n, name: n.Name + "/" + pool.Name,
				takes: n.Shares() && !n.Spec.Unschedulable && n.Status.Phase == resource.Ready && n.TakesIn(pool.UID) &&
					!pool.Ails(),
				free: p.free(n, pool.UID), capacity: pool.CapacityBytes}
			if pool.UID == "" {
				d.capacity = n.Status.Capacity.DiskBytes // machines have theirs of that too
			}
			if d.taken = d.capacity - d.free; d.capacity > 0 && !n.Deleting() && !n.Silent() && n.Keeps(pool.UID) {
				disks[d.at], l.disks = d, append(l.disks, d)
			}
		}
	}
	for _, v := range p.volumes {
		on := map[string]bool{v.Status.NodeUID: v.Status.NodeUID != ""}
		if m := v.Status.Moving; m != nil {
			on[m.NodeUID] = true
		}
		for i, b := range v.AllBricks() {
			if b.Removed {
				continue
			}
			on[b.NodeUID] = true
			d := disks[resource.PoolAt{Node: b.NodeUID, Pool: b.Pool}]
			if i >= len(v.Status.Bricks) {
				if d != nil {
					d.taken -= resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter)
				}
				continue
			}
			l.where[b.UID] = hosts[b.NodeUID]
			if d != nil && may(v) {
				d.bricks = append(d.bricks, brickOf{v, i})
			}
		}
		for host, is := range on {
			if is {
				l.all[host]++
				l.own[[2]string{host, v.WorkspaceKey()}]++
			}
		}
	}
	for _, d := range l.disks { // the largest first: so it takes the fewest
		slices.SortStableFunc(d.bricks, func(a, b brickOf) int { return cmp.Compare(b.bytes(), a.bytes()) })
	}
	l.sort()
	return l
}

func (l *ledger) sort() {
	slices.SortFunc(l.disks, func(a, b *disk) int {
		return cmp.Or(cmp.Compare(b.share(0), a.share(0)), cmp.Compare(a.name, b.name), cmp.Compare(a.at.Pool, b.at.Pool))
	})
}

// next is the copy that goes next, from where to where; nil: there is none. It is one from the fullest disk to the emptiest, as
// far as that can be.
func (l *ledger) next() (what brickOf, from, to *disk) {
	for _, from := range l.disks {
		for _, to := range slices.Backward(l.disks) {
			if from.share(0)-to.share(0) <= apart {
				break
			}
			for _, b := range from.bricks {
				if l.can(b, from, to) {
					return b, from, to
				}
			}
		}
	}
	return what, nil, nil
}

// can says whether a copy can go from one disk to another, and whether it is for the better.
func (l *ledger) can(what brickOf, from, to *disk) bool {
	v, bytes := what.v, what.bytes()
	switch {
	case !to.takes || to.free < bytes || v.Spec.Encrypted && !to.host.Encrypts():
		return false
	case to.share(bytes) >= from.share(0) || from.share(-bytes) < to.share(0):
		return false
	case to.host.UID == from.host.UID:
		return true
	case l.all[to.host.UID] >= resource.MaxVolumesOnHost ||
		l.own[[2]string{to.host.UID, v.WorkspaceKey()}] >= resource.MaxWorkspaceVolumesOnHost:
		return false
	}
	now, then := 0, 0 // how many of the others fail with it
	for i, b := range v.Status.Bricks {
		n := l.where[b.UID]
		if i == what.i || n == nil {
			continue
		}
		if n.UID == to.host.UID {
			return false
		}
		if zoneOf(n) == zoneOf(from.host) {
			now++
		}
		if zoneOf(n) == zoneOf(to.host) {
			then++
		}
	}
	return then <= now
}

// move takes down that a copy has gone.
func (l *ledger) move(what brickOf, from, to *disk) resource.BalancedCopy {
	v, bytes := what.v, what.bytes()
	b := v.Status.Bricks[what.i]
	from.taken, from.free = from.taken-bytes, from.free+bytes
	to.taken, to.free = to.taken+bytes, to.free-bytes
	// It is not moved again by the same plan.
	from.bricks = slices.DeleteFunc(from.bricks, func(o brickOf) bool { return o == what })
	l.where[b.UID] = to.host
	if from.host.UID != to.host.UID {
		l.all[from.host.UID]--
		l.all[to.host.UID]++
		l.own[[2]string{from.host.UID, v.WorkspaceKey()}]--
		l.own[[2]string{to.host.UID, v.WorkspaceKey()}]++
	}
	l.sort()
	return resource.BalancedCopy{Volume: v.Key(), VolumeUID: v.UID, From: from.name, To: to.name, SizeBytes: v.Spec.SizeBytes,
		UsedBytes: b.UsedBytes, Old: b.UID}
}

// plan is what would go where, one after the other, at most so much. It changes the ledger.
func (l *ledger) plan(most int) (plan []resource.BalancedCopy) {
	for len(plan) < most {
		what, from, to := l.next()
		if from == nil {
			break
		}
		plan = append(plan, l.move(what, from, to))
	}
	return plan
}

// spreadText says how far disks are apart.
func (l *ledger) spreadText() string {
	if len(l.disks) == 0 {
		return "no host has a disk for volumes"
	}
	most, least := l.disks[0], l.disks[len(l.disks)-1]
	text := fmt.Sprintf("of %s %.0f %% are promised, of %s %.0f %%", most.name, 100*most.share(0), least.name, 100*least.share(0))
	if most.share(0)-least.share(0) > apart {
		text += ": what is there besides are machines, local volumes (`mp volumes move` brings one elsewhere), snapshots, and copies " +
			"that can't go, since volumes have fewer than three full ones, or no other host may have them"
	}
	return text
}

// moves says whether a copy of a volume may go to another disk for the sake of balance: only if two others have all that is
// in it meanwhile.
func moves(v *resource.Volume) bool {
	ready := v.Status.Conditions.Get(resource.VolumeReady)
	return v.Spec.Class == resource.SharedVolume && v.Copies() >= fullCopies && !v.Deleting() && !v.Importing() &&
		v.Status.Conditions.Is(resource.VolumeServed) && v.Status.Conditions.Get(resource.VolumeKept) == nil &&
		ready != nil && !ready.Final
}

// movesNow says whether one may now: all of its copies are there, and nobody makes anything of one of them, which would fail.
func (p promises) movesNow() func(v *resource.Volume) bool {
	copied := map[string]bool{}
	for _, v := range p.volumes {
		if from := uidOf(v.Spec.Source); !v.Deleting() && v.Status.Phase != resource.Failed && (!v.Made() || !v.Status.Copy.Whole()) {
			copied[from] = true
		}
	}
	for _, s := range p.snapshots {
		if !s.Deleting() && s.Status.Phase != resource.Failed && (!s.Made() || !s.Status.Copy.Whole()) {
			copied[s.Spec.VolumeUID] = true
		}
	}
	return func(v *resource.Volume) bool {
		return moves(v) && v.Whole() && len(v.Status.Leaving) == 0 && v.Status.Copy.Whole() && !copied[v.UID]
	}
}

// BalancePlan is which copies would go where, as it looks now.
func (c *Controller) BalancePlan(ctx context.Context) ([]resource.BalancedCopy, error) {
	have, err := c.promises(ctx) // nothing is promised by what is said here, so the caller need not be alone
	if err != nil {
		return nil, err
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	return have.newLedger(nodes, moves).plan(maxPlan), nil
}
