package identity

import (
	"context"
	"errors"
	"fmt"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// maxGrants is how often a grant is asked for: as often as others may be faster.
const maxGrants = 20

// CreateUser makes a user with a password, in one write. grant, if not nil, says
// whether there may be one more, and writes into user where he counts: its write
// is part of that one, and it is asked again if it does not hold any more by then.
func (id *Identity) CreateUser(
	ctx context.Context, address, password string, user resource.User,
	grant func(context.Context, *resource.User) (store.Op, error),
) (*resource.User, error) {
	name, err := Email(address)
	if err != nil {
		return nil, err
	}
	user.Name = name
	if grant != nil { // who may not need not cost a hash, and neither need one who is there
		if _, err := grant(ctx, &user); err != nil {
			return nil, err
		}
		switch _, err := store.Of[resource.User](id.store).Get(ctx, name); {
		case err == nil:
			return nil, userExists(store.ErrExists, name)
		case !errors.Is(err, store.ErrNotFound):
			return nil, err
		}
	}
	ops, err := id.newUser(ctx, address, resource.Credential{}, password, &user)
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		all := ops
		if grant != nil {
			granted, err := grant(ctx, &user)
			if err != nil {
				return nil, err
			}
			all = append([]store.Op{granted}, ops...)
		}
		err := id.store.Commit(ctx, all...)
		switch {
		case err == nil:
			return store.Of[resource.User](id.store).Get(ctx, user.Name)
		case errors.Is(err, store.ErrExists):
			return nil, userExists(err, user.Name)
		case grant == nil || !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) || n == maxGrants:
			return nil, err // not found: where he would count is gone, which the next grant says
		}
	}
}

// newUser completes user and returns the writes that make it, with a credential.
func (id *Identity) newUser(
	ctx context.Context, address string, credential resource.Credential, password string, user *resource.User,
) ([]store.Op, error) {
	name, err := Email(address)
	if err != nil {
		return nil, err
	}
	hash, err := id.passwords.hash(ctx, "account "+user.Account, password)
	if err != nil {
		return nil, err
	}
	user.Name, credential.Name, credential.Hash = name, name, hash
	return []store.Op{
		store.Of[resource.User](id.store).CreateOp(user),
		store.Of[resource.Credential](id.store).CreateOp(&credential),
	}, nil
}

func userExists(err error, name string) error {
	if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) {
		return refuse(access.ErrExists, "", "There is a user %s already.", name)
	}
	return err
}

