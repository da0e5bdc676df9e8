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
		if body.Spec.Domains != nil {
			now.Spec.Domains = nil
			for _, d := range *body.Spec.Domains {
				now.Spec.Domains = append(now.Spec.Domains, strings.ToLower(d))
			}
			slices.Sort(now.Spec.Domains)
			now.Spec.Domains = slices.Compact(now.Spec.Domains)
		}
	})
	accounts.check = a.checkDomains
	accounts.drop = accounts.dropPlace
	accounts.remove("Delete an account that has no organizations")

	add(a, op("owners.list", "GET /v1/accounts/{account}/owners", "The owners of an account"),
		func(ctx context.Context, in *struct {
			AccountPath
			Page
		}) (*Output[resource.List[*resource.Membership]], error) {
			out, err := page(ctx, store.Of[resource.Membership](a.store), in.Account+"/-", in.Page)
			if err != nil {
				return nil, err
			}
			return out, a.sayWho(ctx, out.Body.Items...)
		})
	add(a, op("owners.put", "PUT /v1/accounts/{account}/owners/{user}",
		"Make a user an owner of an account, or offer it to one of another"),
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

// checkDomains says which domains can't be the account's.
func (a *API) checkDomains(ctx context.Context, now, _ *resource.Account) error {
	var wrong []ProblemField
	for _, d := range now.Spec.Domains {
		if err := resource.CheckDomain(d); err != nil {
			wrong = append(wrong, ProblemField{Location: "body.spec.domains", Message: err.Error()})
		}
	}
	if wrong != nil {
		return invalidFields("", wrong)
	}
	accounts, err := all(ctx, store.Of[resource.Account](a.store), "")
	if err != nil {
		return err
	}
	for _, other := range accounts {
		for _, theirs := range other.Spec.Domains {
			for _, d := range now.Spec.Domains {
				if other.Name != now.Name && (resource.InDomain(d, theirs) || resource.InDomain(theirs, d)) {
					return conflict("conflict", fmt.Sprintf("The domain %s is the account %q's, by %s.", d, other.Name, theirs),
						"Take it from that account first (`mp accounts set`).")
				}
			}
		}
	}
	return nil
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

// putMembership gives a role, or offers it if the user has to be asked. within is
// the check that the place is still there.
func (a *API) putMembership(
	ctx context.Context, m *resource.Membership, within store.Op, match MatchNew,
) (*Output[*resource.Membership], error) {
	m.Name = strings.ToLower(m.Name)
	var out *Output[*resource.Membership]
	err := retry(ctx, func() error {
		old, err := store.Of[resource.Membership](a.store).Get(ctx, m.Key())
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := match.check(nil); err != nil {
				return err
			}
			user, err := a.asked(ctx, m)
			if err != nil {
				return err
			}
			if user == nil {
				out, err = a.invite(ctx, m)
				return err
			}
			fresh := *m
			// The user must be there when the role is stored, or the role would wait
			// for the next one of that name.
			err = a.store.Commit(ctx, within, open(store.Of[resource.User](a.store), user.Name),
				store.Of[resource.Membership](a.store).CreateOp(&fresh))
			out = object(http.StatusCreated, &fresh)
			return err
		case errors.Is(err, store.ErrInvalidKey):
			return noUser(m.Name)
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
	if err == nil && out.Body.Offer == nil {
		// What was offered before is given, or another role is: or it could be taken up
		// after this one was lost again.
		_, err = a.id.Withdraw(ctx, m.Key())
	}
	return out, err
}

// asked returns the user whom a role is given to; nil if it may only be offered to
// him, whether he is there or not.
func (a *API) asked(ctx context.Context, m *resource.Membership) (*resource.User, error) {
	user, err := store.Of[resource.User](a.store).Get(ctx, m.Name)
	if err == nil {
		if consents, err := a.consents(ctx, user, m.Account); err != nil || !consents {
			return nil, err
		}
		return user, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if by := who(ctx); !by.Sysadmin {
		// Of his account's own addresses he may know that nobody has one.
		if reserved, err := a.id.Reserved(ctx, m.Name); err != nil || reserved != m.Account {
			return nil, err
		}
	}
	return nil, noUser(m.Name)
}

func noUser(name string) error {
	return newProblem(http.StatusNotFound, "not-found", fmt.Sprintf("There is no user %q.", name),
		"Let him register, or make him with `mp users create`, first.")
}

// deleteMembership takes a role, or the offer of it.
func (a *API) deleteMembership(ctx context.Context, m *resource.Membership) (*Empty, error) {
	// The offer first: it may become the role, but not the other way round.
	m.Name = strings.ToLower(m.Name)
	offered, err := a.id.Withdraw(ctx, m.Key())
	if err != nil {
		return nil, err
	}
	return &Empty{}, retry(ctx, func() error {
		stored, err := store.Of[resource.Membership](a.store).Get(ctx, m.Key())
		if err == nil {
			// As it was read: of two who take a role at once, one has found none.
			err = store.Of[resource.Membership](a.store).Delete(ctx, stored)
		}
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
			if offered {
				return nil
			}
			return &access.Refusal{Reason: access.ErrNotFound, Text: fmt.Sprintf("%s has no role here.", m.Name)}
		}
		return err
	})
}

// dropMemberships removes all roles below prefix, and offers of some.
func (a *API) dropMemberships(ctx context.Context, prefix string) error {
	if err := a.id.WithdrawAll(ctx, prefix); err != nil {
		return err
	}
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
