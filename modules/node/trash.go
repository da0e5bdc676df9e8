package node

import (
	"cmp"
	"context"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// inTrash says whether a volume's key is that of one in the trash, which stands in the organization.
func inTrash(key string) bool { return resource.OfWorkspace.Parent(key) == "" }

// trashOf is what of a node's volumes is in the trash, by UID.
func (h *Hub) trashOf(node *resource.Node) map[string]*resource.Trash {
	all := map[string]*resource.Trash{}
	for _, t := range h.cfg.Trash.List("") {
		if t.Status.NodeUID == node.UID || t.Status.MovingOn(node.UID) {
			all[t.UID] = t
		}
	}
	return all
}

// kept is what a node is told of the trash, in an order that stays.
func kept(node *resource.Node, trash map[string]*resource.Trash) (volumes []wire.Volume) {
	for _, t := range trash {
		going := t.Deleting() && t.Status.Phase == resource.Deleting // see volumesOf
		w := wire.Volume{Key: t.Key(), UID: t.UID, NetworkID: t.Spec.NetworkID, Class: t.Spec.Was.Class,
			Pool: t.Status.Pool, SizeBytes: t.Spec.Was.SizeBytes, FirstUID: t.Status.FirstUID, Made: true, Keep: !going, Remove: going}
		w.Encrypted, w.Block = t.Spec.Was.Encrypted, t.Spec.Was.Block
		if t.Spec.Was.Source != nil {
			w.Source = t.Spec.Was.Source.UID
		}
		w.Move = t.Status.Moving.Step()
		if t.Status.MovingOn(node.UID) {
			w = otherHost(w, t.Status.Moving)
		}
		volumes = append(volumes, w)
	}
	slices.SortFunc(volumes, func(a, b wire.Volume) int { return cmp.Compare(a.Key, b.Key) })
	return volumes
}

// takeTrash takes down what is news of a volume in the trash.
func (h *Hub) takeTrash(ctx context.Context, node *resource.Node, rep wire.VolumeReport) error {
	own := func(t *resource.Trash) bool {
		return t.UID == rep.UID && (t.Status.NodeUID == node.UID || t.Status.MovingOn(node.UID))
	}
	return takeDown(ctx, h.cfg.Trash, store.Of[resource.Trash](h.cfg.Store), rep.Key, rep.Removed, own, func(t *resource.Trash) {
		if lookMoving(&t.Status, node, rep) {
			return
		}
		c := resource.Condition{Type: resource.VolumeKept, Status: resource.False, Reason: "NotKept",
			Message: cmp.Or(clip(rep.Message, maxText), resource.PutAway)}
		if rep.Ready {
			c = resource.Condition{Type: resource.VolumeKept, Status: resource.True, Reason: "Kept"}
		}
		t.Status.Conditions.Set(c)
		// What shall be kept is not removed because a node says so.
		if rep.Removed && t.Deleting() {
			t.Status.Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.True, Reason: "Removed"})
		}
	})
}
