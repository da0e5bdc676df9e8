package api

import (
	"context"
	"net/http"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
)

// NewUser is the body of users.create.
type NewUser struct {
	Email       string `json:"email" required:"true" maxLength:"254" example:"dev@acme.example"`
	Password    string `json:"password" required:"true" minLength:"10" maxLength:"256"`
	DisplayName string `json:"displayName,omitempty" maxLength:"200"`
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
	add(a, operation{id: "users.create", method: http.MethodPost, path: "/v1/users", summary: "Make a user with a password", status: http.StatusCreated}, a.createUser)
	add(a, operation{id: "users.list", method: http.MethodGet, path: "/v1/users", summary: "All users"},
		func(ctx context.Context, in *Page) (*Output[resource.List[*resource.User]], error) {
			return page(ctx, a.store.Users(), "", *in)
		})
	add(a, operation{id: "users.get", method: http.MethodGet, path: "/v1/users/{user}", summary: "One user"},
		func(ctx context.Context, in *UserPath) (*Output[*resource.User], error) {
			user, err := find(ctx, a.store.Users(), in.User, "user", in.User)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, user), nil
		})
	add(a, operation{id: "users.patch", method: http.MethodPatch, path: "/v1/users/{user}", summary: "Change a user"}, a.patchUser)
	add(a, operation{id: "users.password", method: http.MethodPut, path: "/v1/users/{user}/password", summary: "Set a user's password; ends his sessions"},
		func(ctx context.Context, in *struct {
			UserPath
			Body NewPassword
		}) (*Empty, error) {
			if _, err := find(ctx, a.store.Users(), in.User, "user", in.User); err != nil {
				return nil, err
			}
			return &Empty{}, a.id.SetPassword(ctx, in.User, in.Body.Password)
		})
	add(a, operation{id: "users.delete", method: http.MethodDelete, path: "/v1/users/{user}", summary: "Delete a user with his roles and sessions"},
		func(ctx context.Context, in *struct {
			UserPath
			Match
		}) (*Empty, error) {
			user, err := find(ctx, a.store.Users(), in.User, "user", in.User)
			if err != nil {
				return nil, err
			}
			if err := in.check(user.Metadata()); err != nil {
				return nil, err
			}
			return &Empty{}, a.id.DeleteUser(ctx, user)
		})
}

func (a *API) createUser(ctx context.Context, in *struct{ Body NewUser }) (*Output[*resource.User], error) {
	spec := resource.UserSpec{DisplayName: in.Body.DisplayName, Sysadmin: in.Body.Sysadmin}
	if spec.Sysadmin && !who(ctx).Sysadmin {
		return nil, &access.Refusal{Reason: access.ErrDenied, Text: "Only a sysadmin makes sysadmins."}
	}
	user, err := a.id.CreateUser(ctx, in.Body.Email, in.Body.Password, spec)
	if err != nil {
		return nil, err
	}
	return object(http.StatusCreated, user), nil
}

func (a *API) patchUser(ctx context.Context, in *struct {
	UserPath
	Match
	Body UserPatch
}) (*Output[*resource.User], error) {
	if _, err := find(ctx, a.store.Users(), in.User, "user", in.User); err != nil {
		return nil, err
	}
	to := in.Body.Spec
	if to.Sysadmin != nil && !*to.Sysadmin || to.Disabled != nil && *to.Disabled {
		if last, err := a.id.LastSysadmin(ctx, in.User); err != nil {
			return nil, err
		} else if last {
			return nil, conflict("in-use", "This is the last sysadmin.", "Make somebody else a sysadmin first.")
		}
	}
	user, err := a.store.Users().Modify(ctx, in.User, func(u *resource.User) error {
		if err := in.check(u.Metadata()); err != nil {
			return err
		}
		set(&u.Spec.DisplayName, to.DisplayName)
		set(&u.Spec.Sysadmin, to.Sysadmin)
		set(&u.Spec.Disabled, to.Disabled)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if user.Spec.Disabled {
		if err := a.id.DisableSessions(ctx, user.Name); err != nil {
			return nil, err
		}
	}
	return object(http.StatusOK, user), nil
}

// set changes what a patch has a value for.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}
