package node

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// storageOf is a node's part in shared volumes, nil if it has none: its bricks, and on the one host that
// leads the cluster as it shall be.
func (h *Hub) storageOf(node *resource.Node, volumes []*resource.Volume) *wire.Storage {
	volumes = slices.DeleteFunc(slices.Clone(volumes), func(v *resource.Volume) bool { return len(v.Status.Bricks) == 0 })
	s := &wire.Storage{}
	now, ok := h.cfg.Nodes.Get(node.Name) // who asks for a stream is as he was then
	part := ok && now.UID == node.UID && now.Status.StorageMember
	for _, v := range volumes {
		ws, ok := h.cfg.Workspaces.Get(v.WorkspaceKey())
		if !ok {
			continue // its cache follows: a workspace outlives its volumes
		}
		for _, b := range v.Status.Bricks {
			if b.NodeUID != node.UID || b.Removed {
				continue
			}
			part = true
			s.Bricks = append(s.Bricks, wire.Brick{Key: v.Key(), Volume: v.UID, UID: b.UID, NetworkID: ws.Status.ID, Pool: b.Pool,
				SizeBytes: resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter), FirstUID: v.Status.FirstUID, Made: b.SizeBytes > 0,
				Remove: v.Deleting() && v.Status.Conditions.Is(resource.VolumeUnserved)})
		}
	}
	if lead := h.leads(volumes); lead != nil && lead.UID == node.UID {
		part, s.Cluster = true, h.cluster(volumes)
	}
	if !part {
		return nil
	}
	return s
}

// leads is the host that has the cluster changed. It has to be in it: one that isn't would found
// another, which the hosts of the first can't join. So the first of all is the host of the oldest brick,
// and waited for, until it says who is in it; from then on the first of those that reports. Nil:
// there is none now.
func (h *Hub) leads(volumes []*resource.Volume) *resource.Node {
	nodes := map[string]*resource.Node{}
	var members []*resource.Node
	for _, n := range h.cfg.Nodes.List("") {
		if n.Gone() {
			continue
		}
		if nodes[n.UID] = n; n.Status.StorageMember {
			members = append(members, n)
		}
	}
	volumes = slices.Clone(volumes)
	slices.SortFunc(volumes, func(a, b *resource.Volume) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.UID, b.UID))
	})
	var order []string // the UIDs of hosts with bricks, those with the oldest first
	for _, v := range volumes {
		for _, b := range v.Status.Bricks {
			if nodes[b.NodeUID] != nil && !b.Removed && !slices.Contains(order, b.NodeUID) {
				order = append(order, b.NodeUID)
			}
		}
	}
	if members == nil {
		if order == nil {
			return nil
		}
		return nodes[order[0]]
	}
	members = slices.DeleteFunc(members, func(n *resource.Node) bool { return n.Status.Phase == resource.Degraded })
	if len(members) == 0 {
		return nil
	}
	rank := func(n *resource.Node) int {
		if i := slices.Index(order, n.UID); i >= 0 {
			return i
		}
		return len(order) // it has none any more: the last, so that it can be let go
	}
	return slices.MinFunc(members, func(a, b *resource.Node) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.UID, b.UID))
	})
}

// cluster is what the host that leads is told.
func (h *Hub) cluster(volumes []*resource.Volume) *wire.Cluster {
	c := &wire.Cluster{}
	with := map[string]bool{}
	for _, v := range volumes {
		ws, ok := h.cfg.Workspaces.Get(v.WorkspaceKey())
		if !ok || v.Status.Conditions.Is(resource.VolumeUnserved) {
			continue
		}
		cv := wire.ClusterVolume{Key: v.Key(), UID: v.UID, NetworkID: ws.Status.ID,
			Made: v.Status.Conditions.Is(resource.VolumeServed), Remove: v.Deleting()}
		for _, b := range v.Status.Bricks {
			n := h.brickHost(b)
			cb := wire.ClusterBrick{UID: b.UID, Ready: b.Ready, Replaces: b.Replaces, Lost: n == nil}
			if n != nil {
				cb.Address, with[n.Name] = n.Status.Address, true
				cv.Hosts = append(cv.Hosts, n.UID)
			}
			cv.Bricks, cv.Arbiter = append(cv.Bricks, cb), b.Arbiter
		}
		for _, m := range h.cfg.Machines.List(v.WorkspaceKey()) {
			if n, ok := h.cfg.Nodes.Get(m.Spec.Node); ok && m.Lives() {
				cv.Hosts = append(cv.Hosts, n.UID)
			}
		}
		slices.Sort(cv.Hosts)
		cv.Hosts = slices.Compact(cv.Hosts)
		c.Volumes = append(c.Volumes, cv)
	}
	// A host whose bricks go has a part in it until they are gone.
	for _, v := range volumes {
		for _, b := range v.Status.Bricks {
			if n := h.brickHost(b); n != nil && !b.Removed {
				with[n.Name] = true
			}
		}
	}
	for _, n := range h.cfg.Nodes.List("") {
		if with[n.Name] {
			c.Peers = append(c.Peers, wire.Peer{UID: n.UID, Name: n.Name, Address: n.Status.Address})
		}
	}
	return c
}

