// Package access is the one authorization table and the decision by it. It
// promises that every decision of the platform is in table.go, and that what
// somebody may not see looks to him exactly like what does not exist.
//
// Parties: identity finds out who is asking and loads his memberships; the API
// asks for a decision before it does anything. Only modules import it.
package access

import (
	"fmt"

	"github.com/multipaas/multipaas/modules/resource"
)

// Principal is who is asking. A nil Principal is anonymous.
type Principal struct {
	User     string // e-mail address; empty for a node
	Account  string // where the user counts; empty: nowhere
	Sysadmin bool
	// FirstPassword: he has logged in with a password that somebody else chose. He
	// is nobody's sysadmin then.
	FirstPassword bool
	// Memberships are those that were looked up for the decision at hand.
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
	case p.FirstPassword:
		return Newcomer
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
func Authorize(p *Principal, op Operation, account, organization string) error {
	rule, ok := Lookup(op)
	if !ok {
		return fmt.Errorf("authorize %s: not in the table", op)
	}
	if err := rule.Newcomer(p); err != nil {
		return err
	}
	named := true
	switch rule.Scope {
	case Platform:
		account, organization, named = "", "", false
	case InAccount:
		// A missing name would mean "any": never let that happen by mistake.
		if account == "" {
			return NotFound()
		}
		organization = ""
	case InOrganization:
		if account == "" || organization == "" {
			return NotFound()
		}
	case OfObject:
		if account == "" {
			// The platform's own: for those whom the table lets do it everywhere.
			if p != nil && p.Node == "" && p.Sysadmin && rule.Allow&Sysadmin != 0 {
				return nil
			}
			if p == nil {
				return Unauthenticated()
			}
			return NotFound()
		}
	}
	role := p.RoleIn(account, organization)
	switch {
	case role&rule.Allow != 0:
		return nil
	case p == nil:
		return Unauthenticated()
	case named && role == User:
		return NotFound()
	}
	return &Refusal{Reason: ErrDenied, Text: "You are not allowed to do this.", Remedy: "Ask " + whoMay(rule.Allow) + "."}
}

// Newcomer refuses who has to change his password first, unless the rule lets him.
func (r Rule) Newcomer(p *Principal) error {
	if p == nil || !p.FirstPassword || r.Allow&Newcomer != 0 {
		return nil
	}
	return FirstPassword()
}

// FirstPassword is the refusal of who has to change his password first.
func FirstPassword() error {
	return &Refusal{
		Reason: ErrDenied,
		Text:   "Your password was chosen by somebody else, and is good for nothing but setting one of your own.",
		Remedy: "Log in with `mp login`, which asks for it, or `mp login --new-password-file FILE`.",
	}
}

// Unauthenticated is the refusal of who is not logged in.
func Unauthenticated() error {
	return &Refusal{Reason: ErrUnauthenticated, Text: "You are not logged in.", Remedy: "Log in with `mp login`."}
}

// NotFound is the refusal for what does not exist, and for what must look so.
func NotFound() error {
	return &Refusal{
		Reason: ErrNotFound,
		Text:   "There is no such thing, or you have no role there.",
		Remedy: "Check the name; `mp session --check` shows where you have a role.",
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

// Names are the roles of the set, from least to most.
func (r Roles) Names() []string {
	all := []string{"anonymous", "newcomer", "user", "developer", "admin", "owner", "sysadmin", "node"}
	names := []string{}
	for i, name := range all {
		if r&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}
