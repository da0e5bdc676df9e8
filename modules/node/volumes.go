package node

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// volumesOf are the volumes and snapshots that a node shall have, those that it shall take away
// or keep in the trash too. Nothing is destroyed before its controller has looked whether something is still made from it.
func (h *Hub) volumesOf(node *resource.Node, all []*resource.Volume) (volumes []wire.Volume) {
	put := h.trashOf(node)
	for _, v := range all {
		shared, here := wire.Volume{}, v.Status.NodeUID == node.UID || v.Status.MovingOn(node.UID)
		if v.Spec.Class == resource.SharedVolume {
			shared, here = h.sharedAt(node, v)
		}
		if !here {
			continue
		}
		// Of two caches one may be behind: what was written last is so.
		if t := put[v.UID]; t != nil && t.Revision > v.Revision {
			continue
		}
		delete(put, v.UID)
		ws, ok := h.cfg.Workspaces.Get(v.WorkspaceKey())
		if !ok {
			continue // its cache follows: a workspace outlives its volumes
		}
		w := wire.Volume{Key: v.Key(), UID: v.UID, NetworkID: ws.Status.ID, Class: v.Spec.Class, SizeBytes: v.Spec.SizeBytes,
			Pool: v.Status.Pool, FirstUID: v.Status.FirstUID, Made: v.Made(), Servers: shared.Servers,
			Encrypted: v.Spec.Encrypted, Block: v.Spec.Block, Importing: v.Importing(), Remove: v.Going()}
		if shared.Brick != "" {
			w.Brick, w.Pool = shared.Brick, shared.Pool
		}
		if v.Spec.Source != nil {
			w.Source = v.Spec.Source.UID
		}
		m := v.Status.Moving
		w.Move = m.Step()
		switch {
		case v.Status.MovingOn(node.UID):
			volumes = append(volumes, otherHost(w, m))
			continue
		case m != nil && m.Stage == resource.MoveCopying:
			w.Keep = !w.Remove
		}
		for _, m := range h.machinesAt(node, v) {
			if !w.Remove && !w.Keep && !w.Importing {
				w.Attachments = append(w.Attachments, wire.VolumeAttachment{MachineUID: m.UID})
			}
		}
		volumes = append(volumes, w)
	}
	for _, s := range h.cfg.Snapshots.List("") {
		going, source := s.Deleting() && s.Status.Phase == resource.Deleting, s.Spec.VolumeUID
		if s.Status.Copy != nil {
			source = s.Status.Copy.Brick
		}
		size := max(s.Spec.SizeBytes, s.Status.SizeBytes) // the volume may have grown before it was made
		if ws, ok := h.cfg.Workspaces.Get(s.WorkspaceKey()); ok && s.Status.NodeUID == node.UID && (s.Status.Copy.Due() || going) {
			volumes = append(volumes, wire.Volume{Key: s.Key(), UID: s.UID, NetworkID: ws.Status.ID, Class: resource.LocalVolume,
				Pool: s.Status.Pool, SizeBytes: size, Made: s.Made(), Source: source, Snapshot: true,
				Encrypted: s.Spec.Encrypted, Block: s.Spec.Block, Remove: going})
		}
	}
	return append(volumes, kept(node, put)...)
}

// machinesAt are the machines of a volume's workspace on its host: all see it, so that no pod
// waits for that.
func (h *Hub) machinesAt(node *resource.Node, v *resource.Volume) []*resource.Machine {
	return slices.DeleteFunc(h.cfg.Machines.List(v.WorkspaceKey()), func(m *resource.Machine) bool {
		return m.Spec.Node != node.Name || !m.Lives()
	})
}

