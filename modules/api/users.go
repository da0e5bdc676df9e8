package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// NewUser is the body of users.create.
type NewUser struct {
	Email       string `json:"email" required:"true" maxLength:"254" example:"dev@acme.example"`
	Password    string `json:"password" required:"true" minLength:"10" maxLength:"256"`
	DisplayName string `json:"displayName,omitempty" maxLength:"200"`
	Account     string `json:"account,omitempty" maxLength:"57" example:"acme" doc:"The account that the user counts in. A sysadmin may leave it out, and who owns one account only: others can make him an owner of theirs, so robots name it"`
	Sysadmin    bool   `json:"sysadmin,omitempty" doc:"Sysadmins only"`
}

// UserPath names a user.
type UserPath struct {
	User string `path:"user" maxLength:"254" example:"dev@acme.example"`
}

// UserPatch is the body of users.patch: what is left out stays.
type UserPatch struct {
	Spec struct {
		DisplayName *string `json:"displayName,omitempty" maxLength:"200"`
		Sysadmin    *bool   `json:"sysadmin,omitempty"`
		Disabled    *bool   `json:"disabled,omitempty" doc:"A disabled user can't log in; his sessions end"`
	} `json:"spec"`
}

// NewPassword is the body of users.password.
type NewPassword struct {
	Password string `json:"password" required:"true" minLength:"10" maxLength:"256"`
}

func (a *API) userOperations() {
	add(a, op("users.create", "POST /v1/users", "Make a user with a password").answers(http.StatusCreated), a.createUser)
	users := &collection[resource.User, *resource.User]{
		api:     a,
		noun:    "user",
		path:    "/v1/users",
		example: "dev@acme.example",
		maxName: 254, // of an e-mail address
		drop:    a.id.DeleteUser,
	}
	users.list("All users")
	users.get("One user")
	add(a, users.operation("patch", http.MethodPatch, "Change a user"),
		func(ctx context.Context, in *struct {
			Place
			Match
			Body UserPatch
		}) (*Output[*resource.User], error) {
			var user *resource.User
			err := users.retry(ctx, in.Place, in.Match, func(was *resource.User) error {
				user = was
				return a.changeUser(ctx, user, in.Body)
			})
			if err == nil && user.Spec.Disabled {
				err = a.id.DisableSessions(ctx, user.Name)
			}
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, user), nil
		})
	add(a, op("users.password", "PUT /v1/users/{user}/password", "Set a user's password; ends his sessions"),
		func(ctx context.Context, in *struct {
			UserPath
			Body NewPassword
		}) (*Empty, error) {
			if _, err := find(ctx, store.Of[resource.User](a.store), in.User); err != nil {
				return nil, err
			}
			return &Empty{}, a.id.SetPassword(ctx, in.User, in.Body.Password, in.User != who(ctx).User)
		})
	users.remove("Delete a user with his roles and sessions")
}

func (a *API) createUser(ctx context.Context, in *struct{ Body NewUser }) (*Output[*resource.User], error) {
	by := who(ctx)
	made := resource.User{CreatedBy: by.User, FirstPassword: true,
		Spec: resource.UserSpec{DisplayName: in.Body.DisplayName, Sysadmin: in.Body.Sysadmin}}
	if made.Spec.Sysadmin && !by.Sysadmin {
		return nil, &access.Refusal{Reason: access.ErrDenied, Text: "Only a sysadmin makes sysadmins."}
	}
	account, err := a.accountFor(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	var grant func(context.Context, *resource.User) (store.Op, error)
	if account != "" {
		grant = func(ctx context.Context, user *resource.User) (store.Op, error) {
			// Anew each time: hashing takes a while, in which he may lose the role.
			if err := a.id.Admit(ctx, by, access.OpUserOfAccount, account, ""); err != nil {
				return store.Op{}, err
			}
			counts, op, err := a.grant(ctx, account, resource.Limits{Users: 1})
			if err != nil {
				return store.Op{}, err
			}
			if reserved, err := a.id.Reserved(ctx, user.Name); err != nil {
				return store.Op{}, err
			} else if reserved != "" && reserved != account {
				return store.Op{}, notForUsers(user.Name, account)
			}
			user.Account, user.AccountUID = counts.Name, counts.UID
			return op, nil
		}
	}
	user, err := a.id.CreateUser(ctx, in.Body.Email, in.Body.Password, made, grant)
	if errors.Is(err, access.ErrExists) && !by.Sysadmin {
		err = a.whoExists(ctx, err, in.Body.Email, account)
	}
	if err != nil {
		return nil, err
	}
	return object(http.StatusCreated, user), nil
}

// whoExists is err, that there is such a user already, for an owner of account: of
// users elsewhere he is not told that they are there.
func (a *API) whoExists(ctx context.Context, err error, email, account string) error {
	user, notRead := store.Of[resource.User](a.store).Get(ctx, strings.ToLower(strings.TrimSpace(email)))
	if notRead != nil {
		return notRead
	}
	if own, notRead := a.consents(ctx, user, account); own || notRead != nil {
		return cmp.Or(notRead, err)
	}
	return notForUsers(user.Name, account)
}

// notForUsers refuses an address that somebody else has, or alone may have.
func notForUsers(email, account string) error {
	return &access.Refusal{
		Reason: access.ErrDenied,
		Text:   fmt.Sprintf("The address %s can't be had for a user of the account %q.", email, account),
		Remedy: "If somebody has it already, offer him a role with `mp org users add`, which he has to accept; or ask a sysadmin.",
	}
}

// accountFor is the account that a new user counts in; "" for none. One that is
// not named is not guessed: others can make somebody an owner of theirs.
func (a *API) accountFor(ctx context.Context, body NewUser) (string, error) {
	by := who(ctx)
	if body.Account != "" || by.Sysadmin {
		return body.Account, nil
	}
	var owned []string
	for _, m := range by.Memberships {
		if m.Role == resource.RoleOwner {
			owned = append(owned, m.Account)
		}
	}
	if len(owned) != 1 {
		return "", invalid("body.account", fmt.Sprintf("You own several accounts: %s.", strings.Join(owned, ", ")),
			"Say which of them the user is for.")
	}
	return owned[0], nil
}

func (a *API) changeUser(ctx context.Context, user *resource.User, body UserPatch) error {
	to := body.Spec
	if to.Sysadmin != nil && !*to.Sysadmin || to.Disabled != nil && *to.Disabled {
		if last, err := a.id.LastSysadmin(ctx, user.Name); err != nil {
			return err
		} else if last {
			return conflict("in-use", "This is the last sysadmin.", "Make somebody else a sysadmin first.")
		}
	}
	set(&user.Spec.DisplayName, to.DisplayName)
	set(&user.Spec.Sysadmin, to.Sysadmin)
	set(&user.Spec.Disabled, to.Disabled)
	return store.Of[resource.User](a.store).Update(ctx, user)
}

// set changes what a patch has a value for.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}
