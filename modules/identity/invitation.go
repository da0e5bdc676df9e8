package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// InvitationLife lets somebody accept who is away for a week.
	InvitationLife = 8 * 24 * time.Hour
	// maxInvitations is how many may wait in one account: 100 x 400 octets are 40 KB
	// of the store.
	maxInvitations = 100
	// maxInvited is how many a user finds. Older ones are not lost, he only has to
	// know where they are to: whoever fills his list keeps nobody from inviting him.
	maxInvited = 20
)

// Invite offers a role, and returns the code to accept it with. What was offered
// there before is over with that. within are writes to be part of the commit, read
// anew each time; they have to change the account, so that two who invite at once
// are both counted.
func (id *Identity) Invite(
	ctx context.Context, offer resource.Invitation, within func(context.Context) ([]store.Op, error),
) (*resource.Invitation, string, error) {
	name, err := Email(offer.Name)
	if err != nil {
		return nil, "", err
	}
	code := rand.Text() // 130 bits
	offer.Name, offer.CodeHash, offer.ExpiresAt = name, hashText(code), id.now().Add(InvitationLife).Truncate(time.Second)
	switch user, err := store.Of[resource.User](id.store).Get(ctx, name); {
	case err == nil:
		offer.UserUID = user.UID
	case !errors.Is(err, store.ErrNotFound):
		return nil, "", err
	}
	invitations := store.Of[resource.Invitation](id.store)
	err = again(func() error {
		ops, err := within(ctx)
		if err != nil {
			return err
		}
		waiting, _, err := invitations.List(ctx, offer.Account, "", maxInvitations+1)
		if err != nil {
			return err
		}
		same := func(i *resource.Invitation) bool { return i.Key() == offer.Key() }
		if len(waiting) >= maxInvitations && !slices.ContainsFunc(waiting, same) {
			return refuse(access.ErrExists, "Withdraw some first: `mp invitations list --sent` shows them.",
				"%d invitations to the account %q wait for an answer, and there can be no more.", maxInvitations, offer.Account)
		}
		// In place of an old one, which whoever is about to accept then can't any more.
		was, err := invitations.Get(ctx, offer.Key())
		switch {
		case errors.Is(err, store.ErrNotFound):
			offer.Meta = resource.Meta{Name: name}
			ops = append(ops, invitations.CreateOp(&offer))
		case err != nil:
			return err
		default:
			offer.Meta = was.Meta
			ops = append(ops, invitations.UpdateOp(&offer))
		}
		listed, err := id.invited(ctx, name, offer.Key(), true)
		if err != nil {
			return err
		}
		return id.store.Commit(ctx, append(ops, listed...)...)
	})
	if err != nil {
		return nil, "", fmt.Errorf("invite %s: %w", name, err)
	}
	return &offer, code, nil
}

// again tries again while somebody else is faster.
func again(try func() error) error {
	for n := 1; ; n++ {
		err := try()
		lost := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound)
		if _, refused := errors.AsType[*access.Refusal](err); !lost || refused || n == maxGrants {
			return err
		}
	}
}

// invited returns the write that puts an invitation on its user's list, as the
// latest, or takes it off.
func (id *Identity) invited(ctx context.Context, user, key string, on bool) ([]store.Op, error) {
	invitees := store.Of[resource.Invitee](id.store)
	list, err := invitees.Get(ctx, user)
	if errors.Is(err, store.ErrNotFound) {
		if !on {
			return nil, nil
		}
		return []store.Op{invitees.CreateOp(&resource.Invitee{Meta: resource.Meta{Name: user}, Invitations: []string{key}})}, nil
	}
	if err != nil {
		return nil, err
	}
	list.Invitations = slices.DeleteFunc(list.Invitations, func(k string) bool { return k == key })
	if on {
		list.Invitations = append(list.Invitations, key)
		list.Invitations = list.Invitations[max(len(list.Invitations)-maxInvited, 0):]
	}
	if len(list.Invitations) == 0 {
		return []store.Op{invitees.DeleteOp(list)}, nil
	}
	return []store.Op{invitees.UpdateOp(list)}, nil
}

