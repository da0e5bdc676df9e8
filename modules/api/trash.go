package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Restore is the body of trash.restore: what is left out is as it was.
type Restore struct {
	Workspace string `json:"workspace,omitempty" maxLength:"57" example:"shop" doc:"Of the same organization"`
	Volume    string `json:"volume,omitempty" maxLength:"57" example:"db" doc:"What it is called from now on"`
}

func (a *API) trashOperations() {
	trash := &collection[resource.Trash, *resource.Trash]{
		api:     a,
		noun:    "trash",
		path:    "/v1/accounts/{account}/organizations/{organization}/trash",
		example: "db-0a1b2c3d",
		show: func(ctx context.Context, all ...*resource.Trash) error {
			for _, t := range all {
				if !a.seesHosts(ctx) {
					t.Status.HideHosts()
				}
			}
			return nil
		},
	}
	trash.list("The volumes of an organization that are in the trash")
	trash.get("One volume in the trash")
	trash.remove("Delete a volume in the trash with all data in it")
	op := trash.operation("restore", http.MethodPost, "Bring a volume back from the trash")
	op.path += "/restore"
	add(a, op, func(ctx context.Context, in *struct {
		Place
		Match
		Body Restore
	}) (*Output[resource.Accepted[*resource.Volume]], error) {
		var v *resource.Volume
		var task string
		err := trash.retry(ctx, in.Place, in.Match, func(t *resource.Trash) (err error) {
			v, task, err = a.restore(ctx, t, in.Body)
			return err
		})
		if err != nil {
			return nil, err
		}
		return accepted(v, task), a.showVolumes(ctx, v)
	})
}

// toTrash puts a volume into the trash, if anything is in it that could be had back, and says so.
func (a *API) toTrash(ctx context.Context, v *resource.Volume, purge bool) (done bool, err error) {
	if purge {
		return false, nil
	}
	ws, err := store.Of[resource.Workspace](a.store).Get(ctx, v.WorkspaceKey())
	if err != nil {
		return false, err
	}
	now := time.Now().UTC()
	t := v.ToTrash(ws, now)
	if t == nil {
		return false, nil
	}
	if err := a.cfg.Volumes.Needed(ctx, v); err != nil {
		return false, err
	}
	if err := a.store.Commit(store.WithReserve(ctx), a.store.TrashOps(v, t)...); err != nil {
		return false, err
	}
	v.DeletedAt, v.Status.Trash = &now, t.Name
	return true, nil
}

