package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// followBalance is how often it is looked how far the copy on its way is.
const followBalance = 5 * time.Second

// balancePatience is for how long a balance waits for what may never come: a host that doesn't report, a volume whose copies
// don't get whole. It is longer than a host takes to start, and than what is made of a copy takes mostly; who asks again has
// it wait anew.
const balancePatience = 30 * time.Minute

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
		s.Round, s.Copies, s.Bytes, s.WaitsSince = b.Spec.Round, 0, 0, time.Time{}
	}
	how, err := c.balanced(ctx, &s)
	if err != nil {
		return 0, err
	}
	seen := b.Status.Moving
	now := resource.Condition{Type: resource.Balanced, Status: resource.False, Reason: "Moving", Message: how}
	again = followBalance
	left := false
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
	case over != "" && !s.WaitsSince.IsZero():
		left, now.Reason, now.Message, now.Final = true, "Left", over, true
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
	done := b.Spec.Stop || left || now.Status == resource.True
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
		if left {
			is.Status.Phase = resource.Failed // and so has the task
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
	nodes, _, err := store.Of[resource.Node](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return "", err
	}
	if n := silentHost(v, nodes); n != nil && time.Since(n.Status.HeartbeatAt) > balancePatience {
		c.cfg.Log.Warn("a copy of a volume doesn't get whole, and others are balanced meanwhile", "volume", m.Volume, "silent", n.Name)
		s.Moving = nil // it goes on by itself when the host is back
		return "", nil
	}
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

// silentHost is a host that has a copy of a volume to stay, and doesn't report; nil: there is none.
func silentHost(v *resource.Volume, nodes []*resource.Node) *resource.Node {
	for _, n := range nodes {
		if n.Silent() && slices.ContainsFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool { return b.NodeUID == n.UID }) {
			return n
		}
	}
	return nil
}

// whyLeft says of volumes with a copy that should have gone why it has not, of some of them.
func whyLeft(all []resource.BalancedCopy, volumes []*resource.Volume, nodes []*resource.Node) string {
	const most = 5
	var texts []string
	for _, v := range volumes {
		n := silentHost(v, nodes)
		wished := slices.ContainsFunc(all, func(b resource.BalancedCopy) bool { return b.VolumeUID == v.UID })
		switch begun := len(v.Status.Leaving) > 0 && !v.Deleting(); {
		case n != nil && (wished || begun):
			texts = append(texts, v.Key()+" (host "+n.Name+" has a copy and does not report)")
		case begun && !v.Whole(), wished && !v.Whole():
			texts = append(texts, v.Key()+" (not all of its copies are there and the same: `mp volumes show` says more)")
		case wished:
			texts = append(texts, v.Key()+" (something is made from it)")
		}
	}
	if len(texts) > most {
		texts = append(texts[:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return strings.Join(texts, ", ")
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
		s.WaitsSince = time.Time{}
		return spread, "", nil
	}
	text := fmt.Sprintf("to move: %d (%s); ", len(all), spread)
	for _, n := range nodes {
		// One that is silent gives nothing away, however long that is waited for.
		if n.Deleting() && !n.Gone() && !n.Silent() && slices.ContainsFunc(have.volumes, func(v *resource.Volume) bool {
			return v.Spec.Class == resource.SharedVolume && v.IsOn(n.UID)
		}) {
			waits = text + "host " + n.Name + " is being removed, and its copies go first"
		}
	}
	if waits == "" && filling(have.volumes) >= maxMoving {
		waits = text + "other copies are filled now because of hosts or disks that are lost"
	}
	patient := s.WaitsSince.IsZero() || time.Since(s.WaitsSince) < balancePatience
	if waits != "" && patient {
		s.WaitsSince = cmp.Or(s.WaitsSince, time.Now().UTC())
		return "", waits, nil
	}
	now := have.newLedger(nodes, have.movesNow())
	what, from, to := now.next()
	if from == nil && patient {
		s.WaitsSince = cmp.Or(s.WaitsSince, time.Now().UTC())
		return "", text + "they go once all copies of their volumes are there, and nothing is made from them: " +
			whyLeft(all, have.volumes, nodes), nil
	}
	if from == nil {
		return fmt.Sprintf("it is over, and %d were left, since they could not go for %s: %s. Ask for it again once that is mended; %s",
			len(all), balancePatience, whyLeft(all, have.volumes, nodes), spread), "", nil
	}
	if waits == "" { // else the next one need not wait for that again
		s.WaitsSince = time.Time{}
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
			if is.Generation != b.Generation || moved(is.Status.Moving) != moved(b.Status.Moving) {
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
