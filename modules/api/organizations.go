package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// MemberPath names a member of an organization.
type MemberPath struct {
	OrganizationPath
	UserPath
}

func (a *API) organizationOperations() {
	const one = "/v1/accounts/{account}/organizations/{organization}"
	add(a, operation{id: "organizations.list", method: http.MethodGet, path: "/v1/accounts/{account}/organizations", summary: "The organizations of an account that one has a role in"}, a.listOrganizations)
	add(a, operation{id: "organizations.get", method: http.MethodGet, path: one, summary: "One organization"},
		func(ctx context.Context, in *OrganizationPath) (*Output[*resource.Organization], error) {
			org, err := find(ctx, store.Of[resource.Organization](a.store), in.key(), "organization", in.Organization)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, org), nil
		})
	add(a, operation{id: "organizations.put", method: http.MethodPut, path: one, summary: "Make an organization"}, a.putOrganization)
	add(a, operation{id: "organizations.delete", method: http.MethodDelete, path: one, summary: "Delete an organization that has neither workspaces nor images"}, a.deleteOrganization)

	add(a, operation{id: "members.list", method: http.MethodGet, path: one + "/members", summary: "Who has a role in an organization"},
		func(ctx context.Context, in *struct {
			OrganizationPath
			Page
		}) (*Output[resource.List[*resource.Membership]], error) {
			if _, err := find(ctx, store.Of[resource.Organization](a.store), in.key(), "organization", in.Organization); err != nil {
				return nil, err
			}
			return page(ctx, store.Of[resource.Membership](a.store), in.key(), in.Page)
		})
	add(a, operation{id: "members.put", method: http.MethodPut, path: one + "/members/{user}", summary: "Give a user a role in an organization"}, a.putMember)
	add(a, operation{id: "members.delete", method: http.MethodDelete, path: one + "/members/{user}", summary: "Take a user's role in an organization"},
		func(ctx context.Context, in *MemberPath) (*Empty, error) {
			return a.deleteMembership(ctx, &resource.Membership{Meta: resource.Meta{Name: in.User}, Account: in.Account, Organization: in.Organization})
		})
}

func (a *API) listOrganizations(ctx context.Context, in *struct {
	AccountPath
	Page
}) (*Output[resource.List[*resource.Organization]], error) {
	p := who(ctx)
	if p.RoleIn(in.Account, "") >= access.Owner {
		if _, err := find(ctx, store.Of[resource.Account](a.store), in.Account, "account", in.Account); err != nil {
			return nil, err
		}
		return page(ctx, store.Of[resource.Organization](a.store), in.Account, in.Page)
	}
	var names []string
	for _, m := range p.Memberships {
		if m.Account == in.Account && m.Organization != "" {
			names = append(names, m.Organization)
		}
	}
	return pick(ctx, store.Of[resource.Organization](a.store), in.Account, names, in.Page)
}

// OrganizationBody is the body of organizations.put: nothing that could be set
// so far, but what was got may be sent back.
type OrganizationBody = resource.Organization

func (a *API) putOrganization(ctx context.Context, in *struct {
	OrganizationPath
	MatchNew
	Body *OrganizationBody
}) (*Output[*resource.Organization], error) {
	if err := resource.CheckName("organization", in.Organization); err != nil {
		return nil, invalid("path.organization", err.Error(), "")
	}
	var out *Output[*resource.Organization]
	err := retry(ctx, func() error {
		old, err := store.Of[resource.Organization](a.store).Get(ctx, in.key())
		if err == nil {
			if err := in.check(old.Metadata()); err != nil {
				return err
			}
			if old.Deleting() {
				return deleting("organization", in.Organization)
			}
			out = object(http.StatusOK, old)
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := in.check(nil); err != nil {
			return err
		}
		org := &resource.Organization{InAccount: resource.InAccount{Meta: resource.Meta{Name: in.Organization}, Account: in.Account}}
		granted, err := a.grant(ctx, in.Account, resource.Limits{Organizations: 1})
		if err != nil {
			return err
		}
		err = a.store.Commit(ctx, granted, store.Of[resource.Organization](a.store).CreateOp(org))
		out = object(http.StatusCreated, org)
		return goneMeanwhile(err, "account", in.Account)
	})
	return out, err
}

// deleteOrganization works as deleteAccount does.
func (a *API) deleteOrganization(ctx context.Context, in *struct {
	OrganizationPath
	Match
}) (*Empty, error) {
	org, err := find(ctx, store.Of[resource.Organization](a.store), in.key(), "organization", in.Organization)
	if err != nil {
		return nil, err
	}
	if err := in.check(org.Metadata()); err != nil {
		return nil, err
	}
	empty := func() error {
		workspaces, err := all(ctx, store.Of[resource.Workspace](a.store), in.key())
		if err != nil {
			return err
		}
		content := map[string][]string{"workspaces": namesOf(workspaces)}
		if a.cfg.Images != nil {
			images, err := a.cfg.Images.List(ctx, in.Account, in.Organization)
			if err != nil {
				return err
			}
			for _, image := range images {
				content["images"] = append(content["images"], image.Name)
			}
		}
		return vacant("organization", in.Organization, content)
	}
	if err := empty(); err != nil {
		return nil, err
	}
	if _, err := store.Of[resource.Organization](a.store).MarkDeleted(ctx, in.key()); err != nil {
		return nil, err
	}
	faultpoint.Reach("organization/delete/marked")
	if err := empty(); err != nil {
		return nil, err
	}
	if err := a.dropMemberships(ctx, in.key()); err != nil {
		return nil, err
	}
	faultpoint.Reach("organization/delete/roles-dropped")
	if a.cfg.Images != nil {
		if err := a.cfg.Images.RemoveAll(ctx, in.Account, in.Organization); err != nil {
			return nil, err
		}
	}
	faultpoint.Reach("organization/delete/images-removed")
	org.Revision = 0 // nothing is left that could have changed
	return &Empty{}, store.Of[resource.Organization](a.store).Delete(ctx, org)
}

// Member is the body of members.put.
type Member struct {
	Role resource.Role `json:"role" required:"true" enum:"admin,developer"`
}

func (a *API) putMember(ctx context.Context, in *struct {
	MemberPath
	MatchNew
	Body Member
}) (*Output[*resource.Membership], error) {
	m := &resource.Membership{Meta: resource.Meta{Name: in.User}, Account: in.Account, Organization: in.Organization, Role: in.Body.Role}
	out, err := a.putMembership(ctx, m, open(store.Of[resource.Organization](a.store), in.key(), "organization"), in.MatchNew)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing("organization", in.Organization)
	}
	return out, err
}
