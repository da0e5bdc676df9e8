package api

import (
	"context"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// NodePath names a node.
type NodePath struct {
	Node string `path:"node" maxLength:"57" example:"host1"`
}

// NodePatch is the body of nodes.patch: what is left out stays.
type NodePatch struct {
	Spec struct {
		Unschedulable *bool `json:"unschedulable,omitempty" doc:"Keeps new machines away"`
		Lost          *bool `json:"lost,omitempty" doc:"The host will not come back"`
	} `json:"spec"`
}

func (a *API) nodeOperations() {
	nodes := collection[resource.Node, *resource.Node]{
		api:     a,
		noun:    "node",
		path:    "/v1/nodes",
		example: "host1",
		view:    a.allocated,
	}
	nodes.list("The hosts that joined")
	nodes.get("One host")
	add(a, op("nodes.patch", "PATCH /v1/nodes/{node}", "Keep new machines away from a host, or give it up"),
		func(ctx context.Context, in *struct {
			NodePath
			Match
			Body NodePatch
		}) (*Output[*resource.Node], error) {
			if _, err := find(ctx, store.Of[resource.Node](a.store), in.Node, "node", in.Node); err != nil {
				return nil, err
			}
			node, err := store.Of[resource.Node](a.store).Modify(ctx, in.Node, func(n *resource.Node) error {
				if err := in.check(n.Metadata()); err != nil {
					return err
				}
				set(&n.Spec.Unschedulable, in.Body.Spec.Unschedulable)
				set(&n.Spec.Lost, in.Body.Spec.Lost)
				return nil
			})
			if err == nil {
				err = a.allocated(ctx, node)
			}
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, node), nil
		})
	add(a, op("nodes.delete", "DELETE /v1/nodes/{node}", "Drain a host and take it off the platform").answers(http.StatusAccepted),
		a.deleteNode)
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

func (a *API) deleteNode(ctx context.Context, in *struct {
	NodePath
	Match
	Lost bool `query:"lost" doc:"The host will not come back: give its machines up without waiting for it"`
}) (*Output[resource.Accepted[*resource.Node]], error) {
	var out *Output[resource.Accepted[*resource.Node]]
	err := retry(ctx, func() error {
		node, err := find(ctx, store.Of[resource.Node](a.store), in.Node, "node", in.Node)
		if err != nil {
			return err
		}
		if err := in.check(node.Metadata()); err != nil {
			return err
		}
		if in.Lost && !node.Spec.Lost {
			node.Spec.Lost = true
			if node.Deleting() {
				if err := store.Of[resource.Node](a.store).Update(ctx, node); err != nil {
					return err
				}
			}
		}
		id, err := markDeleted(ctx, a, store.Of[resource.Node](a.store), "node.remove", node)
		out = accepted(node, id)
		return err
	})
	return out, err
}
