package node

import (
	"context"
	"errors"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// poolsOf are the pools that a node shall have besides its own folder, those that it shall let go of too.
func (h *Hub) poolsOf(node *resource.Node) (pools []wire.Pool) {
	now, ok := h.cfg.Nodes.Get(node.Name) // who asks for a stream is as he was then
	if !ok || now.UID != node.UID {
		return nil
	}
	return wantedPools(now)
}

func wantedPools(n *resource.Node) (pools []wire.Pool) {
	for _, p := range n.Spec.Pools {
		seen := n.Pool(p.UID)
		pools = append(pools, wire.Pool{NodePool: p, Made: seen != nil && seen.Made})
	}
	return pools
}

// notePools takes down what a node says of where it has volumes, as far as it is believed: of its own folder, and of
// those that it shall have. Of one that it says nothing of, what was known of it stays.
func notePools(n *resource.Node, said []resource.Pool) {
	was := n.Status.Pools
	n.Status.Pools = nil
	for _, uid := range append([]string{""}, uids(n.Spec.Pools)...) {
		at := func(p resource.Pool) bool { return p.UID == uid }
		i, before := slices.IndexFunc(said, at), slices.IndexFunc(was, at)
		if i < 0 {
			if before >= 0 && uid != "" {
				n.Status.Pools = append(n.Status.Pools, was[before])
			}
			continue
		}
		p := said[i]
		p = resource.Pool{Name: clip(p.Name, maxName), UID: uid, Path: clip(p.Path, maxText), Device: clip(p.Device, maxName),
			Serial: clip(p.Serial, maxName), SizeBytes: amount(p.SizeBytes), FreeBytes: amount(p.FreeBytes),
			CapacityBytes: amount(p.CapacityBytes), Reflink: p.Reflink, Copies: p.Copies, Made: p.Made, Removed: p.Removed,
			Health: clip(p.Health, maxName), Note: clip(p.Note, maxText), Message: clip(p.Message, maxText)}
		if want := n.WantedPool(uid); want != nil {
			p.Name = want.Name
			// Consent to erase a disk is for one try, and its host has made that: it must not wait for another disk to come. Only
			// the host knows; a report may be of before it heard of the consent. Each consent has a pool with a UID of its own.
			if want.Erase != "" && (said[i].Tried || p.Made) {
				n.Spec.Pools = slices.Clone(n.Spec.Pools) // others read what n was copied from
				n.WantedPool(uid).Erase = ""
			}
		}
		if before >= 0 && was[before].Made {
			p.Made = true
			// As with its capacity: it promises no more than it had at first. A disk does not grow.
			p.SizeBytes = min(p.SizeBytes, was[before].SizeBytes)
			if p.Message != "" {
				p.SizeBytes, p.CapacityBytes = was[before].SizeBytes, was[before].CapacityBytes
			}
		}
		p.CapacityBytes = min(p.CapacityBytes, p.SizeBytes)
		n.Status.Pools = append(n.Status.Pools, p)
	}
}

func uids(pools []resource.NodePool) (uids []string) {
	for _, p := range pools {
		uids = append(uids, p.UID)
	}
	return uids
}

// dropPools takes pools out of the books that a node shall let go of, and has.
func (h *Hub) dropPools(ctx context.Context, node *resource.Node, said []resource.Pool) error {
	gone := func(p resource.NodePool) bool {
		return p.Removing && slices.ContainsFunc(said, func(s resource.Pool) bool { return s.UID == p.UID && s.Removed })
	}
	if !slices.ContainsFunc(node.Spec.Pools, gone) {
		return nil
	}
	// Of one that is lost there may be volumes yet: their host has to know that until they are gone.
	volumes, err := h.cfg.Store.OnHosts(ctx)
	if err != nil {
		return err
	}
	snapshots, _, err := store.Of[resource.Snapshot](h.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	empty := func(p resource.NodePool) bool {
		at := resource.PoolAt{Node: node.UID, Pool: p.UID}
		return !slices.ContainsFunc(volumes, func(v *resource.Volume) bool { return v.IsIn(at) }) &&
			!slices.ContainsFunc(snapshots, func(s *resource.Snapshot) bool {
				return at == resource.PoolAt{Node: s.Status.NodeUID, Pool: s.Status.Pool}
			})
	}
	_, err = store.Of[resource.Node](h.cfg.Store).Modify(ctx, node.Name, func(n *resource.Node) error {
		if n.UID != node.UID {
			return store.ErrSkip
		}
		n.Spec.Pools = slices.DeleteFunc(n.Spec.Pools, func(p resource.NodePool) bool { return gone(p) && empty(p) })
		notePools(n, n.Status.Pools)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
