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
)

// renew has hosts start anew what serves bricks there by a former version, one after the other: while all volumes have all
// their copies, and these are the same, nobody notices. One with the only copy of a volume stays as it is until somebody
// restarts it. It looks at no more than the nodes while there is nothing to do.
func (m *Monitor) renew(ctx context.Context, nodes []*resource.Node) error {
	var old []*resource.Node
	for _, n := range nodes {
		s := n.Status
		switch {
		case n.Gone():
		case !s.StorageRenew.IsZero() && s.StorageOld: // it does so
			return nil
		case !s.StorageRenew.IsZero():
			return m.noteRenew(ctx, n, func(s *resource.NodeStatus) bool {
				if s.StorageOld {
					return false
				}
				s.StorageRenew, s.StorageRenewed = time.Time{}, m.now().UTC()
				return true
			})
		case m.now().Sub(s.StorageRenewed) < renewPause, s.StorageMember && n.Silent():
			return nil
		case s.StorageOld && !n.Deleting():
			old = append(old, n)
		}
	}
	if len(old) == 0 || m.now().Sub(m.renewLooked) < renewLook {
		return nil
	}
	m.renewLooked = m.now()
	volumes, _, err := store.Of[resource.Volume](m.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	if at := renewable(old, volumes); at != nil {
		return m.noteRenew(ctx, at, func(s *resource.NodeStatus) bool {
			s.StorageRenew = m.now().UTC()
			return s.StorageOld
		})
	}
	return nil
}

// renewable is the first of some nodes that can start anew what serves bricks, nil if there is none now.
func renewable(nodes []*resource.Node, volumes []*resource.Volume) *resource.Node {
	only := map[string]bool{} // UIDs of those with an only copy
	for _, v := range volumes {
		if len(v.Status.Bricks) == 0 || v.Deleting() || (served{Volume: v}).lost() {
			continue
		}
		if !v.Whole() {
			return nil
		}
		if len(v.Status.Bricks) == 1 {
			only[v.Status.Bricks[0].NodeUID] = true
		}
	}
	i := slices.IndexFunc(nodes, func(n *resource.Node) bool { return !only[n.UID] })
	if i < 0 {
		return nil
	}
	return nodes[i]
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
		"host after the other, while all shared volumes have all their copies and these are the same; on a host with the only " +
		"copy of a volume, when the host is rebooted"
}