// Invitations are those that wait for p, the latest last.
func (id *Identity) Invitations(ctx context.Context, p *access.Principal) ([]*resource.Invitation, error) {
	list, err := store.Of[resource.Invitee](id.store).Get(ctx, p.User)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*resource.Invitation
	for _, key := range list.Invitations {
		i, err := id.invitation(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// invitation reads one. store.ErrNotFound: there is none, or it is too old.
func (id *Identity) invitation(ctx context.Context, key string) (*resource.Invitation, error) {
	i, err := store.Of[resource.Invitation](id.store).Get(ctx, key)
	if err == nil && !id.now().Before(i.ExpiresAt) {
		err = store.ErrNotFound
	}
	return i, err
}

// Accept gives p the role that he was offered in organization of account, or as
// an owner if that is empty. Whoever asks for what is not offered to him, or with
// a wrong code, hears the same.
func (id *Identity) Accept(
	ctx context.Context, p *access.Principal, account, organization, code string,
) (*resource.Membership, error) {
	key, err := invitationKey(p.User, account, organization)
	if err != nil {
		return nil, err
	}
	var role *resource.Membership
	err = again(func() error {
		i, err := id.invitation(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			return noInvitation()
		}
		if err != nil {
			return err
		}
		given := hashText(strings.ToUpper(strings.TrimSpace(code)))
		if subtle.ConstantTimeCompare([]byte(given), []byte(i.CodeHash)) != 1 {
			return noInvitation()
		}
		if err := id.stands(ctx, i); err != nil {
			return err
		}
		user, err := store.Of[resource.User](id.store).Get(ctx, p.User)
		if err != nil {
			return err
		}
		if i.UserUID != "" && i.UserUID != user.UID {
			return noInvitation()
		}
		ops := []store.Op{
			openOp(store.Of[resource.Account](id.store), account), openOp(store.Of[resource.User](id.store), p.User),
			store.Of[resource.Invitation](id.store).DeleteOp(i)}
		if organization != "" {
			ops = append(ops, openOp(store.Of[resource.Organization](id.store), account+"/"+organization))
		}
		listed, err := id.invited(ctx, p.User, key, false)
		if err != nil {
			return err
		}
		memberships := store.Of[resource.Membership](id.store)
		role, err = memberships.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			role = i.Membership()
			ops = append(ops, memberships.CreateOp(role))
		} else if err != nil {
			return err
		}
		return id.store.Commit(ctx, append(ops, listed...)...)
	})
	if errors.Is(err, store.ErrNotFound) {
		err = noInvitation() // the place has gone
	}
	return role, err
}

// stands refuses an invitation whose maker may not give that role any more.
func (id *Identity) stands(ctx context.Context, i *resource.Invitation) error {
	by, err := store.Of[resource.User](id.store).Get(ctx, i.By)
	if errors.Is(err, store.ErrNotFound) || err == nil && (by.Spec.Disabled || by.Deleting()) {
		return noInvitation()
	}
	if err != nil {
		return err
	}
	op := access.OpGiveRole
	if i.Organization == "" {
		op = access.OpGiveOwner
	}
	err = id.Admit(ctx, &access.Principal{User: by.Name, Sysadmin: by.Spec.Sysadmin}, op, i.Account, i.Organization)
	if _, refused := errors.AsType[*access.Refusal](err); refused {
		return noInvitation()
	}
	return err
}

// Decline removes what p was offered.
func (id *Identity) Decline(ctx context.Context, p *access.Principal, account, organization string) error {
	key, err := invitationKey(p.User, account, organization)
	if err != nil {
		return err
	}
	found, err := id.Withdraw(ctx, key)
	if err == nil && !found {
		err = noInvitation()
	}
	return err
}

// Withdraw removes an invitation, and says whether there was one.
func (id *Identity) Withdraw(ctx context.Context, key string) (found bool, err error) {
	invitations := store.Of[resource.Invitation](id.store)
	err = again(func() error {
		i, err := invitations.Get(ctx, key)
		if err != nil {
			found = false
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
				return nil
			}
			return err
		}
		listed, err := id.invited(ctx, i.Name, key, false)
		if err != nil {
			return err
		}
		found = true
		return id.store.Commit(ctx, append(listed, invitations.DeleteOp(i))...)
	})
	return found, err
}

// WithdrawAll removes the invitations to a place that goes.
func (id *Identity) WithdrawAll(ctx context.Context, place string) error {
	return each(ctx, store.Of[resource.Invitation](id.store), place, func(i *resource.Invitation) error {
		_, err := id.Withdraw(ctx, i.Key())
		return err
	})
}

// sweepInvitations removes those that are too old.
func (id *Identity) sweepInvitations(ctx context.Context) error {
	return each(ctx, store.Of[resource.Invitation](id.store), "", func(i *resource.Invitation) error {
		if id.now().Before(i.ExpiresAt) {
			return nil
		}
		_, err := id.Withdraw(ctx, i.Key())
		return err
	})
}

func invitationKey(user, account, organization string) (string, error) {
	if resource.CheckName("", account) != nil || organization != "" && resource.CheckName("", organization) != nil {
		return "", noInvitation()
	}
	i := resource.Invitation{Meta: resource.Meta{Name: user}, Account: account, Organization: organization}
	return i.Key(), nil
}

func noInvitation() error {
	return refuse(access.ErrNotFound, "`mp invitations list` shows what waits for you. If it is not there, ask for a new one.",
		"There is no such invitation for you: the place or the code is wrong, or it was withdrawn, or has expired.")
}

// openOp fails a commit with store.ErrNotFound if the resource is gone or being
// deleted by then.
func openOp[T resource.Object](kind store.Kind[T], key string) store.Op {
	return kind.ModifyOp(key, func(obj T) error {
		if obj.Metadata().Deleting() {
			return store.ErrNotFound
		}
		return store.ErrSkip
	})
}

// Reserved returns the account that alone may make users of an address, "" if
// everybody may.
func (id *Identity) Reserved(ctx context.Context, address string) (string, error) {
	_, domain, _ := strings.Cut(strings.ToLower(strings.TrimSpace(address)), "@")
	by := ""
	err := each(ctx, store.Of[resource.Account](id.store), "", func(a *resource.Account) error {
		if slices.ContainsFunc(a.Spec.Domains, func(d string) bool { return resource.InDomain(domain, d) }) {
			by = a.Name
		}
		return nil
	})
	return by, err
}
