package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// OwnerPath names an owner of an account.
type OwnerPath struct {
	AccountPath
	UserPath
}

func (a *API) accountOperations() {
	add(a, op("accounts.list", "GET /v1/accounts", "The accounts one has a role in; a sysadmin has one in all"), a.listAccounts)
	accounts := &collection[resource.Account, *resource.Account]{
		api:     a,
		noun:    "account",
		path:    "/v1/accounts",
		example: "acme",
	}
	accounts.get("One account")
	patch(accounts, "Set what an account may have", func(now *resource.Account, body AccountPatch) {
		_ = body.Spec.Limits.apply(&now.Spec.Limits) // it could be applied when it was read
	})
	accounts.drop = accounts.dropPlace
	accounts.remove("Delete an account that has no organizations")

	add(a, op("owners.list", "GET /v1/accounts/{account}/owners", "The owners of an account"),
		func(ctx context.Context, in *struct {
			AccountPath
			Page
		}) (*Output[resource.List[*resource.Membership]], error) {
			return page(ctx, store.Of[resource.Membership](a.store), in.Account+"/-", in.Page)
		})
	add(a, op("owners.put", "PUT /v1/accounts/{account}/owners/{user}", "Make a user an owner of an account"),
		func(ctx context.Context, in *OwnerPath) (*Output[*resource.Membership], error) {
			m := &resource.Membership{Meta: resource.Meta{Name: in.User}, Account: in.Account, Role: resource.RoleOwner}
			return a.putMembership(ctx, m, open(store.Of[resource.Account](a.store), in.Account), MatchNew{})
		})
	add(a, op("owners.delete", "DELETE /v1/accounts/{account}/owners/{user}", "Take an owner's role; somebody must be left"),
		func(ctx context.Context, in *OwnerPath) (*Empty, error) {
			user := strings.ToLower(in.User)
			if last, err := a.id.LastOwner(ctx, in.Account, user); err != nil {
				return nil, err
			} else if last {
				return nil, conflict("in-use", fmt.Sprintf("%s is the last owner of the account.", user),
					"Make somebody else an owner first, or delete the account.")
			}
			return a.deleteMembership(ctx, &resource.Membership{Meta: resource.Meta{Name: user}, Account: in.Account})
		})
}

func (a *API) listAccounts(ctx context.Context, in *Page) (*Output[resource.List[*resource.Account]], error) {
	p := who(ctx)
	if p.Sysadmin {
		return page(ctx, store.Of[resource.Account](a.store), "", *in)
	}
	if err := a.id.LoadMemberships(ctx, p, "", ""); err != nil {
		return nil, err
	}
	var names []string
	for _, m := range p.Memberships {
		names = append(names, m.Account)
	}
	return pick(ctx, store.Of[resource.Account](a.store), "", names, *in)
}

// pick is a page of the resources with the given names below prefix.
func pick[T resource.Object](
	ctx context.Context, kind store.Kind[T], prefix string, names []string, p Page,
) (*Output[resource.List[T]], error) {
	slices.Sort(names)
	var items []T
	for _, name := range slices.Compact(names) {
		if p.After != "" && name <= p.After {
			continue
		}
		if len(items) == p.Limit {
			return ok(listOf(items, items[len(items)-1].Metadata().Name)), nil
		}
		key := name
		if prefix != "" {
			key = prefix + "/" + name
		}
		item, err := kind.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue // a role may outlive its account for a moment
		}
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return ok(listOf(items, "")), nil
}

// dropPlace deletes an account or an organization with the roles in it. It marks
// it first, so that nothing can be created in it any more, and then looks whether
// anything is. What came in between keeps it, marked, until that is gone and the
// request is repeated.
func (c *collection[V, P]) dropPlace(ctx context.Context, place P) error {
	a, scope, key := c.api, resource.Scope(c.noun), place.Key()
	if err := a.vacant(ctx, scope, key); err != nil {
		return err
	}
	if _, err := c.kind().MarkDeleted(ctx, key); err != nil {
		return err
	}
	if scope == resource.OfOrganization {
		failpoint.Reach("organization/delete/marked")
	} else {
		failpoint.Reach("account/delete/marked")
	}
	if err := a.vacant(ctx, scope, key); err != nil {
		return err
	}
	if err := a.dropMemberships(ctx, key); err != nil {
		return err
	}
	if scope == resource.OfAccount {
		failpoint.Reach("account/delete/roles-dropped")
	} else {
		failpoint.Reach("organization/delete/roles-dropped")
		account, organization, _ := strings.Cut(key, "/")
		if err := a.cfg.Images.RemoveAll(ctx, account, organization); err != nil {
			return err
		}
		failpoint.Reach("organization/delete/images-removed")
	}
	place.Metadata().Revision = 0 // nothing is left that could have changed
	return c.kind().Delete(ctx, place)
}

