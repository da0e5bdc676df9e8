package node

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// brickHost is the node that a brick is on, nil if it, or the disk with the brick, was given up or is none any more.
func (h *Hub) brickHost(b resource.VolumeBrick) *resource.Node {
	if n := h.brickPeer(b); n != nil && !n.LostPool(b.Pool) {
		return n
	}
	return nil
}

// brickPeer is the node that GlusterFS has for the host of a brick, which may have lost the disk: it is one of the cluster
// all the same.
func (h *Hub) brickPeer(b resource.VolumeBrick) *resource.Node {
	if n, ok := h.cfg.Nodes.Get(b.Node); ok && n.UID == b.NodeUID && !n.Gone() {
		return n
	}
	return nil
}

// sharedAt is a shared volume as a host has it: with a machine of its workspace there, or to write a file into it, and as long
// as GlusterFS has the volume. One that is deleted is unmounted because it is named no more.
func (h *Hub) sharedAt(node *resource.Node, v *resource.Volume) (w wire.Volume, here bool) {
	if v.Deleting() || !v.Status.Conditions.Is(resource.VolumeServed) {
		return w, false
	}
	if v.Importing() {
		broken := v.Status.Conditions.Get(resource.VolumeImported)
		_, uid := v.FileHost()
		if uid != node.UID || h.brickHost(v.Status.Bricks[0]) == nil || broken != nil && broken.Final {
			return w, false
		}
		w.Brick, w.Pool = v.Status.Bricks[0].UID, v.Status.Bricks[0].Pool
	} else {
		for _, m := range h.machinesAt(node, v) {
			w.Attachments = append(w.Attachments, wire.VolumeAttachment{MachineUID: m.UID})
		}
		if w.Attachments == nil {
			return w, false
		}
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
	if v.Importing() {
		h.noteImport(node, v, rep)
		return
	}
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

// noteImport takes down how far a shared volume is of which not all of its file is there.
func (h *Hub) noteImport(node *resource.Node, v *resource.Volume, rep wire.VolumeReport) {
	if _, uid := v.FileHost(); uid != node.UID {
		return
	}
	c := resource.Condition{Type: resource.VolumeImported, Status: resource.False, Reason: resource.VolumeImporting,
		Message: clip(rep.Message, maxText)}
	switch rep.Import {
	case wire.ImportDone:
		c.Status, c.Reason, c.Message = resource.True, "Imported", ""
	case wire.ImportBroken:
		c.Final = true
	case wire.ImportBegun:
	default: // it can't be mounted: see noteShared
		if rep.Message != "" {
			h.cfg.Log.Warn("mount of a shared volume", "volume", rep.Key, "node", node.Name, "said", c.Message)
			c.Message = "the host that its file is written by can't mount it now: it is tried again"
		}
	}
	v.Status.Conditions.Set(c)
}

// maxServer is how long what a host calls a start of what serves its bricks may be.
const maxServer = 64

// takeBrick takes down what is news of a brick.
func (h *Hub) takeBrick(ctx context.Context, node *resource.Node, rep wire.BrickReport) error {
	own := func(v *resource.Volume) *resource.VolumeBrick {
		if b := v.Brick(rep.UID); b != nil && b.NodeUID == node.UID {
			return b
		}
		return nil // gone, or not this node's: nothing to take down
	}
	leaves := func(b resource.VolumeBrick) bool { return b.UID == rep.UID && b.NodeUID == node.UID }
	meant := func(v *resource.Volume) bool {
		return own(v) != nil || rep.Removed && slices.ContainsFunc(v.Status.Leaving, leaves)
	}
	return h.noteVolume(ctx, rep.Key, rep.Removed, meant, func(v *resource.Volume) {
		b := own(v)
		if b == nil {
			v.Status.Leaving = slices.DeleteFunc(slices.Clone(v.Status.Leaving), leaves)
			return
		}
		b.Ready, b.Message = rep.Ready, clip(rep.Message, maxText)
		if rep.Ready {
			b.Message = ""
			b.SizeBytes = max(b.SizeBytes, min(amount(rep.SizeBytes), resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter)))
		}
		if server := clip(rep.Server, maxServer); server != "" && server != b.Server {
			if b.Server != "" {
				// Processes may have the same numbers as before, so who leads sees no others. What it missed is not known
				// before that is asked.
				b.Falls++
				if len(v.Status.Bricks) > 1 {
					b.Heal = -1
					v.Status.Look++
				}
			}
			b.Server = server
		}
		b.UsedBytes, v.Status.UsedBytes = amount(rep.UsedBytes), 0
		for _, b := range v.Status.Bricks {
			if !b.Arbiter {
				v.Status.UsedBytes = max(v.Status.UsedBytes, b.UsedBytes)
			}
		}
		// A brick that shall stay is not removed because a node says so.
		gone := v.Deleting() && v.Status.Conditions.Is(resource.VolumeUnserved) || v.Status.Copy.Failed(v.Status.Conditions)
		if rep.Removed && gone {
			b.Removed, b.Ready, b.Online = true, false, false
		}
	})
}

// takeCluster takes down what is news of a shared volume as the cluster has it. Only the host that
// leads is believed.
func (h *Hub) takeCluster(ctx context.Context, node *resource.Node, rep wire.ClusterReport) error {
	if !h.shared().leads(node) {
		return nil
	}
	if rep.Message != "" { // of addresses and GlusterFS: not for tenants
		h.cfg.Log.Warn("shared volume", "volume", rep.Key, "node", node.Name, "said", clip(rep.Message, maxText))
	}
	now := h.now().UTC()
	lead, ok := h.cfg.Nodes.Get(node.Name)
	looks := ok && lead.CopiesShared() // others say of no look that it was taken
	meant := func(v *resource.Volume) bool { return v.UID == rep.UID && len(v.Status.Bricks) > 0 }
	return h.noteVolume(ctx, rep.Key, rep.Removed, meant, func(v *resource.Volume) {
		s := &v.Status
		set := func(kind string, status resource.ConditionStatus, reason, message string) {
			s.Conditions.Set(resource.Condition{Type: kind, Status: status, Reason: reason, Message: message})
		}
		switch served := s.Conditions.Is(resource.VolumeServed); {
		case v.Going() && rep.Removed:
			set(resource.VolumeUnserved, resource.True, "Removed", "")
		case v.Going():
			if rep.Message != "" {
				set(resource.VolumeUnserved, resource.False, "Waits", "it is deleted once all hosts of the platform that have shared "+
					"volumes are there: one of them is away, or busy, or was given up, and a copy of another volume that was on it "+
					"has no other host yet")
			}
			return
		case inTrash(rep.Key):
			if !rep.Stopped {
				return
			}
			set(resource.VolumeKept, resource.True, "Kept", "")
			for i := range s.Bricks {
				s.Bricks[i].Online = false // until it is started again
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
		// What one that was away has missed is not known before its others were asked.
		back := slices.ContainsFunc(rep.Bricks, func(r wire.ClusterBrickReport) bool {
			b := v.Brick(r.UID)
			return b != nil && r.Online && (!b.Online || b.Replaces != "")
		})
		// Of several that come back at once nobody knows which one lacks something.
		stayed := slices.ContainsFunc(rep.Bricks, func(r wire.ClusterBrickReport) bool {
			b := v.Brick(r.UID)
			return b != nil && r.Online && b.Online && b.Replaces == "" && !b.Filling
		})
		// Those that came empty have all once nothing is to be healed any more.
		full := !slices.ContainsFunc(rep.Bricks, func(r wire.ClusterBrickReport) bool { return !r.Online || r.Heal != 0 })
		for i := range s.Bricks {
			b := &s.Bricks[i]
			was := *b
			at := slices.IndexFunc(rep.Bricks, func(r wire.ClusterBrickReport) bool { return r.UID == b.UID })
			if at < 0 {
				if was.Online { // see Volume.Processes
					b.Falls++
				}
				b.Online, b.Heal, b.HealingSince, b.GivenSince, b.Looked, b.Process = false, 0, time.Time{}, time.Time{}, 0, 0
				continue
			}
			seen := rep.Bricks[at]
			b.Replaces, b.Online, b.Looked, b.Process = "", seen.Online, seen.Looked, seen.Process
			b.Filling = b.Filling && !full
			early := looks && was.Heal < 0 && len(rep.Bricks) > 1 && seen.Looked < s.Look
			switch {
			case full && !early || !b.Online:
				b.GivenSince = time.Time{}
			case b.GivenSince.IsZero() && (b.Filling || stayed && (was.Replaces != "" || !was.Online)):
				b.GivenSince = now
			}
			switch {
			case seen.Heal < 0 && back && len(rep.Bricks) > 1:
				b.Heal = -1
			case seen.Heal >= 0 && !early:
				b.Heal = amount(seen.Heal)
			}
			if was.Online && !b.Online || was.Heal == 0 && b.Heal != 0 || was.Process > 0 && b.Process > 0 && b.Process != was.Process {
				b.Falls++
			}
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
	if !h.shared().leads(node) {
		return nil
	}
	nodes := h.cfg.Nodes.List("")
	// Itself first: of some members that are known another would lead.
	slices.SortStableFunc(nodes, func(a, b *resource.Node) int {
		switch node.UID {
		case a.UID:
			return -1
		case b.UID:
			return 1
		}
		return 0
	})
	for _, n := range nodes {
		is := slices.Contains(members, n.Status.Address)
		if n.UID == node.UID && len(members) == 1 && is {
			is = h.shared().keeps(n) // a cluster of one host without bricks is none
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

// noteVolume is takeDown for volumes, in the trash or not.
func (h *Hub) noteVolume(
	ctx context.Context, key string, removed bool, meant func(*resource.Volume) bool, look func(*resource.Volume),
) error {
	if inTrash(key) {
		return takeDown(ctx, h.cfg.Trash, store.Of[resource.Trash](h.cfg.Store), key, removed,
			func(t *resource.Trash) bool { return meant(t.Was()) },
			func(t *resource.Trash) {
				v := t.Was()
				look(v)
				t.Status = v.Status
			})
	}
	return takeDown(ctx, h.cfg.Volumes, store.Of[resource.Volume](h.cfg.Store), key, removed, meant, look)
}