// restore makes of what is in the trash a volume again, in one commit.
func (a *API) restore(ctx context.Context, t *resource.Trash, to Restore) (*resource.Volume, string, error) {
	place := t.Account + "/" + t.Organization + "/"
	workspace, name := cmp.Or(to.Workspace, t.Spec.Workspace), cmp.Or(to.Volume, t.Spec.Volume)
	switch c := t.Status.Conditions.Get(resource.VolumeKept); {
	case t.Deleting():
		return nil, "", conflict("conflict", "It is being deleted with all data in it.", "")
	case c != nil && c.Final:
		return nil, "", conflict("conflict", capital(c.Message)+".", "Delete it: `mp volumes trash purge "+t.Name+"`.")
	}
	if err := resource.CheckName("volume", name); err != nil {
		return nil, "", invalid("body.volume", err.Error(), "")
	}
	if strings.HasPrefix(name, claimedPrefix) {
		return nil, "", invalid("body.volume", "names that begin with "+claimedPrefix+" are of volumes that were made for claims",
			"Choose another name: `mp volumes trash restore "+t.Name+" --as NAME`.")
	}
	ws, err := store.Of[resource.Workspace](a.store).Get(ctx, place+workspace)
	switch {
	case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey):
		return nil, "", newProblem(http.StatusNotFound, "not-found",
			fmt.Sprintf("There is no workspace %q in the organization.", workspace), "Choose another with `--to WORKSPACE`, or make one.")
	case err != nil:
		return nil, "", err
	case ws.Deleting():
		return nil, "", deleting("workspace", ws.Name)
	}
	elsewhere := ws.UID != t.Spec.WorkspaceUID
	if elsewhere && !t.Status.Conditions.Is(resource.VolumeKept) {
		return nil, "", conflict("conflict", "Its host has not put it away yet: machines of its workspace may still write to it.",
			"Try it again in a moment; `mp volumes trash show "+t.Name+"` says more.")
	}
	if elsewhere && t.Spec.Was.Class == resource.SharedVolume && t.Status.FirstUID != 0 {
		return nil, "", conflict("not-possible", "Its files belong to users of the workspace that it was of, since it is from before "+
			"shared volumes had users of their own.", "Bring it back to that workspace, and copy what is in it by a pod.")
	}
	if err := access.Authorize(who(ctx), "volumes.put", t.Account, t.Organization); err != nil {
		return nil, "", err
	}
	v := t.Restored(ws.Key(), name)
	// It counted all the time; but of what is granted at once, one count may have missed it.
	_, granted, err := a.grant(ctx, t.Account, resource.Limits{})
	if err != nil {
		return nil, "", err
	}
	there := store.Of[resource.Workspace](a.store).ModifyOp(ws.Key(), func(now *resource.Workspace) error {
		if now.UID != ws.UID || now.Deleting() {
			return store.ErrConflict // which looks anew
		}
		return store.ErrSkip
	})
	ops := []store.Op{granted, there,
		store.Of[resource.Trash](a.store).DeleteOp(t), store.Of[resource.Volume](a.store).CreateOp(v)}
	held, err := a.holds(ctx, ws, t)
	if err != nil {
		return nil, "", err
	}
	if elsewhere && t.Spec.Was.Class != resource.SharedVolume {
		owner, err := a.ownerOf(ctx, t)
		if err != nil {
			return nil, "", err
		}
		held = append(held, owner...)
	}
	task, begin := a.cfg.Tasks.Begin("volume.restore", who(ctx).Name(), v)
	commit := func() error { return a.store.Commit(store.WithReserve(ctx), append(ops, append(held, begin)...)...) }
	if elsewhere {
		err = a.cfg.Volumes.Restore(ctx, v, commit)
	} else {
		err = commit()
	}
	if errors.Is(err, store.ErrExists) {
		return nil, "", conflict("conflict", fmt.Sprintf("There is a volume %q in workspace %s.", name, ws.Name),
			"Choose another name: `mp volumes trash restore "+t.Name+" --as NAME`.")
	}
	return v, task.Name, err
}

// ownerOf are writes by which nobody ever gets the number that files of a volume belong to.
func (a *API) ownerOf(ctx context.Context, t *resource.Trash) (ops []store.Op, err error) {
	claims := store.Of[resource.VNI](a.store)
	all, _, err := claims.List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.Network == t.Spec.NetworkID && !n.Owns {
			ops = append(ops, claims.ModifyOp(n.Key(), func(n *resource.VNI) error { n.Owns = true; return nil }))
		}
	}
	return ops, nil
}

// holds are writes by which the numbers of a workspace are kept for the host of a volume that comes
// to it: no machine of it may have been there.
func (a *API) holds(ctx context.Context, ws *resource.Workspace, t *resource.Trash) (ops []store.Op, err error) {
	if t.Status.NodeUID == "" { // a shared one has no numbers of a workspace's
		return nil, nil
	}
	claims := store.Of[resource.VNI](a.store)
	for _, name := range ws.Status.Claims() {
		if _, err := claims.Get(ctx, name); errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		ops = append(ops, claims.ModifyOp(name, func(n *resource.VNI) error {
			if n.UID != ws.UID || n.Nodes[t.Status.NodeUID] != "" {
				return store.ErrSkip
			}
			if n.Nodes == nil {
				n.Nodes = map[string]string{}
			}
			n.Nodes[t.Status.NodeUID] = t.Status.Node
			return nil
		}))
	}
	return ops, nil
}