// vacant refuses to delete a place that has something in it, and says what:
// resources that count, and images. What else there is, such as roles, the caller
// removes with the place.
func (a *API) vacant(ctx context.Context, scope resource.Scope, key string) error {
	var parts []string
	found := func(what string, names []string) {
		if len(names) == 0 {
			return
		}
		shown := names[:min(len(names), 5)]
		part := what + " " + strings.Join(shown, ", ")
		if more := len(names) - len(shown); more > 0 {
			part += fmt.Sprintf(" and %d more", more)
		}
		parts = append(parts, part)
	}
	for _, kind := range resource.Counted() {
		if kind.Scope != scope {
			continue
		}
		items, err := all(ctx, store.Any(a.store, kind), key)
		if err != nil {
			return err
		}
		var names []string
		for _, item := range items {
			names = append(names, item.Metadata().Name)
		}
		found(kind.Name, names)
	}
	if scope == resource.OfOrganization {
		account, organization, _ := strings.Cut(key, "/")
		images, err := a.cfg.Images.List(ctx, account, organization)
		if err != nil {
			return err
		}
		var names []string
		for _, image := range images {
			names = append(names, image.Name)
		}
		found("images", names)
	}
	if parts == nil {
		return nil
	}
	text := fmt.Sprintf("The %s %q is not empty: %s.", scope, lastName(key), strings.Join(parts, "; "))
	return conflict("in-use", text, "Delete what is in it first.")
}

// putMembership gives a role. within is the check that the place is still there.
func (a *API) putMembership(
	ctx context.Context, m *resource.Membership, within store.Op, match MatchNew,
) (*Output[*resource.Membership], error) {
	m.Name = strings.ToLower(m.Name)
	user, err := store.Of[resource.User](a.store).Get(ctx, m.Name)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return nil, newProblem(http.StatusNotFound, "not-found", fmt.Sprintf("There is no user %q.", m.Name),
			"Let him register, or make him with `mp users create`, first.")
	}
	if err != nil {
		return nil, err
	}
	var out *Output[*resource.Membership]
	err = retry(ctx, func() error {
		old, err := store.Of[resource.Membership](a.store).Get(ctx, m.Key())
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := match.check(nil); err != nil {
				return err
			}
			fresh := *m
			// The user must be there when the role is stored, or the role would wait
			// for the next one of that name.
			err := a.store.Commit(ctx, within, open(store.Of[resource.User](a.store), user.Name),
				store.Of[resource.Membership](a.store).CreateOp(&fresh))
			out = object(http.StatusCreated, &fresh)
			return err
		case err != nil:
			return err
		}
		if err := match.check(old.Metadata()); err != nil {
			return err
		}
		if old.Role == m.Role {
			out = object(http.StatusOK, old)
			return nil
		}
		old.Role = m.Role
		out = object(http.StatusOK, old)
		err = store.Of[resource.Membership](a.store).Update(ctx, old)
		if errors.Is(err, store.ErrNotFound) {
			// Taken since it was read: it is given anew, or the caller's condition fails.
			err = fmt.Errorf("%w: %w", store.ErrConflict, err)
		}
		return err
	})
	return out, err
}

func (a *API) deleteMembership(ctx context.Context, m *resource.Membership) (*Empty, error) {
	return &Empty{}, retry(ctx, func() error {
		stored, err := store.Of[resource.Membership](a.store).Get(ctx, m.Key())
		if err == nil {
			// As it was read: of two who take a role at once, one has found none.
			err = store.Of[resource.Membership](a.store).Delete(ctx, stored)
		}
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
			return &access.Refusal{Reason: access.ErrNotFound, Text: fmt.Sprintf("%s has no role here.", m.Name)}
		}
		return err
	})
}

// dropMemberships removes all roles below prefix.
func (a *API) dropMemberships(ctx context.Context, prefix string) error {
	roles, err := all(ctx, store.Of[resource.Membership](a.store), prefix)
	if err != nil {
		return err
	}
	for _, m := range roles {
		m.Revision = 0
		if err := store.Of[resource.Membership](a.store).Delete(ctx, m); err != nil {
			return err
		}
	}
	return nil
}
