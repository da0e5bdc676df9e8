package api

import (
	"context"
	"errors"

	"github.com/multipaas/multipaas/appliance/failpoint"
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
	add(a, op("organizations.list", "GET /v1/accounts/{account}/organizations",
		"The organizations of an account that one has a role in"),
		a.listOrganizations)
	organizations := collection[resource.Organization, *resource.Organization]{
		api:     a,
		noun:    "organization",
		path:    "/v1/accounts/{account}/organizations",
		example: "web",
		fresh: func(place, name string) *resource.Organization {
			return &resource.Organization{InAccount: resource.NewInAccount(place, name)}
		},
	}
	organizations.get("One organization")
	organizations.put("Make an organization")
	add(a, op("organizations.delete", "DELETE "+one, "Delete an organization that has neither workspaces nor images"),
		a.deleteOrganization)

	members := collection[resource.Membership, *resource.Membership]{
		api:        a,
		noun:       "member",
		path:       one + "/members",
		operations: "members",
	}
	members.list("Who has a role in an organization")
	add(a, op("members.put", "PUT "+one+"/members/{user}", "Give a user a role in an organization"), a.putMember)
	add(a, op("members.delete", "DELETE "+one+"/members/{user}", "Take a user's role in an organization"),
		func(ctx context.Context, in *MemberPath) (*Empty, error) {
			return a.deleteMembership(ctx, &resource.Membership{
				Meta:         resource.Meta{Name: in.User},
				Account:      in.Account,
				Organization: in.Organization,
			})
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
		images := content{what: "images"}
		if a.cfg.Images != nil {
			list, err := a.cfg.Images.List(ctx, in.Account, in.Organization)
			if err != nil {
				return err
			}
			for _, image := range list {
				images.names = append(images.names, image.Name)
			}
		}
		return a.vacant(ctx, resource.OfOrganization, in.key(), images)
	}
	if err := empty(); err != nil {
		return nil, err
	}
	if _, err := store.Of[resource.Organization](a.store).MarkDeleted(ctx, in.key()); err != nil {
		return nil, err
	}
	failpoint.Reach("organization/delete/marked")
	if err := empty(); err != nil {
		return nil, err
	}
	if err := a.dropMemberships(ctx, in.key()); err != nil {
		return nil, err
	}
	failpoint.Reach("organization/delete/roles-dropped")
	if a.cfg.Images != nil {
		if err := a.cfg.Images.RemoveAll(ctx, in.Account, in.Organization); err != nil {
			return nil, err
		}
	}
	failpoint.Reach("organization/delete/images-removed")
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
	m := &resource.Membership{
		Meta:         resource.Meta{Name: in.User},
		Account:      in.Account,
		Organization: in.Organization,
		Role:         in.Body.Role,
	}
	out, err := a.putMembership(ctx, m, open(store.Of[resource.Organization](a.store), in.key(), "organization"), in.MatchNew)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing("organization", in.Organization)
	}
	return out, err
}
