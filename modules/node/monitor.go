package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// Monitor notices nodes that fell silent, and takes removed nodes through their
// end: machines away first, the node last.
type Monitor struct {
	Log      *slog.Logger
	Store    *store.Store
	Nodes    *store.Cache[*resource.Node]
	Machines *store.Cache[*resource.Machine]
	Claims   *store.Cache[*resource.VNI]
	Trash    *store.Cache[*resource.Trash]

	now         func() time.Time // nil: time.Now
	renewLooked time.Time        // when renew has last looked at volumes
}

// Run looks at all nodes every other second until ctx is done. One look costs
// no request to the store unless something has to change.
func (m *Monitor) Run(ctx context.Context, ready func()) error {
	if m.now == nil {
		m.now = time.Now
	}
	ready()
	// A server that was away must not call every node silent: they get a full
	// period to report again.
	began := m.now()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		nodes := m.Nodes.List("")
		for _, n := range nodes {
			if err := m.look(ctx, n, began); err != nil && ctx.Err() == nil {
				m.Log.Warn("look after node", "node", n.Name, "err", err)
			}
		}
		if err := m.renew(ctx, nodes); err != nil && ctx.Err() == nil {
			m.Log.Warn("look for hosts with storage of a former version", "err", err)
		}
		if err := m.free(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("look after claims of workspaces that are gone", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Monitor) look(ctx context.Context, n *resource.Node, began time.Time) error {
	// Of a node that has died too: another host, or somebody else, has its addresses by now.
	if seen := *n; expire(&seen, m.now(), began) {
		if _, err := store.Of[resource.Node](m.Store).Modify(ctx, n.Name, func(n *resource.Node) error {
			if !expire(n, m.now(), began) {
				return store.ErrSkip
			}
			return nil
		}); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	last := n.Status.HeartbeatAt
	if last.Before(began) {
		last = began
	}
	silent := func(n *resource.Node, last time.Time) bool {
		return (n.Status.Phase == resource.Ready || n.Deleting()) && !n.Silent() && m.now().Sub(last) >= wire.SilentAfter
	}
	var err error
	if silent(n, last) {
		err = m.silence(ctx, n, silent)
	}
	if n.Deleting() {
		err = errors.Join(err, m.remove(ctx, n))
	}
	return err
}

// silence takes down that nothing is heard from a node. One that is removed has a part in shared volumes until it is gone.
func (m *Monitor) silence(ctx context.Context, n *resource.Node, still func(n *resource.Node, last time.Time) bool) error {
	_, err := store.Of[resource.Node](m.Store).Modify(ctx, n.Name, func(n *resource.Node) error {
		if !still(n, n.Status.HeartbeatAt) {
			return store.ErrSkip
		}
		if !n.Deleting() {
			n.Status.Phase = resource.Degraded
		}
		n.Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.False, Reason: "Silent",
			Message: fmt.Sprintf("no report since %s: check the host, its network and its multipaas service",
				n.Status.HeartbeatAt.Format(time.RFC3339))})
		return nil
	})
	return err
}

// remove marks the machines of a node that goes, and deletes the node once none
// is left.
func (m *Monitor) remove(ctx context.Context, n *resource.Node) error {
	left := 0
	for _, machine := range m.Machines.List("") {
		if machine.Spec.Node != n.Name {
			continue
		}
		left++
		if machine.Deleting() && (!n.Spec.Lost || machine.Status.Conditions.Is(resource.MachineRemoved)) {
			continue
		}
		var ops []store.Op
		if n.Spec.Lost {
			var err error
			if ops, err = m.giveUp(ctx, n, machine.WorkspaceKey()); err != nil {
				return err
			}
		}
		ops = append(ops, store.Of[resource.Machine](m.Store).ModifyOp(machine.Key(), func(x *resource.Machine) error {
			if x.UID != machine.UID {
				return store.ErrSkip
			}
			if !x.Deleting() {
				x.DeletedAt = new(time.Now().UTC())
			}
			if n.Spec.Lost && !x.Status.Conditions.Is(resource.MachineRemoved) {
				for _, t := range []string{resource.MachineDrained, resource.MachineRemoved} {
					x.Status.Conditions.Set(resource.Condition{Type: t, Status: resource.True, Reason: "HostLost"})
				}
			}
			return nil
		}))
		err := m.Store.Commit(ctx, ops...)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		failpoint.Reach("node/leave/machine-marked")
	}
	if left > 0 {
		return nil
	}
	// The cache may be behind: a machine placed a moment ago counts.
	machines, _, err := store.Of[resource.Machine](m.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	for _, machine := range machines {
		if machine.Spec.Node == n.Name {
			return nil
		}
	}
	if keeps, err := m.keepsCopies(ctx, n); err != nil || keeps {
		return err
	}
	fresh, err := store.Of[resource.Node](m.Store).Get(ctx, n.Name)
	if errors.Is(err, store.ErrNotFound) || (err == nil && fresh.UID != n.UID) {
		return nil
	} else if err != nil {
		return err
	}
	if err := m.spend(ctx, n.Name); err != nil {
		return err
	}
	if err := store.Of[resource.Node](m.Store).Delete(ctx, fresh); err != nil {
		return err
	}
	failpoint.Reach("node/leave/deleted")
	m.Log.Info("node removed", "node", n.Name)
	return nil
}

// keepsCopies says whether copies of shared volumes are on a node that others shall have first, or those who keep them
// still take it for one of theirs.
func (m *Monitor) keepsCopies(ctx context.Context, n *resource.Node) (bool, error) {
	if n.Spec.Lost || n.Status.StorageMember {
		return !n.Spec.Lost, nil
	}
	volumes, err := m.Store.OnHosts(ctx)
	return slices.ContainsFunc(volumes, func(v *resource.Volume) bool {
		return v.Spec.Class == resource.SharedVolume && v.IsOn(n.UID)
	}), err
}

// spend makes the join tokens that a node has used worthless for good: for some
// minutes the same name could repeat its join with one, and a removed node would
// be back.
func (m *Monitor) spend(ctx context.Context, node string) error {
	tokens, _, err := store.Of[resource.JoinToken](m.Store).List(ctx, "", "", 0)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.UsedBy != node {
			continue
		}
		_, err := store.Of[resource.JoinToken](m.Store).Modify(ctx, t.Name, func(t *resource.JoinToken) error {
			t.Spent = true
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}
