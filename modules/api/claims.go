package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
)

// ClaimPath names a claim in a namespace of a workspace.
type ClaimPath struct {
	NamespacePath
	Claim string `path:"claim" maxLength:"253" example:"data"`
}

// NewClaim is the body of claims.put.
type NewClaim struct {
	Spec struct {
		Class     string `json:"class,omitempty" maxLength:"253" example:"local" doc:"StorageClass; left out: the default one"`
		SizeBytes int64  `json:"sizeBytes" minimum:"1" maximum:"1125899906842624" example:"1073741824"`
	} `json:"spec"`
}

// ClaimOfVolume is the body of volumes.bind.
type ClaimOfVolume struct {
	Namespace string `json:"namespace,omitempty" maxLength:"63" default:"default" example:"staging"`
	Claim     string `json:"claim,omitempty" maxLength:"253" example:"data" doc:"Left out: as the volume is called"`
}

func (a *API) claimOperations() {
	const many = workspacesPath + "/{workspace}/namespaces/{namespace}/claims"
	add(a, op("claims.list", "GET "+many, "The claims in a namespace of a workspace, as the user may see them there"),
		func(ctx context.Context, in *NamespacePath) (*Output[resource.List[resource.Claim]], error) {
			ws, err := a.workspace(ctx, in.WorkspacePath)
			if err != nil {
				return nil, err
			}
			claims, err := a.cfg.Claims.List(ctx, ws, a.id.KubeUser(who(ctx), ws), in.Namespace)
			return ok(listOf(claims, "")), err
		})
	put := op("claims.put", "PUT "+many+"/{claim}", "Make a claim, for which the platform makes a volume")
	add(a, put.answers(http.StatusCreated),
		func(ctx context.Context, in *struct {
			ClaimPath
			MatchNew
			Body NewClaim
		}) (*Output[resource.Claim], error) {
			ws, err := a.openWorkspace(ctx, in.WorkspacePath)
			if err != nil {
				return nil, err
			}
			want := resource.Claim{Namespace: in.Namespace, Name: in.Claim, Class: in.Body.Spec.Class, SizeBytes: in.Body.Spec.SizeBytes}
			now, made, err := a.cfg.Claims.Create(ctx, ws, a.id.KubeUser(who(ctx), ws), want)
			switch {
			case err != nil:
				return nil, err
			case made:
				return &Output[resource.Claim]{Status: http.StatusCreated, Body: now}, nil
			}
			if err := in.MatchNew.check(&resource.Meta{}); err != nil {
				return nil, err
			}
			if now.SizeBytes < want.SizeBytes || want.Class != "" && now.Class != want.Class {
				return nil, conflict("conflict", fmt.Sprintf("There is a claim %q already, of class %s, with %s.",
					in.Claim, now.Class, resource.Bytes.Text(now.SizeBytes)), "Choose another name.")
			}
			return ok(now), nil
		})
	add(a, op("claims.delete", "DELETE "+many+"/{claim}", "Delete a claim, and the volume that was made for it"),
		func(ctx context.Context, in *ClaimPath) (*Empty, error) {
			ws, err := a.workspace(ctx, in.WorkspacePath)
			if err != nil {
				return nil, err
			}
			err = a.cfg.Claims.Delete(ctx, ws, a.id.KubeUser(who(ctx), ws), in.Namespace, in.Claim)
			return &Empty{}, err
		})
}

// openWorkspace is workspace, for what makes something in it.
func (a *API) openWorkspace(ctx context.Context, path WorkspacePath) (*resource.Workspace, error) {
	ws, err := a.workspace(ctx, path)
	if err == nil && ws.Deleting() {
		err = deleting("workspace", ws.Name)
	}
	return ws, err
}

