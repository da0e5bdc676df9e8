package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// MoveOfVolume is the body of volumes.move.
type MoveOfVolume struct {
	To string `json:"to,omitempty" maxLength:"253" example:"shop-2" doc:"A machine of the workspace: it goes to its host"`
	// Stay gives up a move that was begun.
	Stay bool `json:"stay,omitempty" doc:"Give up a move: it stays where it is"`
}

// moveOperation adds what brings a local volume to another host. It may have a claim, but no pod may use it:
// it can be had again when it is there.
func (a *API) moveOperation(volumes *collection[resource.Volume, *resource.Volume]) {
	op := volumes.operation("move", http.MethodPost, "Bring a local volume to another host")
	op.path += "/move"
	add(a, op, func(ctx context.Context, in *struct {
		Place
		Match
		Body MoveOfVolume
	}) (*Output[resource.Accepted[*resource.Volume]], error) {
		ws, err := a.openWorkspace(ctx, WorkspacePath{OrganizationPath{AccountPath{in.names[0]}, in.names[1]}, in.names[2]})
		if err != nil {
			return nil, err
		}
		to := ""
		if !in.Body.Stay {
			if to, err = a.placeOf(ctx, ws, in.Body.To); err != nil {
				return nil, err
			}
		}
		var out *written[*resource.Volume]
		err = volumes.retry(ctx, in.Place, in.Match, func(v *resource.Volume) (err error) {
			if v.Deleting() {
				return deleting("volume", v.Name)
			}
			// What was given up stands at its place as it did before.
			if to != v.Spec.Place && to != "" {
				if err := a.cfg.Claims.Unused(ctx, ws, v); err != nil {
					return err
				}
			}
			out, err = volumes.update(ctx, v, func(now *resource.Volume) { now.Spec.Place = to })
			return err
		})
		if err != nil {
			return nil, err
		}
		return accepted(out.obj, out.task), volumes.shown(ctx, out.obj)
	})
}

// placeOf is what a workspace calls the host that somebody names: by a machine there, by that word, or who may know
// hosts by its name.
func (a *API) placeOf(ctx context.Context, ws *resource.Workspace, name string) (string, error) {
	nodes, err := all(ctx, store.Of[resource.Node](a.store), "")
	if err != nil {
		return "", err
	}
	machines, err := all(ctx, store.Of[resource.Machine](a.store), ws.Key())
	if err != nil {
		return "", err
	}
	var there []string
	on := ""
	for _, m := range machines {
		if m.Deleting() {
			continue
		}
		if there = append(there, m.Name); m.Name == name {
			on = m.Spec.Node
		}
	}
	for _, n := range nodes {
		place := wire.Place(ws.UID, n.UID)
		if n.Name == on || on == "" && (name == place || name == n.Name && a.seesHosts(ctx)) {
			return place, nil
		}
	}
	slices.Sort(there)
	remedy := "The workspace has no machine yet."
	if len(there) > 0 {
		remedy = fmt.Sprintf("Name one of the workspace's machines, and it goes to that one's host: %s.",
			strings.Join(there[:min(len(there), 20)], ", "))
	}
	return "", invalid("body.to", fmt.Sprintf("there is no machine %q in the workspace", short(name)), remedy)
}