// Register makes an account with its first owner, in one write. If there is
// such a user already, password must be his; if the account is his already too,
// there is nothing left to do, and created is false. Who asks for another, as a
// sysadmin does, is by: the new owner has to change that password.
func (id *Identity) Register(
	ctx context.Context, by *access.Principal, r resource.Register, source string,
) (account *resource.Account, created bool, err error) {
	if err := resource.CheckName("account", r.Account); err != nil {
		return nil, false, refuse(access.ErrInvalid, "", "%s", sentence(err))
	}
	name, err := Email(r.Email)
	if err != nil {
		return nil, false, err
	}
	if err := checkPassword(r.Password); err != nil {
		return nil, false, err
	}
	_, err = store.Of[resource.User](id.store).Get(ctx, name)
	known := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, false, err
	}
	var ops []store.Op
	if known {
		user, err := id.CheckPassword(ctx, name, r.Password, source)
		switch {
		case errors.Is(err, access.ErrUnauthenticated) && by != nil && by.Sysadmin:
			return nil, false, refuse(access.ErrExists, "Register with his password, or with another e-mail address.",
				"There is a user %s already, with another password.", name)
		case errors.Is(err, access.ErrUnauthenticated):
			return nil, false, notThisAddress(name)
		case err != nil:
			return nil, false, err
		case user.FirstPassword && (by == nil || !by.Sysadmin): // somebody else knows it
			return nil, false, access.FirstPassword()
		}
	} else {
		// A new user costs a look at all accounts and an argon2 hash: the source pays for
		// it as for a login.
		if _, err := id.throttle.attempt("register "+name, source); err != nil {
			return nil, false, err
		}
		if reserved, err := id.Reserved(ctx, name); err != nil {
			return nil, false, err
		} else if reserved != "" && (by == nil || !by.Sysadmin) {
			return nil, false, notThisAddress(name)
		}
		user := &resource.User{}
		if by != nil {
			user.CreatedBy, user.FirstPassword = by.User, true
		}
		if ops, err = id.newUser(ctx, name, resource.Credential{}, r.Password, user); err != nil {
			return nil, false, err
		}
	}
	account = &resource.Account{Meta: resource.Meta{Name: r.Account}}
	owner := &resource.Membership{Meta: resource.Meta{Name: name}, Account: r.Account, Role: resource.RoleOwner}
	ops = append(ops,
		store.Of[resource.Account](id.store).CreateOp(account),
		store.Of[resource.Membership](id.store).CreateOp(owner))
	err = id.store.Commit(ctx, ops...)
	switch {
	case err == nil:
		failpoint.Reach("account/create/committed")
		account, err = store.Of[resource.Account](id.store).Get(ctx, r.Account)
		return account, true, err
	case !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict):
		return nil, false, err
	}
	// Somebody has the account, or the user came into being meanwhile.
	account, err = store.Of[resource.Account](id.store).Get(ctx, r.Account)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, userExists(store.ErrExists, name)
	}
	if err != nil {
		return nil, false, err
	}
	if known {
		p := &access.Principal{User: name}
		if err := id.LoadMemberships(ctx, p, r.Account, ""); err != nil {
			return nil, false, err
		}
		if p.RoleIn(r.Account, "") == access.Owner {
			return account, false, nil
		}
	}
	return nil, false, refuse(access.ErrExists, "Choose another name, or ask an owner of the account for a role in it.",
		"The account %q is taken.", r.Account)
}

// notThisAddress refuses an address that somebody has, or may have, without telling
// which.
func notThisAddress(name string) error {
	return refuse(access.ErrDenied,
		"If it is yours, register with the password that you have here. If not, take another, or ask a sysadmin.",
		"The address %s can't be registered with this password.", name)
}

// ChangePassword sets a new password for p after checking the old one, and ends
// all other sessions of the user.
func (id *Identity) ChangePassword(ctx context.Context, p *access.Principal, old, new, source string) error {
	if err := checkPassword(new); err != nil {
		return err
	}
	if _, err := id.CheckPassword(ctx, p.User, old, source); err != nil {
		if errors.Is(err, access.ErrUnauthenticated) {
			return refuse(access.ErrDenied, "", "The current password is wrong.")
		}
		return err
	}
	if p.FirstPassword && old == new {
		return refuse(access.ErrInvalid, "Take one that nobody else knows.",
			"The new password is the old one, which somebody else chose.")
	}
	return id.setPassword(ctx, p.User, new, false, p.Session)
}

// SetPassword sets the password of a user who need not know the old one, and
// ends all his sessions. If first, he has to change it.
func (id *Identity) SetPassword(ctx context.Context, user, password string, first bool) error {
	return id.setPassword(ctx, user, password, first, nil)
}

func (id *Identity) setPassword(ctx context.Context, user, password string, first bool, keep *resource.Session) error {
	hash, err := id.passwords.hash(ctx, "user "+user, password)
	if err != nil {
		return err
	}
	// In one write with what it is good for: killed in between, somebody else's would
	// pass for his own.
	credentials, users := store.Of[resource.Credential](id.store), store.Of[resource.User](id.store)
	whose := users.ModifyOp(user, func(u *resource.User) error {
		if u.FirstPassword == first {
			return store.ErrSkip
		}
		u.FirstPassword = first
		return nil
	})
	err = id.store.Commit(ctx, whose, credentials.ModifyOp(user, func(c *resource.Credential) error {
		c.Hash, c.InFile = hash, false
		return nil
	}))
	if errors.Is(err, store.ErrNotFound) { // the one or the other
		err = id.store.Commit(ctx, whose, credentials.CreateOp(&resource.Credential{Meta: resource.Meta{Name: user}, Hash: hash}))
	}
	if err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	return id.endSessions(ctx, user, keep)
}

