package api

import (
	"context"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// NodePatch is the body of nodes.patch: what is left out stays.
type NodePatch struct {
	Spec struct {
		Unschedulable *bool   `json:"unschedulable,omitempty" doc:"Keeps new machines away"`
		Lost          *bool   `json:"lost,omitempty" doc:"The host will not come back"`
		Zone          *string `json:"zone,omitempty" maxLength:"63" doc:"What fails together: a rack, a room; empty: the host itself"`
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
	add(a, nodes.operation("patch", http.MethodPatch, "Cordon a host, set its zone, or give it up").answers(http.StatusOK),
		func(ctx context.Context, in *struct {
			Place
			Match
			Body NodePatch
		}) (*Output[*resource.Node], error) {
			if zone := in.Body.Spec.Zone; zone != nil && *zone != "" {
				if err := resource.CheckName("zone", *zone); err != nil {
					return nil, invalid("body.spec.zone", err.Error(), "")
				}
			}
			var node *resource.Node
			err := nodes.retry(ctx, in.Place, in.Match, func(was *resource.Node) error {
				node = was
				set(&node.Spec.Unschedulable, in.Body.Spec.Unschedulable)
				set(&node.Spec.Lost, in.Body.Spec.Lost)
				set(&node.Spec.Zone, in.Body.Spec.Zone)
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

// allocated says of nodes what machines have been promised of them. It is asked
// for by a few sysadmins and computed from the machines there are, so it is
// never behind, whoever places machines.
func (a *API) allocated(ctx context.Context, nodes ...*resource.Node) error {
	machines, err := all(ctx, store.Of[resource.Machine](a.store), "")
	if err != nil {
		return err
	}
	promised := resource.Promised(machines)
	for _, n := range nodes {
		n.Status.Allocated = promised[n.Name]
	}
	return nil
}
