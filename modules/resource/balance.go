package resource

import "time"

// StorageBalance is the name of the one Balance that there is.
const StorageBalance = "storage"

// Balance is the wish that copies of shared volumes go from disks of which much is promised to those of which little is.
// There is one.
type Balance struct {
	Meta
	Spec   BalanceSpec   `json:"spec"`
	Status BalanceStatus `json:"status" readOnly:"true"`
}

// BalanceSpec is what an operator wants.
type BalanceSpec struct {
	// Round counts how often that was wished anew.
	Round int64 `json:"round,omitempty" readOnly:"true" doc:"How often it was asked for again"`
	Stop  bool  `json:"stop,omitempty" doc:"Begin no more copies; one that has begun is finished"`
}

// BalanceStatus is how far it is.
type BalanceStatus struct {
	State
	// Moving is the copy on its way, of this round or of one before.
	Moving *BalancedCopy `json:"moving,omitempty" doc:"The copy that is on its way"`
	// Copies and Bytes are of those that have gone elsewhere in this round.
	Round  int64 `json:"round,omitempty"`
	Copies int64 `json:"copies,omitempty" doc:"How many copies have gone elsewhere"`
	Bytes  int64 `json:"bytes,omitempty" doc:"What was used in them, as their hosts said last"`
	// Left and LeftBytes are of those that were to go besides when the last one was begun: more may come, or fewer do.
	Left      int64 `json:"left,omitempty" doc:"How many copies were to go besides when the last one was begun"`
	LeftBytes int64 `json:"leftBytes,omitempty" doc:"What was used in them"`
	// WaitsSince is since when something keeps copies from going that may never end, by the server's clock.
	WaitsSince time.Time `json:"waitsSince,omitzero" hidden:"true"`
	// Plan is what would go where by now. It is computed for those who ask, and cut off at the end.
	Plan []BalancedCopy `json:"plan,omitempty" doc:"Which copies would go elsewhere, as it looks now"`
}

// BalancedCopy is a copy of a shared volume that goes from one disk to another.
type BalancedCopy struct {
	Volume    string `json:"volume" doc:"Key of the volume" example:"acme/web/shop/files"`
	VolumeUID string `json:"volumeUID"`
	From      string `json:"from" doc:"NODE/POOL" example:"host1/default"`
	To        string `json:"to" doc:"NODE/POOL" example:"host4/default"`
	SizeBytes int64  `json:"sizeBytes" doc:"What is promised for it"`
	UsedBytes int64  `json:"usedBytes" doc:"What was used of it, as last seen"`
	// Old and New are the UIDs of the bricks.
	Old string `json:"old,omitempty" hidden:"true"`
	New string `json:"new,omitempty" hidden:"true"`
}

// Balanced is the condition of a Balance that all copies are where they should be.
const Balanced = "Balanced"

// Kind is "balances".
func (*Balance) Kind() string { return "balances" }

// State is what its controller says.
func (b *Balance) State() State { return b.Status.State }

// Over says whether nothing is done any more of what was wished last: all is, or it was stopped, or some had to be left.
func (b *Balance) Over() bool {
	return (b.Status.Phase == Ready || b.Status.Phase == Failed) && b.Status.ObservedGeneration == b.Generation
}
