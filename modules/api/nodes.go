package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// NodePatch is the body of nodes.patch: what is left out stays.
type NodePatch struct {
	Spec struct {
		Unschedulable *bool   `json:"unschedulable,omitempty" doc:"Keeps new machines away"`
		Lost          *bool   `json:"lost,omitempty" doc:"The host will not come back"`
		Zone          *string `json:"zone,omitempty" maxLength:"63" doc:"What fails together: a rack, a room; empty: the host itself"`
		// A host is not believed about these: what it says is taken if a sysadmin says so.
		Address   *netip.Addr   `json:"address,omitempty" format:"ipv4-or-empty" doc:"Where the host is; empty: where it is now"`
		Addresses *[]netip.Addr `json:"addresses,omitempty" maxItems:"64" doc:"Other addresses of the host, which it need not show"`
		// NotAddresses is how a sysadmin says no to what a host shows.
		NotAddresses *[]netip.Addr `json:"notAddresses,omitempty" maxItems:"64" doc:"Addresses that are somebody else's"`
		Capacity     struct {
			MilliCPU    *int64 `json:"milliCPU,omitempty" minimum:"0" doc:"Thousandths of a CPU; 0: what the host had when it joined"`
			MemoryBytes *int64 `json:"memoryBytes,omitempty" minimum:"0"`
			DiskBytes   *int64 `json:"diskBytes,omitempty" minimum:"0"`
		} `json:"capacity,omitempty" doc:"What of the host machines may have"`
	} `json:"spec"`
}

func (a *API) nodeOperations() {
	nodes := &collection[resource.Node, *resource.Node]{
		api:     a,
		noun:    "node",
		path:    "/v1/nodes",
		example: "host1",
		show:    a.allocated,
	}
	nodes.list("The hosts that joined")
	nodes.get("One host")
	change := nodes.operation("patch", http.MethodPatch, "Cordon a host, set its zone, confirm what it says, or give it up")
	add(a, change.answers(http.StatusOK),
		func(ctx context.Context, in *struct {
			Place
			Match
			Body NodePatch
		}) (*Output[*resource.Node], error) {
			spec := &in.Body.Spec
			if zone := spec.Zone; zone != nil && *zone != "" {
				if err := resource.CheckName("zone", *zone); err != nil {
					return nil, invalid("body.spec.zone", err.Error(), "")
				}
			}
			const no = "%v is no IPv4 address that a host can have"
			if ip := spec.Address; ip != nil && ip.IsValid() {
				if !ip.Is4() || !ip.IsGlobalUnicast() {
					return nil, invalid("body.spec.address", fmt.Sprintf(no, ip), "Give the address by which the other hosts reach it.")
				}
				if err := a.checkAddress(ctx, in.name(), *ip); err != nil {
					return nil, err
				}
			}
			for field, all := range map[string]*[]netip.Addr{"addresses": spec.Addresses, "notAddresses": spec.NotAddresses} {
				if all == nil {
					continue
				}
				for _, ip := range *all {
					if !ip.Is4() || !ip.IsGlobalUnicast() {
						return nil, invalid("body.spec."+field, fmt.Sprintf(no, ip), "Give addresses as a host on the platform's network has.")
					}
					if field != "addresses" {
						continue
					}
					if err := a.checkAddress(ctx, in.name(), ip); err != nil {
						return nil, err
					}
				}
			}
			var node *resource.Node
			err := nodes.retry(ctx, in.Place, in.Match, func(was *resource.Node) error {
				node = was
				if err := a.keepAddress(ctx, node, spec.Address); err != nil {
					return err
				}
				set(&node.Spec.Unschedulable, spec.Unschedulable)
				set(&node.Spec.Lost, spec.Lost)
				set(&node.Spec.Zone, spec.Zone)
				set(&node.Spec.Address, spec.Address)
				set(&node.Spec.Addresses, spec.Addresses)
				set(&node.Spec.NotAddresses, spec.NotAddresses)
				set(&node.Spec.Capacity.MilliCPU, spec.Capacity.MilliCPU)
				set(&node.Spec.Capacity.MemoryBytes, spec.Capacity.MemoryBytes)
				set(&node.Spec.Capacity.DiskBytes, spec.Capacity.DiskBytes)
				if err := a.checkNode(ctx, node, &in.Body); err != nil {
					return err
				}
				return nodes.kind().Update(ctx, node)
			})
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, node), a.allocated(ctx, node)
		})
	add(a, nodes.operation("delete", http.MethodDelete, "Drain a host and take it off the platform"),
		func(ctx context.Context, in *struct {
			Place
			Match
			Lost bool `query:"lost" doc:"The host will not come back: give its machines up without waiting for it"`
		}) (out *Output[resource.Accepted[*resource.Node]], err error) {
			err = nodes.retry(ctx, in.Place, in.Match, func(node *resource.Node) error {
				if !in.Lost && !node.Spec.Lost && !node.Deleting() {
					if err := a.keepNode(ctx, node); err != nil {
						return err
					}
				}
				if in.Lost && !node.Spec.Lost {
					node.Spec.Lost = true
					if node.Deleting() {
						if err := nodes.kind().Update(ctx, node); err != nil {
							return err
						}
					}
				}
				task, err := markDeleted(ctx, a, nodes.kind(), "node.remove", node)
				out = accepted(node, task)
				return err
			})
			return out, err
		})
}

