package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

func (a *API) invitationOperations() {
	add(a, op("invitations.list", "GET /v1/accounts/{account}/invitations", "Who was offered a role and has not answered yet"),
		a.listInvitations)
	add(a, op("invitations.own", "GET /v1/session/invitations", "Which roles one was offered oneself"),
		func(ctx context.Context, _ *struct{}) (*Output[resource.List[*resource.Invitation]], error) {
			items, err := a.id.Invitations(ctx, who(ctx))
			return ok(listOf(withoutCodes(items), "")), err
		})
	add(a, op("invitations.accept", "POST /v1/session/invitations/accept", "Take a role that one was offered"),
		func(ctx context.Context, in *struct{ Body resource.Answer }) (*Output[*resource.Membership], error) {
			role, err := a.id.Accept(ctx, who(ctx), in.Body.Account, in.Body.Organization, in.Body.Code)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, role), nil
		})
	add(a, op("invitations.decline", "POST /v1/session/invitations/decline", "Decline a role that one was offered"),
		func(ctx context.Context, in *struct{ Body resource.Answer }) (*Empty, error) {
			return &Empty{}, a.id.Decline(ctx, who(ctx), in.Body.Account, in.Body.Organization)
		})
}

func withoutCodes(items []*resource.Invitation) []*resource.Invitation {
	for _, i := range items {
		i.CodeHash = ""
	}
	return items
}

// listInvitations shows an owner all of them, and an admin those to his
// organizations. There are few: see identity.
func (a *API) listInvitations(ctx context.Context, in *AccountPath) (*Output[resource.List[*resource.Invitation]], error) {
	waiting, err := all(ctx, store.Of[resource.Invitation](a.store), in.Account)
	if err != nil {
		return nil, err
	}
	var items []*resource.Invitation
	for _, i := range waiting {
		op := access.OpGiveRole
		if i.Organization == "" {
			op = access.OpGiveOwner
		}
		if access.Authorize(who(ctx), op, i.Account, i.Organization) == nil {
			items = append(items, i)
		}
	}
	return ok(listOf(withoutCodes(items), "")), nil
}

// invite offers a role that may not be given without being asked for. The answer
// is the same whether there is such a user or not.
func (a *API) invite(ctx context.Context, m *resource.Membership) (*Output[*resource.Membership], error) {
	offer := resource.Invitation{Meta: resource.Meta{Name: m.Name}, Account: m.Account, Organization: m.Organization, Role: m.Role,
		By: who(ctx).User}
	made, code, err := a.id.Invite(ctx, offer, func(ctx context.Context) ([]store.Op, error) {
		// Nothing is asked for: it writes the account, so that the bound holds.
		_, changes, err := a.grant(ctx, m.Account, resource.Limits{})
		if err != nil || m.Organization == "" {
			return []store.Op{changes}, err
		}
		organizations, key := store.Of[resource.Organization](a.store), m.Account+"/"+m.Organization
		if _, err := find(ctx, organizations, key); err != nil {
			return nil, err
		}
		return []store.Op{changes, open(organizations, key)}, nil
	})
	if err != nil {
		return nil, err
	}
	out := made.Membership()
	out.Offer = &resource.Offer{Code: code, ExpiresAt: made.ExpiresAt}
	return &Output[*resource.Membership]{Status: http.StatusAccepted, Body: out}, nil
}

// consents says whether a user may be given a role in account without asking him:
// he counts there, or it is himself or a sysadmin who gives it.
func (a *API) consents(ctx context.Context, user *resource.User, account string) (bool, error) {
	if by := who(ctx); by.Sysadmin || by.User == user.Name {
		return true, nil
	}
	if user.Account != account {
		return false, nil
	}
	of, err := find(ctx, store.Of[resource.Account](a.store), account)
	return err == nil && of.UID == user.AccountUID, err
}

// sayWho adds to roles where their users come from.
func (a *API) sayWho(ctx context.Context, roles ...*resource.Membership) error {
	for _, m := range roles {
		user, err := store.Of[resource.User](a.store).Get(ctx, m.Name)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		m.UserAccount, m.UserBy = user.Account, user.CreatedBy
	}
	return nil
}