// keepsVolumes refuses that a node leaves while volumes are on it that would be lost: copies of shared ones go to other
// hosts. Names are tenants', and the operator at the host sees them.
func (h *Hub) keepsVolumes(ctx context.Context, node *resource.Node) error {
	all, err := h.cfg.Store.OnHosts(ctx)
	if err != nil {
		return err
	}
	nodes, _, err := store.Of[resource.Node](h.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	var on []string
	for _, v := range all {
		if v.IsOn(node.UID) && !v.Deleting() && !v.MovesFrom(node, nodes) {
			on = append(on, v.Key())
		}
	}
	snapshots, _, err := store.Of[resource.Snapshot](h.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if s.Status.NodeUID == node.UID && !s.Deleting() {
			on = append(on, s.Key())
		}
	}
	if on == nil {
		return nil
	}
	some := on[:min(len(on), 5)]
	return refuse(http.StatusConflict, "%d volumes and snapshots are on node %s, in the trash too, among them %s: local "+
		"volumes can be moved (`mp volumes move NAME --to MACHINE`), all else has to be deleted by its owners first; "+
		"to lose what is in them, give the node up with: mp nodes remove %s --lost",
		len(on), node.Name, strings.Join(some, ", "), node.Name)
}

// has says whether a node has a volume, or if it is a shared one, machines that see it, or its file.
func (h *Hub) has(node *resource.Node, v *resource.Volume) bool {
	if v.Spec.Class == resource.SharedVolume && v.Importing() {
		_, uid := v.FileHost()
		return uid == node.UID
	}
	if v.Spec.Class == resource.SharedVolume {
		return len(h.machinesAt(node, v)) > 0
	}
	return v.Status.NodeUID == node.UID || v.Status.MovingOn(node.UID)
}

// takeVolume takes down what is news of a volume.
func (h *Hub) takeVolume(ctx context.Context, node *resource.Node, rep wire.VolumeReport) error {
	if inTrash(rep.Key) {
		return h.takeTrash(ctx, node, rep)
	}
	seen, ok := h.cfg.Volumes.Get(rep.Key)
	if !ok || seen.UID != rep.UID {
		return h.takeSnapshot(ctx, node, rep)
	}
	own := func(v *resource.Volume) bool { return v.UID == rep.UID && h.has(node, v) }
	return takeDown(ctx, h.cfg.Volumes, store.Of[resource.Volume](h.cfg.Store), rep.Key, rep.Removed, own, func(v *resource.Volume) {
		if v.Spec.Class == resource.SharedVolume {
			h.noteShared(node, v, rep)
			return
		}
		s := &v.Status
		if lookMoving(s, node, rep) {
			return
		}
		c := resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "NotReady",
			Message: clip(rep.Message, maxText)}
		if rep.Ready && (!v.Importing() || rep.Import == wire.ImportDone) {
			c = resource.Condition{Type: resource.VolumeReady, Status: resource.True, Reason: "Ready"}
			// No less than it had: a host can't take back what a tenant was given.
			s.SizeBytes = max(s.SizeBytes, min(amount(rep.SizeBytes), v.Spec.SizeBytes))
		}
		if v.Importing() && rep.Import != "" {
			c.Reason, c.Final = resource.VolumeImporting, rep.Import == wire.ImportBroken
		}
		s.UsedBytes = amount(rep.UsedBytes)
		s.Conditions.Set(c)
		s.Attachments = nil
		for _, m := range h.machinesAt(node, v) {
			s.Attachments = append(s.Attachments, resource.VolumeAttachment{Machine: m.Name, MachineUID: m.UID,
				Attached: slices.Contains(rep.Attached, m.UID), Message: clip(rep.Failed[m.UID], maxText)})
		}
		// A volume that shall stay is not removed because a node says so.
		if rep.Removed && v.Deleting() {
			s.Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.True, Reason: "Removed"})
		}
	})
}

// takeSnapshot takes down what is news of a snapshot.
func (h *Hub) takeSnapshot(ctx context.Context, node *resource.Node, rep wire.VolumeReport) error {
	own := func(s *resource.Snapshot) bool { return s.UID == rep.UID && s.Status.NodeUID == node.UID }
	kind := store.Of[resource.Snapshot](h.cfg.Store)
	return takeDown(ctx, h.cfg.Snapshots, kind, rep.Key, rep.Removed, own, func(s *resource.Snapshot) {
		c := resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "Creating",
			Message: clip(rep.Message, maxText)}
		if rep.Ready {
			c = resource.Condition{Type: resource.SnapshotReady, Status: resource.True, Reason: "Ready"}
			if !s.Made() {
				most := s.Spec.SizeBytes // or, of a volume that has grown meanwhile, what that has
				if v, ok := h.cfg.Volumes.Get(s.WorkspaceKey() + "/" + s.Spec.Volume); ok && v.UID == s.Spec.VolumeUID {
					most = max(most, v.Spec.SizeBytes)
				}
				s.Status.SizeBytes, s.Status.ReadyAt = min(amount(rep.SizeBytes), most), new(h.now().UTC())
			}
			s.Status.UsedBytes = amount(rep.UsedBytes)
			if !s.Status.Copy.Whole() {
				c = resource.Condition{Type: resource.SnapshotReady, Status: resource.False, Reason: "Checking",
					Message: "it is made, and is looked at whether all copies of its volume have the same still"}
			}
		}
		if was := s.Status.Conditions.Get(resource.SnapshotReady); was == nil || !was.Final || rep.Removed {
			s.Status.Conditions.Set(c)
		}
		// One that shall stay is not removed because a node says so.
		if rep.Removed && s.Deleting() {
			s.Status.Conditions.Set(resource.Condition{Type: resource.SnapshotRemoved, Status: resource.True, Reason: "Removed"})
		}
	})
}
