package identity

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Admit is Authorize for what comes in from outside: it loads the memberships
// that the decision needs. Operations on objects (OfObject) pass if somebody is
// logged in; they are authorized again, by name, once the object is known.
func (id *Identity) Admit(ctx context.Context, p *access.Principal, op access.Operation, account, organization string) error {
	rule, ok := access.Lookup(op)
	if err := rule.Newcomer(p); err != nil {
		return err
	}
	if ok && rule.Scope == access.OfObject && account == "" {
		if p == nil {
			return access.Unauthenticated()
		}
		return nil
	}
	// What can't be a name can't be a key either.
	for _, name := range []string{account, organization} {
		if name == "" || resource.CheckName("", name) == nil {
			continue
		}
		if p == nil {
			return access.Unauthenticated()
		}
		return access.NotFound()
	}
	inTenancy := rule.Allow&(access.Developer|access.Admin|access.Owner) != 0 || rule.Scope != access.Platform
	if ok && p != nil && rule.Allow&access.User == 0 && inTenancy {
		// Also what only a sysadmin may do in an account: it decides whether the
		// account is there for who asks.
		// An operation that decides by the account may name an organization too,
		// as the one that makes it does.
		switch rule.Scope {
		case access.Platform:
			account, organization = "", ""
		case access.InAccount:
			organization = ""
		}
		if err := id.LoadMemberships(ctx, p, account, organization); err != nil {
			return err
		}
	}
	return access.Authorize(p, op, account, organization)
}

// LoadMemberships reads p's memberships in organization of account into p; an
// empty organization stands for all in the account, an empty account for all at
// all. They are read from the store every time: what was revoked is gone with
// the next request, on every server.
func (id *Identity) LoadMemberships(ctx context.Context, p *access.Principal, account, organization string) error {
	if p == nil || p.User == "" {
		return nil
	}
	p.Memberships = nil
	memberships := store.Of[resource.Membership](id.store)
	var keys []string
	if account != "" && organization != "" {
		for _, org := range []string{"", organization} {
			keys = append(keys, (&resource.Membership{Meta: resource.Meta{Name: p.User}, Account: account, Organization: org}).Key())
		}
	} else {
		// The keys tell whose they are: of the others' nothing is read but those.
		all, err := memberships.Keys(ctx, account)
		if err != nil {
			return err
		}
		keys = slices.DeleteFunc(all, func(key string) bool { return !strings.HasSuffix(key, "/"+p.User) })
	}
	for _, key := range keys {
		m, err := memberships.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		p.Memberships = append(p.Memberships, *m)
	}
	return nil
}