// DeleteUser removes a user with all that is his alone. The last owner of an
// account and the last sysadmin can't go.
func (id *Identity) DeleteUser(ctx context.Context, user *resource.User) error {
	p := &access.Principal{User: user.Name}
	if err := id.LoadMemberships(ctx, p, "", ""); err != nil {
		return err
	}
	for _, m := range p.Memberships {
		if m.Role != resource.RoleOwner {
			continue
		}
		if last, err := id.LastOwner(ctx, m.Account, user.Name); err != nil {
			return err
		} else if last {
			return refuse(access.ErrExists, "Make somebody else an owner, or delete the account, first.",
				"%s is the last owner of the account %q.", user.Name, m.Account)
		}
	}
	if user.Spec.Sysadmin {
		if last, err := id.LastSysadmin(ctx, user.Name); err != nil {
			return err
		} else if last {
			return refuse(access.ErrExists, "Make somebody else a sysadmin first.", "%s is the last sysadmin.", user.Name)
		}
	}
	// First what lets him in: killed between these lines, he is locked out, and
	// the next call does the rest.
	cred := &resource.Credential{Meta: resource.Meta{Name: user.Name}}
	if err := store.Of[resource.Credential](id.store).Delete(ctx, cred); err != nil {
		return err
	}
	failpoint.Reach("user/delete/credential-removed")
	if err := id.endSessions(ctx, user.Name, nil); err != nil {
		return err
	}
	failpoint.Reach("user/delete/sessions-ended")
	for _, m := range p.Memberships {
		m.Revision = 0
		if err := store.Of[resource.Membership](id.store).Delete(ctx, &m); err != nil {
			return err
		}
	}
	// All of them: his list has only the latest.
	err := each(ctx, store.Of[resource.Invitation](id.store), "", func(i *resource.Invitation) error {
		if i.Name != user.Name {
			return nil
		}
		_, err := id.Withdraw(ctx, i.Key())
		return err
	})
	if err != nil {
		return err
	}
	failpoint.Reach("user/delete/roles-removed")
	ops := []store.Op{store.Of[resource.User](id.store).DeleteOp(user)}
	if user.AccountUID != "" {
		accounts := store.Of[resource.Account](id.store)
		if _, err := accounts.Get(ctx, user.Account); err == nil {
			// If the account goes meanwhile, the caller is told that nothing was found,
			// and the next call finds the user.
			ops = append(ops, accounts.ModifyOp(user.Account, func(account *resource.Account) error {
				if account.UID != user.AccountUID {
					return store.ErrSkip
				}
				account.Users = max(account.Users-1, 0)
				return nil
			}))
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return id.store.Commit(ctx, ops...)
}

// LastOwner says whether user is the only owner of account.
func (id *Identity) LastOwner(ctx context.Context, account, user string) (bool, error) {
	is, others := false, 0
	err := each(ctx, store.Of[resource.Membership](id.store), account+"/-", func(m *resource.Membership) error {
		if m.Name == user {
			is = true
		} else {
			others++
		}
		return nil
	})
	return is && others == 0, err
}

// LastSysadmin says whether no user but this one is a sysadmin who can log in.
func (id *Identity) LastSysadmin(ctx context.Context, user string) (bool, error) {
	others := 0
	err := each(ctx, store.Of[resource.User](id.store), "", func(u *resource.User) error {
		if u.Name != user && u.Spec.Sysadmin && !u.Spec.Disabled {
			others++
		}
		return nil
	})
	return others == 0, err
}

// DisableSessions ends all sessions of user, for one who was disabled.
func (id *Identity) DisableSessions(ctx context.Context, user string) error {
	return id.endSessions(ctx, user, nil)
}
