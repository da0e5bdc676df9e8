package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// renewPause is how long no host has what serves its bricks started anew after another: until it is known what the
	// bricks have missed. That is asked one volume at a time, a second each.
	renewPause = 5 * time.Minute
	renewLook  = 30 * time.Second
	// renewFor is how long one host may take: then others come first.
	renewFor = 10 * time.Minute
)

// renew has hosts start anew what serves bricks there by a former version, one after the other: while the volumes with a
// copy there have all their copies, and these are the same, nobody notices. One with the only copy of a volume stays as it is
// until somebody restarts it. It looks at no more than the nodes while there is nothing to do.
func (m *Monitor) renew(ctx context.Context, nodes []*resource.Node) error {
	var old []*resource.Node
	var told *resource.Node // it does so
	paused, there := false, map[string]bool{}
	for _, n := range nodes {
		s := n.Status
		there[n.UID] = !n.Gone() && !n.Silent()
		switch {
		case n.Gone():
		case !s.StorageRenew.IsZero():
			told = n
		case m.now().Sub(s.StorageRenewed) < renewPause:
			paused = true
		case s.StorageOld && !n.Deleting() && there[n.UID] && n.CopiesShared(): // others don't know what they are told
			old = append(old, n)
		}
	}
	if told != nil && (!told.Status.StorageOld || !there[told.UID] || m.now().Sub(told.Status.StorageRenew) >= renewFor) {
		return m.endRenew(ctx, told)
	}
	if told == nil && (paused || len(old) == 0) || m.now().Sub(m.renewLooked) < renewLook {
		return nil
	}
	m.renewLooked = m.now()
	volumes, _, err := store.Of[resource.Volume](m.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	if told != nil {
		if othersAway(told, there, volumes) {
			return m.endRenew(ctx, told)
		}
		return nil
	}
	if at := renewable(old, there, volumes); at != nil {
		return m.noteRenew(ctx, at, func(s *resource.NodeStatus) bool {
			s.StorageRenew = m.now().UTC()
			return s.StorageOld
		})
	}
	return nil
}

// endRenew takes back what a host was told: it has done so, or it can't now, and others come first.
func (m *Monitor) endRenew(ctx context.Context, n *resource.Node) error {
	return m.noteRenew(ctx, n, func(s *resource.NodeStatus) bool {
		if !s.StorageRenew.Equal(n.Status.StorageRenew) {
			return false
		}
		s.StorageRenew, s.StorageRenewed = time.Time{}, m.now().UTC()
		return true
	})
}

// renewable is the one of some nodes that can start anew what serves bricks, and was longest ago told to; nil if there is none
// now. there are the UIDs of those that report: how the bricks of others are is not known.
func renewable(nodes []*resource.Node, there map[string]bool, volumes []*resource.Volume) *resource.Node {
	not := map[string]bool{} // UIDs of those that can't
	for _, v := range volumes {
		if !inUse(v) {
			continue
		}
		whole := len(v.Status.Bricks) > 1 && v.Whole() && // or it has no other copy
			!slices.ContainsFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool { return !there[b.NodeUID] })
		for _, b := range v.Status.Bricks {
			not[b.NodeUID] = not[b.NodeUID] || !whole
		}
	}
	can := slices.DeleteFunc(slices.Clone(nodes), func(n *resource.Node) bool { return not[n.UID] })
	if len(can) == 0 {
		return nil
	}
	return slices.MinFunc(can, func(a, b *resource.Node) int {
		return a.Status.StorageRenewed.Compare(b.Status.StorageRenewed)
	})
}

// othersAway says whether a volume with a copy on a node, which may be starting that anew, lacks another one.
func othersAway(node *resource.Node, there map[string]bool, volumes []*resource.Volume) bool {
	return slices.ContainsFunc(volumes, func(v *resource.Volume) bool {
		return inUse(v) && v.IsOn(node.UID) && slices.ContainsFunc(v.Status.Bricks, func(b resource.VolumeBrick) bool {
			return b.NodeUID != node.UID && (!there[b.NodeUID] || !b.Online || b.Filling || b.Replaces != "")
		})
	})
}

// inUse says whether somebody may notice that a copy of a volume is away. One that is still being made has nobody.
func inUse(v *resource.Volume) bool {
	return len(v.Status.Bricks) > 0 && v.Status.Conditions.Is(resource.VolumeServed) && !v.Deleting() && !(served{Volume: v}).lost()
}

func (m *Monitor) noteRenew(ctx context.Context, n *resource.Node, change func(*resource.NodeStatus) bool) error {
	_, err := store.Of[resource.Node](m.Store).Modify(ctx, n.Name, func(now *resource.Node) error {
		if now.UID != n.UID || !change(&now.Status) {
			return store.ErrSkip
		}
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return err
}

// oldStorage says of a node what serves bricks there by a former version, and when that changes.
func oldStorage(n *resource.Node) (reason, text string) {
	if !n.Status.StorageRenew.IsZero() {
		return "Renewing", "what serves shared volumes on it is started anew, by the version that it has now"
	}
	return "Old", "what serves shared volumes on it is of a former version, or has other settings. It is started anew, one " +
		"host after the other, while all volumes with a copy on it have all their copies and these are the same; on a host with " +
		"the only copy of a volume, when the host is rebooted"
}