// bindOperations adds what gives volumes to claims and takes them back.
//
// Which claim has a volume is written before anything is made in the cluster, and cleared
// after all of it is gone: as long as it stands there, nobody else gets the volume and
// nobody deletes it. Whoever is cut off in between types the same again, or unbind.
func (a *API) bindOperations(volumes *collection[resource.Volume, *resource.Volume]) {
	change := func(verb, method, summary string) operation {
		op := volumes.operation(verb, method, summary)
		op.path += "/claim"
		return op
	}
	type output = Output[resource.Accepted[*resource.Volume]]
	workspaceOf := func(ctx context.Context, in Place) (*resource.Workspace, error) {
		return a.openWorkspace(ctx, WorkspacePath{OrganizationPath{AccountPath{in.names[0]}, in.names[1]}, in.names[2]})
	}
	// claimed writes which claim has a volume.
	claimed := func(ctx context.Context, in Place, match Match, check func(was *resource.Volume) error, claim string,
	) (out *written[*resource.Volume], err error) {
		err = volumes.retry(ctx, in, match, func(v *resource.Volume) (err error) {
			if v.Deleting() {
				return deleting("volume", v.Name)
			}
			if err := check(v); err != nil {
				return err
			}
			out, err = volumes.update(ctx, v, func(now *resource.Volume) {
				if now.Spec.Claim != claim {
					now.Spec.Claim, now.Spec.Provisioned = claim, false
				}
			})
			return err
		})
		return out, err
	}
	add(a, change("bind", http.MethodPut, "Give a volume to a claim, which is made"),
		func(ctx context.Context, in *struct {
			Place
			Match
			Body ClaimOfVolume
		}) (*output, error) {
			ws, err := workspaceOf(ctx, in.Place)
			if err != nil {
				return nil, err
			}
			claim := in.Body.Namespace + "/" + cmp.Or(in.Body.Claim, in.name())
			v, err := volumes.find(ctx, in.Place)
			if err != nil {
				return nil, err
			}
			user, may := a.id.KubeUser(who(ctx), ws), func(v *resource.Volume) error { return mayBind(v, claim) }
			if err := may(v); err != nil {
				return nil, err
			}
			// What the cluster refuses is not written down first.
			v.Spec.Claim = claim
			if err := a.cfg.Claims.CheckBind(ctx, ws, user, v); err != nil {
				return nil, err
			}
			out, err := claimed(ctx, in.Place, in.Match, may, claim)
			if err != nil {
				return nil, err
			}
			if err := a.cfg.Claims.Bind(ctx, ws, user, out.obj); err != nil {
				return nil, keptFor(err, in.name())
			}
			return accepted(out.obj, out.task), volumes.shown(ctx, out.obj)
		})
	add(a, change("unbind", http.MethodDelete, "Take a volume from its claim, which is deleted, and keep what is in it"),
		func(ctx context.Context, in *struct {
			Place
			Match
		}) (*output, error) {
			ws, err := workspaceOf(ctx, in.Place)
			if err != nil {
				return nil, err
			}
			v, err := volumes.find(ctx, in.Place)
			if err != nil {
				return nil, err
			}
			if err := in.Match.check(v.Metadata()); err != nil {
				return nil, err
			}
			if v.Spec.Claim == "" {
				return accepted(v, ""), volumes.shown(ctx, v)
			}
			if err := a.cfg.Claims.Release(ctx, ws, a.id.KubeUser(who(ctx), ws), v); err != nil {
				return nil, err
			}
			out, err := claimed(ctx, in.Place, Match{}, func(now *resource.Volume) error {
				if now.UID != v.UID || now.Spec.Claim != v.Spec.Claim {
					return conflict("conflict", "The volume was given to another claim meanwhile.", "Look at it again.")
				}
				return nil
			}, "")
			if err != nil {
				return nil, err
			}
			// It is done, whatever becomes of the volume: it may be lost with its host.
			return accepted(out.obj, ""), volumes.shown(ctx, out.obj)
		})
}

// keptFor is what a cluster refuses to bind that it would have taken a moment before: of that the volume keeps the
// claim's name, see Bind.
func keptFor(err error, volume string) error {
	var no *access.Refusal
	if !errors.As(err, &no) {
		return err
	}
	more := *no
	more.Remedy = strings.TrimSpace(no.Remedy + " The volume is kept for that claim until then; to let go of it: " +
		"`mp volumes unbind " + volume + "`.")
	return &more
}

// mayBind says why a claim can't have a volume.
func mayBind(v *resource.Volume, claim string) error {
	switch {
	case v.Deleting():
		return deleting("volume", v.Name)
	case v.Spec.Claim == claim:
		return nil // it was begun
	case v.Spec.Claim != "":
		return conflict("in-use", fmt.Sprintf("The claim %s has the volume.", v.Spec.Claim),
			fmt.Sprintf("Let go of it first: `mp volumes unbind %s`.", v.Name))
	case v.Status.Phase == resource.Ready,
		v.Status.Phase == resource.Degraded && v.Status.Conditions.Is(resource.VolumeReady): // a copy is missing or filled
		return nil
	}
	why := "its host has not reported it yet"
	for _, c := range v.Status.Conditions {
		if c.Status != resource.True && c.Message != "" {
			why = c.Message
		}
	}
	return conflict("not-ready", fmt.Sprintf("The volume is not there yet: %s.", why),
		"Wait until it is Ready; `mp volumes show "+v.Name+"` says more.")
}
