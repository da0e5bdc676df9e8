package identity

import (
	"context"
	"errors"
	"fmt"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Principal is who is asking. A nil Principal is anonymous.
type Principal struct {
	User     string // e-mail address; empty for a node
	Sysadmin bool
	// Memberships are those that were looked up; see Identity.LoadMemberships.
	Memberships []resource.Membership
	Node        string // name of the node; empty for a user
	Session     *resource.Session
}

// Name is what an audit record calls the principal.
func (p *Principal) Name() string {
	switch {
	case p == nil:
		return "anonymous"
	case p.Node != "":
		return "node:" + p.Node
	}
	return p.User
}

// RoleIn is the highest role of p in organization of account. An empty
// organization stands for any in the account, an empty account for any at all.
func (p *Principal) RoleIn(account, organization string) Roles {
	switch {
	case p == nil:
		return Anonymous
	case p.Node != "":
		return Node
	case p.Sysadmin:
		return Sysadmin
	}
	role := User
	for _, m := range p.Memberships {
		if m.Name != p.User || account != "" && m.Account != account {
			continue
		}
		r := User
		switch {
		case m.Role == resource.RoleOwner && m.Organization == "":
			r = Owner
		case m.Organization == "" || organization != "" && m.Organization != organization:
		case m.Role == resource.RoleAdmin:
			r = Admin
		case m.Role == resource.RoleDeveloper:
			r = Developer
		}
		role = max(role, r)
	}
	return role
}

// Authorize says whether p may do op in organization of account, by the table
// alone: p's memberships must have been loaded. The error is a Refusal:
// ErrUnauthenticated, ErrDenied, or ErrNotFound for what p may not even see.
func (id *Identity) Authorize(p *Principal, op Operation, account, organization string) error {
	rule, ok := id.rules[op]
	if !ok {
		return fmt.Errorf("authorize %s: not in the table", op)
	}
	named := true
	switch rule.Scope {
	case Platform:
		account, organization, named = "", "", false
	case InAccount:
		// A missing name would mean "any": never let that happen by mistake.
		if account == "" {
			return notFound()
		}
		organization = ""
	case InOrganization:
		if account == "" || organization == "" {
			return notFound()
		}
	case OfObject:
		if account == "" {
			// The platform's own: for those whom the table lets do it everywhere.
			if p != nil && p.Node == "" && p.Sysadmin && rule.Allow&Sysadmin != 0 {
				return nil
			}
			if p == nil {
				return unauthenticated()
			}
			return notFound()
		}
	}
	role := p.RoleIn(account, organization)
	switch {
	case role&rule.Allow != 0:
		return nil
	case p == nil:
		return unauthenticated()
	case named && role == User:
		return notFound()
	}
	return &Refusal{Reason: ErrDenied, Text: "You are not allowed to do this.", Remedy: "Ask " + whoMay(rule.Allow) + "."}
}

// Admit is Authorize for what comes in from outside: it loads the memberships
// that the decision needs. Operations on objects (OfObject) pass if somebody is
// logged in; they are authorized again, by name, once the object is known.
func (id *Identity) Admit(ctx context.Context, p *Principal, op Operation, account, organization string) error {
	rule, ok := id.rules[op]
	if ok && rule.Scope == OfObject && account == "" {
		if p == nil {
			return unauthenticated()
		}
		return nil
	}
	// What can't be a name can't be a key either.
	for _, name := range []string{account, organization} {
		if name == "" || resource.CheckName("", name) == nil {
			continue
		}
		if p == nil {
			return unauthenticated()
		}
		return notFound()
	}
	if ok && p != nil && rule.Allow&User == 0 && rule.Allow&(Developer|Admin|Owner) != 0 {
		if rule.Scope == Platform {
			account, organization = "", ""
		}
		if err := id.LoadMemberships(ctx, p, account, organization); err != nil {
			return err
		}
	}
	return id.Authorize(p, op, account, organization)
}

// LoadMemberships reads p's memberships in organization of account into p; an
// empty organization stands for all in the account, an empty account for all at
// all. They are read from the store every time: what was revoked is gone with
// the next request, on every server.
func (id *Identity) LoadMemberships(ctx context.Context, p *Principal, account, organization string) error {
	if p == nil || p.User == "" {
		return nil
	}
	p.Memberships = nil
	if account != "" && organization != "" {
		for _, org := range []string{"", organization} {
			key := (&resource.Membership{Meta: resource.Meta{Name: p.User}, Account: account, Organization: org}).Key()
			m, err := id.store.Memberships().Get(ctx, key)
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
	return each(ctx, id.store.Memberships(), account, func(m *resource.Membership) error {
		if m.Name == p.User {
			p.Memberships = append(p.Memberships, *m)
		}
		return nil
	})
}

func unauthenticated() error {
	return &Refusal{Reason: ErrUnauthenticated, Text: "You are not logged in.", Remedy: "Log in with `mp login`."}
}

func notFound() error {
	return &Refusal{
		Reason: ErrNotFound,
		Text:   "There is no such thing, or you have no role there.",
		Remedy: "Check the name; `mp session` shows where you have a role.",
	}
}

func whoMay(roles Roles) string {
	switch {
	case roles&Admin != 0:
		return "an admin of the organization or an owner of the account"
	case roles&Owner != 0:
		return "an owner of the account"
	case roles&Sysadmin != 0:
		return "a sysadmin of the platform"
	}
	return "somebody else: this is for nodes only"
}