// brickHost is the node that a brick is on, nil if it was given up or is none any more.
func (h *Hub) brickHost(b resource.VolumeBrick) *resource.Node {
	if n, ok := h.cfg.Nodes.Get(b.Node); ok && n.UID == b.NodeUID && !n.Gone() {
		return n
	}
	return nil
}

// sharedAt is a shared volume as a host has it: with a machine of its workspace there, and as long as GlusterFS has the
// volume. One that is deleted is unmounted because it is named no more.
func (h *Hub) sharedAt(node *resource.Node, v *resource.Volume) (w wire.Volume, here bool) {
	if v.Deleting() || !v.Status.Conditions.Is(resource.VolumeServed) {
		return w, false
	}
	for _, m := range h.machinesAt(node, v) {
		w.Attachments = append(w.Attachments, wire.VolumeAttachment{MachineUID: m.UID})
	}
	if w.Attachments == nil {
		return w, false
	}
	for _, b := range v.Status.Bricks {
		n := h.brickHost(b)
		switch {
		case n == nil || b.Replaces != "":
		case n.UID == node.UID:
			w.Servers = slices.Insert(w.Servers, 0, n.Status.Address) // the way is short
		default:
			w.Servers = append(w.Servers, n.Status.Address)
		}
	}
	w.Made = true
	return w, w.Servers != nil
}

// noteShared takes down what a host says of a shared volume: how its machines see it. How the
// volume itself is, is for the hosts with its bricks to say.
func (h *Hub) noteShared(node *resource.Node, v *resource.Volume, rep wire.VolumeReport) {
	here := h.machinesAt(node, v)
	s := &v.Status
	why := ""
	if rep.Message != "" { // of GlusterFS: not for tenants
		why = "its host can't mount it now: it is tried again"
		h.cfg.Log.Warn("mount of a shared volume", "volume", rep.Key, "node", node.Name, "said", clip(rep.Message, maxText))
	}
	s.Attachments = slices.DeleteFunc(s.Attachments, func(a resource.VolumeAttachment) bool {
		return slices.ContainsFunc(here, func(m *resource.Machine) bool { return m.UID == a.MachineUID })
	})
	for _, m := range here {
		s.Attachments = append(s.Attachments, resource.VolumeAttachment{Machine: m.Name, MachineUID: m.UID,
			Attached: slices.Contains(rep.Attached, m.UID), Message: clip(cmp.Or(rep.Failed[m.UID], why), maxText)})
	}
	slices.SortFunc(s.Attachments, func(a, b resource.VolumeAttachment) int {
		return cmp.Or(strings.Compare(a.Machine, b.Machine), strings.Compare(a.MachineUID, b.MachineUID))
	})
}

// takeBrick takes down what is news of a brick.
func (h *Hub) takeBrick(ctx context.Context, node *resource.Node, rep wire.BrickReport) error {
	own := func(v *resource.Volume) *resource.VolumeBrick {
		if b := v.Brick(rep.UID); b != nil && b.NodeUID == node.UID {
			return b
		}
		return nil // gone, or not this node's: nothing to take down
	}
	return h.noteVolume(ctx, rep.Key, rep.Removed, func(v *resource.Volume) bool { return own(v) != nil }, func(v *resource.Volume) {
		b := own(v)
		b.Ready, b.Message = rep.Ready, clip(rep.Message, maxText)
		if rep.Ready {
			b.Message = ""
			b.SizeBytes = max(b.SizeBytes, min(amount(rep.SizeBytes), resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter)))
		}
		b.UsedBytes, v.Status.UsedBytes = amount(rep.UsedBytes), 0
		for _, b := range v.Status.Bricks {
			if !b.Arbiter {
				v.Status.UsedBytes = max(v.Status.UsedBytes, b.UsedBytes)
			}
		}
		// A brick that shall stay is not removed because a node says so.
		if rep.Removed && v.Deleting() && v.Status.Conditions.Is(resource.VolumeUnserved) {
			b.Removed, b.Ready, b.Online = true, false, false
		}
	})
}

