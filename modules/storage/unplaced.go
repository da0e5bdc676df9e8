package storage

import (
	"context"
	"slices"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// To choose a host takes lists of all machines and volumes from the store, while everybody else
// who wants a host waits. So who can't get one asks rarely: so many in a second, however many
// wait, besides those that are new.
const placingPace, placingBurst = 2, 10

const noMachine = "the workspace has no machine yet: its volumes are made where, and for whom, one runs"

// oldMachines is said where the agent of the host knows that none of its machines can have volumes.
const oldMachines = "the workspace's machines on the host that could have it were started before machines could have " +
	"volumes: have them replaced (scale the workspace down and up again), or their host restarted"

// hasMachine says whether a workspace has a machine, as far as was heard: its first one has
// its volumes looked at.
func (c *Controller) hasMachine(workspace string) bool {
	return slices.ContainsFunc(c.cfg.Machines.List(workspace), func(m *resource.Machine) bool { return !m.Deleting() })
}

// unplaced writes down why no host has a volume, in words for tenants.
func (c *Controller) unplaced(ctx context.Context, v *resource.Volume, why string) error {
	return store.Of[resource.Volume](c.cfg.Store).Observe(ctx, v, func(now *resource.Volume) {
		now.Status.Phase = resource.Pending
		now.Status.Conditions.Set(resource.Condition{Type: resource.VolumePlaced, Status: resource.False,
			Reason: resource.NoCapacity, Message: why})
	})
}