// allocated says of nodes and their pools what machines and volumes have been promised. It is asked
// for by a few sysadmins and computed from the machines there are, so it is
// never behind, whoever places machines.
func (a *API) allocated(ctx context.Context, nodes ...*resource.Node) error {
	machines, err := all(ctx, store.Of[resource.Machine](a.store), "")
	if err != nil {
		return err
	}
	volumes, err := a.store.OnHosts(ctx)
	if err != nil {
		return err
	}
	snapshots, err := all(ctx, store.Of[resource.Snapshot](a.store), "")
	if err != nil {
		return err
	}
	promised, kept := resource.Promised(machines), resource.PromisedToVolumes(volumes)
	copies := resource.PromisedToSnapshots(snapshots)
	for _, n := range nodes {
		own := resource.PoolAt{Node: n.UID}
		n.Status.Pools = slices.Clone(n.Status.Pools) // the caller may store it
		for i := range n.Status.Pools {
			at := resource.PoolAt{Node: n.UID, Pool: n.Status.Pools[i].UID}
			n.Status.Pools[i].PromisedBytes = kept[at] + copies[at]
		}
		n.Status.Allocated = promised[n.Name].Add(resource.Size{DiskBytes: kept[own] + copies[own]})
	}
	return nil
}

// keepNode refuses that a node is removed while volumes or snapshots are on it that would be lost: copies of shared ones
// go to other hosts.
func (a *API) keepNode(ctx context.Context, node *resource.Node) error {
	volumes, err := a.store.OnHosts(ctx)
	if err != nil {
		return err
	}
	snapshots, err := all(ctx, store.Of[resource.Snapshot](a.store), "")
	if err != nil {
		return err
	}
	nodes, err := all(ctx, store.Of[resource.Node](a.store), "")
	if err != nil {
		return err
	}
	const most = 5
	var some []string
	there, shared := 0, false
	for _, s := range snapshots {
		if s.Status.NodeUID == node.UID && !s.Deleting() {
			if there++; there <= most {
				some = append(some, "snapshot "+s.Key())
			}
		}
	}
	for _, v := range volumes {
		if !v.IsOn(node.UID) || v.Deleting() || v.MovesFrom(node, nodes) {
			continue
		}
		shared = shared || len(v.Status.Bricks) > 0
		if there++; there <= most {
			some = append(some, v.Key())
		}
	}
	if there == 0 {
		return nil
	}
	what := fmt.Sprintf("%d volumes and snapshots are on node %s, among them", there, node.Name)
	switch {
	case there == 1:
		what = fmt.Sprintf("On node %s there is still", node.Name)
	case there <= most:
		what = fmt.Sprintf("%d volumes and snapshots are on node %s:", there, node.Name)
	}
	remedy := "Local volumes can be moved to the hosts of other machines of their workspaces " +
		"(`mp volumes move NAME --to MACHINE`); snapshots, and what is in the trash, have to be deleted first. "
	if shared {
		remedy += "Shared volumes with three copies go to another host by themselves, if there is one that has none of theirs. "
	}
	return conflict("in-use", fmt.Sprintf("%s %s.", what, strings.Join(some, ", ")),
		remedy+fmt.Sprintf("If the host will never come back, "+
			"give it up, and what has no other copy with it: mp nodes remove %s --lost.", node.Name))
}

