package api

import (
	"context"
	"errors"

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
	organizations := &collection[resource.Organization, *resource.Organization]{
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
	organizations.drop = organizations.dropPlace
	organizations.remove("Delete an organization that has neither workspaces nor images")

	members := collection[resource.Membership, *resource.Membership]{
		api:        a,
		noun:       "member",
		path:       one + "/members",
		operations: "members",
		show:       a.sayWho,
	}
	members.list("Who has a role in an organization")
	add(a, op("members.put", "PUT "+one+"/members/{user}",
		"Give a user a role in an organization, or offer it to one of another account"),
		a.putMember)
	add(a, op("members.delete", "DELETE "+one+"/members/{user}", "Take a user's role in an organization, or the offer of one"),
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
		if _, err := find(ctx, store.Of[resource.Account](a.store), in.Account); err != nil {
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
	out, err := a.putMembership(ctx, m, open(store.Of[resource.Organization](a.store), in.key()), in.MatchNew)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing("organization", in.Organization)
	}
	return out, err
}
