package resource

import (
	"slices"
	"time"
)

// Trash is a volume that was deleted and can be had back for a while. It stands in the
// organization, since it outlives the workspace that the volume was of. What it holds is on its
// host or hosts as it was; no machine sees it.
//
// A volume goes there, and comes back, in one commit, which keeps its UID: that of the two is
// true which was written last.
type Trash struct {
	InOrganization
	Spec   TrashSpec    `json:"spec" readOnly:"true"`
	Status VolumeStatus `json:"status" readOnly:"true"`
}

// TrashSpec is what the volume was.
type TrashSpec struct {
	Volume       string     `json:"volume" doc:"What it was called" example:"db"`
	Workspace    string     `json:"workspace" doc:"The workspace that it was of" example:"shop"`
	WorkspaceUID string     `json:"workspaceUID"`
	NetworkID    string     `json:"networkID,omitempty" hidden:"true"`
	MadeAt       time.Time  `json:"madeAt,omitzero" hidden:"true"` // when the volume was
	Was          VolumeSpec `json:"was"`
	Until        time.Time  `json:"until" doc:"When it is deleted with all data in it"`
}

// TrashLife is how long a volume stays in the trash.
const TrashLife = 7 * 24 * time.Hour

// Kept is the phase of what is in the trash and can be had back.
const Kept Phase = "Kept"

// PutAway is what a volume in the trash waits for until it is Kept.
const PutAway = "its host puts it away"

// Kind is "trash".
func (*Trash) Kind() string { return "trash" }

// State is what its controller says.
func (t *Trash) State() State { return t.Status.State }

// Asks counts it as the volume was counted.
func (t *Trash) Asks() Limits { return t.Was().Asks() }

// Stored is what the platform sees of it.
func (t *Trash) Stored() *VolumeStatus { return &t.Status }

// Stored is what the platform sees of it.
func (v *Volume) Stored() *VolumeStatus { return &v.Status }

// Was is the volume as it was when it was deleted, as far as that matters to who counts what
// is on hosts.
func (t *Trash) Was() *Volume {
	v := &Volume{InWorkspace: NewInWorkspace(t.Account+"/"+t.Organization+"/"+t.Spec.Workspace, t.Spec.Volume),
		Spec: t.Spec.Was, Status: t.Status}
	v.UID, v.Revision, v.DeletedAt, v.CreatedAt = t.UID, t.Revision, t.DeletedAt, t.Spec.MadeAt
	return v
}

// ToTrash is what a volume becomes that is deleted, at a time, from its workspace: nil if nothing is in
// it that could be had back.
func (v *Volume) ToTrash(ws *Workspace, now time.Time) *Trash {
	c := v.Status.Conditions.Get(VolumeReady)
	if v.Deleting() || v.Status.SizeBytes == 0 || c != nil && c.Final {
		return nil
	}
	t := &Trash{InOrganization: NewInOrganization(v.Account+"/"+v.Organization, trashName(v)), Status: v.Status,
		Spec: TrashSpec{Volume: v.Name, Workspace: v.Workspace, WorkspaceUID: ws.UID, NetworkID: ws.Status.ID,
			MadeAt: v.CreatedAt, Was: v.Spec, Until: now.Add(TrashLife).UTC().Truncate(time.Second)}}
	t.UID = v.UID
	t.Status.State, t.Status.Attachments = State{Phase: Updating, Conditions: v.served()}, nil
	t.Status.Bricks = slices.Clone(t.Status.Bricks)
	for i := range t.Status.Bricks { // until GlusterFS is seen to have it again
		t.Status.Bricks[i].Online = false
	}
	t.Status.Conditions.Set(Condition{Type: VolumeKept, Status: False, Reason: "NotKept", Message: PutAway})
	t.Status.Moving = v.Status.remains() // in the trash nothing moves
	return t
}

// trashName is what a volume is called in the trash: several of one name may be there.
func trashName(v *Volume) string {
	const some = 8 // of the UID: 32 bits
	return v.Name[:min(len(v.Name), MaxName-some-1)] + "-" + v.UID[:min(len(v.UID), some)]
}

// Restored is the volume that comes back, under a name in the workspace with this key.
func (t *Trash) Restored(workspace, name string) *Volume {
	v := &Volume{InWorkspace: NewInWorkspace(workspace, name), Spec: t.Spec.Was, Status: t.Status}
	v.UID, v.CreatedAt, v.Spec.Claim, v.Spec.Provisioned = t.UID, t.Spec.MadeAt, "", false
	v.Spec.Place = ""
	v.Status.State = State{Phase: Creating, Conditions: v.served()}
	v.Status.Conditions.Set(Condition{Type: VolumePlaced, Status: True, Reason: "Placed"})
	v.Status.Conditions.Set(Condition{Type: VolumeReady, Status: False, Reason: VolumeRestored, Message: "its host brings it back"})
	return v
}

// served is what is true of a shared volume wherever it is: that GlusterFS has it.
func (v *Volume) served() (kept Conditions) {
	for _, c := range v.Status.Conditions {
		if c.Type == VolumeServed {
			kept = append(kept, c)
		}
	}
	return kept
}

// VolumeRestored is the reason why a volume isn't ready that comes back from the trash.
const VolumeRestored = "Restored"