// takeCluster takes down what is news of a shared volume as the cluster has it. Only the host that
// leads is believed.
func (h *Hub) takeCluster(ctx context.Context, node *resource.Node, rep wire.ClusterReport) error {
	if lead := h.leads(h.cfg.Volumes.List("")); lead == nil || lead.UID != node.UID {
		return nil
	}
	if rep.Message != "" { // of addresses and GlusterFS: not for tenants
		h.cfg.Log.Warn("shared volume", "volume", rep.Key, "node", node.Name, "said", clip(rep.Message, maxText))
	}
	now := h.now().UTC()
	meant := func(v *resource.Volume) bool { return v.UID == rep.UID && len(v.Status.Bricks) > 0 }
	return h.noteVolume(ctx, rep.Key, rep.Removed, meant, func(v *resource.Volume) {
		s := &v.Status
		set := func(kind string, status resource.ConditionStatus, reason, message string) {
			s.Conditions.Set(resource.Condition{Type: kind, Status: status, Reason: reason, Message: message})
		}
		switch served := s.Conditions.Is(resource.VolumeServed); {
		case v.Deleting() && rep.Removed:
			set(resource.VolumeUnserved, resource.True, "Removed", "")
		case v.Deleting():
			if rep.Message != "" {
				set(resource.VolumeUnserved, resource.False, "Waits", "it is deleted once all hosts of the platform that have shared "+
					"volumes are there: one of them is away, or busy")
			}
			return
		case rep.Ready:
			set(resource.VolumeServed, resource.True, "Served", "")
		case !served: // one that was is not taken back: which of its bricks are there says how it is
			set(resource.VolumeServed, resource.False, "NotServed", "its copies are put together once all of its hosts are there")
		}
		if rep.Bricks == nil {
			return // they could not be asked for
		}
		for i := range s.Bricks {
			b := &s.Bricks[i]
			at := slices.IndexFunc(rep.Bricks, func(r wire.ClusterBrickReport) bool { return r.UID == b.UID })
			if at < 0 {
				b.Online, b.Heal, b.HealingSince = false, 0, time.Time{}
				continue
			}
			seen := rep.Bricks[at]
			b.Replaces, b.Online = "", seen.Online
			if seen.Heal < 0 {
				continue // it could not be asked
			}
			b.Heal = amount(seen.Heal)
			switch {
			case b.Heal == 0:
				b.HealingSince = time.Time{}
			case b.HealingSince.IsZero():
				b.HealingSince = now
			}
		}
	})
}

// takeMembers takes down who is in the cluster, as the host that leads says by their addresses.
func (h *Hub) takeMembers(ctx context.Context, node *resource.Node, members []netip.Addr) error {
	if len(members) == 0 {
		return nil
	}
	if lead := h.leads(h.cfg.Volumes.List("")); lead == nil || lead.UID != node.UID {
		return nil
	}
	for _, n := range h.cfg.Nodes.List("") {
		is := slices.Contains(members, n.Status.Address)
		if n.UID == node.UID && len(members) == 1 && is {
			is = h.holds(n) // a cluster of one host without bricks is none
		}
		if n.Status.StorageMember == is {
			continue
		}
		_, err := store.Of[resource.Node](h.cfg.Store).Modify(ctx, n.Name, func(now *resource.Node) error {
			if now.UID != n.UID {
				return store.ErrSkip
			}
			now.Status.StorageMember = is
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}

// holds says whether a node has bricks.
func (h *Hub) holds(n *resource.Node) bool {
	return slices.ContainsFunc(h.cfg.Volumes.List(""), func(v *resource.Volume) bool {
		return len(v.Status.Bricks) > 0 && v.IsOn(n.UID)
	})
}

// noteVolume writes down what is news of the volume called key, if it is the one that is meant. removed: it may be
// news although this server's cache doesn't know yet that something of it shall be removed.
func (h *Hub) noteVolume(
	ctx context.Context, key string, removed bool, meant func(*resource.Volume) bool, look func(*resource.Volume),
) error {
	seen, ok := h.cfg.Volumes.Get(key)
	if !ok || !meant(seen) {
		return nil
	}
	was := seen.Status
	was.Conditions, was.Bricks = slices.Clone(was.Conditions), slices.Clone(was.Bricks)
	if look(seen); reflect.DeepEqual(was, seen.Status) && !removed {
		return nil
	}
	_, err := store.Of[resource.Volume](h.cfg.Store).Modify(ctx, key, func(v *resource.Volume) error {
		if v.UID != seen.UID || !meant(v) {
			return store.ErrSkip
		}
		look(v)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