// checkAddress refuses for a node an address by which something else is reached: the
// others would send each other's traffic there, and that one would be cut off.
func (a *API) checkAddress(ctx context.Context, node string, address netip.Addr) error {
	nodes, err := all(ctx, store.Of[resource.Node](a.store), "")
	if err != nil {
		return err
	}
	for _, other := range nodes {
		if other.Name != node && (other.Status.Address == address || other.Spec.Address == address) {
			return conflict("conflict", fmt.Sprintf("%v is the address of node %s.", address, other.Name),
				fmt.Sprintf("Give another address, or if that node isn't there any more, remove it first: mp nodes remove %s.", other.Name))
		}
	}
	if err := a.cfg.NodeAddress(address); err != nil {
		return conflict("conflict", err.Error()+".", "Give an address of the host itself.")
	}
	return nil
}

// keepAddress refuses a node another address while copies of shared volumes are on it: GlusterFS knows them by that.
func (a *API) keepAddress(ctx context.Context, node *resource.Node, address *netip.Addr) error {
	is := node.Status.Address
	if address == nil || !address.IsValid() || !is.IsValid() || *address == is {
		return nil
	}
	volumes, err := a.store.OnHosts(ctx)
	if err != nil {
		return err
	}
	copies := 0
	for _, v := range volumes {
		if v.Spec.Class == resource.SharedVolume && v.IsOn(node.UID) {
			copies++
		}
	}
	if copies == 0 {
		return nil
	}
	return conflict("in-use", fmt.Sprintf("%d copies of shared volumes are on node %s, and are found by its address %v.",
		copies, node.Name, is), fmt.Sprintf("Let the host keep that address, or take the copies off it first: mp nodes remove %s "+
		"has those of volumes with three go to other hosts, and then it can join again.", node.Name))
}

// checkNode says what of patch the node can't have, with which it is as it shall be.
func (a *API) checkNode(ctx context.Context, node *resource.Node, patch *NodePatch) error {
	own := node.Status.Address
	if node.Spec.Address.IsValid() {
		own = node.Spec.Address
	}
	if not := patch.Spec.NotAddresses; not != nil && slices.Contains(*not, own) {
		return invalid("body.spec.notAddresses", fmt.Sprintf("%v is the address by which the node is reached", own),
			"Leave it out, or set another `address` of the node first.")
	}
	set := patch.Spec.Capacity
	if cmp.Or(set.MilliCPU, set.MemoryBytes, set.DiskBytes) == nil {
		return nil
	}
	now := *node // what is promised is not stored
	if err := a.allocated(ctx, &now); err != nil {
		return err
	}
	has := now.Status.Allocated
	var fields []ProblemField
	for _, x := range []struct {
		field           string
		set             *int64 // nil or 0: what the host had when it joined
		promised, least int64
		text            func(int64) string
	}{
		{"milliCPU", set.MilliCPU, has.MilliCPU, minMilliCPU, func(n int64) string { return resource.Size{MilliCPU: n}.CPU() }},
		{"memoryBytes", set.MemoryBytes, has.MemoryBytes, minMemoryBytes, func(n int64) string { return resource.Size{MemoryBytes: n}.Memory() }},
		{"diskBytes", set.DiskBytes, has.DiskBytes, minDiskBytes, func(n int64) string { return resource.Size{DiskBytes: n}.Disk() }},
	} {
		why := ""
		switch {
		case x.set == nil || *x.set == 0:
			continue
		case *x.set < x.promised:
			why = fmt.Sprintf("%s is less than the %s that its machines have been promised", x.text(*x.set), x.text(x.promised))
		case *x.set < x.least:
			why = fmt.Sprintf("%s is less than the smallest machine has, %s", x.text(*x.set), x.text(x.least))
		default:
			continue
		}
		fields = append(fields, ProblemField{"body.spec.capacity." + x.field, why})
	}
	if fields == nil {
		return nil
	}
	return invalidFields(fmt.Sprintf("Set more; mp nodes cordon %s keeps new machines away.", node.Name), fields)
}
