package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// followBalance is how often it is looked how far the copy on its way is.
const followBalance = 5 * time.Second

// followBalances has what an operator wishes of the disks looked at.
func (c *Controller) followBalances(ctx context.Context) {
	for e := range store.Of[resource.Balance](c.cfg.Store).Watch(ctx, "") {
		if e.Type == store.Put {
			c.balances.Add(e.Key)
		}
	}
}

// reconcileBalance takes balancing a step further: one copy is on its way at a time. What is left to do is not kept anywhere,
// but found anew from what is promised by then, so it goes on where it was, and takes in what came meanwhile.
func (c *Controller) reconcileBalance(ctx context.Context, key string) (again time.Duration, err error) {
	kind := store.Of[resource.Balance](c.cfg.Store)
	b, err := kind.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil || b.Over() && b.Status.Moving == nil {
		return 0, err
	}
	s := b.Status
	if s.Round != b.Spec.Round {
		s.Round, s.Copies, s.Bytes = b.Spec.Round, 0, 0
	}
	how, err := c.balanced(ctx, &s)
	if err != nil {
		return 0, err
	}
	seen := b.Status.Moving
	now := resource.Condition{Type: resource.Balanced, Status: resource.False, Reason: "Moving", Message: how}
	again = followBalance
	switch over, waits, err := c.nextCopy(ctx, b, &s); {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrConflict):
		return time.Second, nil // the volume, or what is wished, is not as it was a moment ago
	case err != nil:
		return 0, err
	case b.Spec.Stop:
		now.Reason, now.Message = "Stopped", "no copy is begun any more"
		if how != "" {
			now.Message += ", and one that was is finished: " + how
		}
	case s.Moving != nil && how == "":
		now.Message = onItsWay(s.Moving, "")
	case waits != "":
		now.Reason, now.Message, again = "Waits", waits, retryPlacing
	case over != "":
		now.Status, now.Reason, now.Message = resource.True, "Balanced", over
	}
	if s.Moving != nil {
		seen = s.Moving
	}
	if now.Reason == "Moving" && s.Left > 0 {
		now.Message = fmt.Sprintf("about %d to go (%s) besides; %s", s.Left, resource.Bytes.Text(s.LeftBytes), now.Message)
	}
	if s.Copies > 0 {
		now.Message = fmt.Sprintf("moved so far: %d (%s); %s", s.Copies, resource.Bytes.Text(s.Bytes), now.Message)
	}
	done := b.Spec.Stop || now.Status == resource.True
	if done && s.Moving == nil {
		again = 0
	}
	return again, kind.Observe(ctx, b, func(is *resource.Balance) {
		if moved(is.Status.Moving) != moved(seen) || is.Status.Round != b.Status.Round || is.Status.Copies != b.Status.Copies {
			return // another server has looked meanwhile
		}
		conditions := is.Status.Conditions
		is.Status = s
		is.Status.Conditions = conditions
		is.Status.Conditions.Set(now)
		if is.Status.Phase = resource.Updating; done {
			is.Status.Phase, is.Status.ObservedGeneration = resource.Ready, is.Generation
		}
	})
}

// balanced says how far the copy on its way is, and takes down in s if it has arrived, or nobody wants it any more.
func (c *Controller) balanced(ctx context.Context, s *resource.BalanceStatus) (how string, err error) {
	m := s.Moving
	if m == nil {
		return "", nil
	}
	v, err := store.Of[resource.Volume](c.cfg.Store).Get(ctx, m.Volume)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", err
	}
	if err != nil || v.UID != m.VolumeUID || v.Deleting() {
		s.Moving = nil // deleted: with that its copies go, from both places
		return "", nil
	}
	b := v.Brick(m.New)
	if slices.ContainsFunc(v.Status.Leaving, func(b resource.VolumeBrick) bool { return b.UID == m.Old }) {
		given := ""
		if b != nil {
			given = v.GivenText(*b)
		}
		return onItsWay(m, given), nil
	}
	if s.Moving = nil; b != nil { // else the new place was lost, and it is somewhere else
		s.Copies, s.Bytes = s.Copies+1, s.Bytes+b.UsedBytes
	}
	return "", nil
}

// moved is the UID of the new copy of what is on its way.
func moved(m *resource.BalancedCopy) string {
	if m == nil {
		return ""
	}
	return m.New
}

func onItsWay(m *resource.BalancedCopy, given string) string {
	text := fmt.Sprintf("a copy of %s goes from %s to %s", m.Volume, m.From, m.To)
	if given != "" {
		text += ": " + given
	}
	return text
}

// nextCopy begins the next copy, if none is on its way, and has it in s. over: there is none. waits: there are some that can't go
// now, and why not.
func (c *Controller) nextCopy(
	ctx context.Context, b *resource.Balance, s *resource.BalanceStatus,
) (over, waits string, err error) {
	if s.Moving != nil || b.Spec.Stop {
		return "", "", nil
	}
	done, err := c.alone(ctx)
	if err != nil {
		return "", "", err
	}
	defer done()
	have, err := c.promises(ctx)
	if err != nil {
		return "", "", err
	}
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return "", "", err
	}
	wished := have.newLedger(nodes, moves)
	spread := wished.spreadText()
	all := wished.plan(maxPlan)
	if s.Left, s.LeftBytes = 0, 0; len(all) == 0 {
		return spread, "", nil
	}
	text := fmt.Sprintf("to move: %d (%s); ", len(all), spread)
	for _, n := range nodes {
		if n.Deleting() && !n.Gone() && slices.ContainsFunc(have.volumes, func(v *resource.Volume) bool { return v.IsOn(n.UID) }) {
			return "", text + "host " + n.Name + " is being removed, and its copies go first", nil
		}
	}
	if filling(have.volumes) >= maxMoving {
		return "", text + "other copies are filled now because of hosts or disks that are lost", nil
	}
	now := have.newLedger(nodes, have.movesNow())
	what, from, to := now.next()
	if from == nil {
		return "", text + "they go once all copies of their volumes are there, and nothing is made from them: the first is of " +
			all[0].Volume, nil
	}
	v, old := what.v, what.v.Status.Bricks[what.i]
	m := now.move(what, from, to)
	m.New = store.NewUID()
	place := spot{host: to.host, pool: to.at.Pool}
	left, leftBytes := int64(0), int64(0)
	for _, o := range all {
		if o.Old != m.Old {
			left, leftBytes = left+1, leftBytes+o.UsedBytes
		}
	}
	ops := append(c.stays(place), c.replaceOp(v, old, place, m.New),
		store.Of[resource.Balance](c.cfg.Store).ModifyOp(b.Key(), func(is *resource.Balance) error {
			if is.Generation != b.Generation || is.Status.Moving != nil {
				return store.ErrConflict // stopped since, or somebody else has begun one
			}
			is.Status.Moving = &m
			return nil
		}))
	if err := c.cfg.Store.Commit(ctx, ops...); err != nil {
		return "", "", err
	}
	s.Moving, s.Left, s.LeftBytes = &m, left, leftBytes
	c.cfg.Log.Info("a copy of a volume goes to a disk with more room", "volume", m.Volume, "from", m.From, "to", m.To)
	return "", "", nil
}
