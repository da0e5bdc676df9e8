package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
)

func (a *API) sessionOperations() {
	add(a, op("info", "GET /v1/info", "What anybody may know about the platform"),
		func(context.Context, *struct{}) (*Output[resource.Info], error) { return ok(a.cfg.Info), nil })
	add(a, op("register", "POST /v1/register", "Make an account with its first owner").answers(http.StatusCreated), a.register)
	add(a, op("login", "POST /v1/login", "Exchange a password for a bearer token"), a.login)
	add(a, op("logout", "POST /v1/logout", "End the session"),
		func(ctx context.Context, _ *struct{}) (*Empty, error) { return &Empty{}, a.id.Logout(ctx, who(ctx)) })
	add(a, op("session.get", "GET /v1/session", "Whose session this is and what his roles are"), a.session)
	add(a, op("password.change", "PUT /v1/session/password", "Change one's own password; ends all other sessions"), a.changePassword)
}

func (a *API) register(ctx context.Context, in *struct{ Body resource.Register }) (*Output[*resource.Account], error) {
	if a.cfg.Info.Registration != "open" {
		if err := a.id.Admit(ctx, who(ctx), access.OpRegisterClosed, "", ""); err != nil {
			if who(ctx) != nil {
				return nil, err
			}
			return nil, newProblem(http.StatusForbidden, "denied", "On this platform only a sysadmin makes accounts.",
				"Ask the operator for one.")
		}
	}
	account, created, err := a.id.Register(ctx, who(ctx), in.Body, requestOf(ctx).source)
	if err != nil {
		return nil, err
	}
	if !created {
		return object(http.StatusOK, account), nil
	}
	return object(http.StatusCreated, account), nil
}

func (a *API) login(ctx context.Context, in *struct{ Body resource.Login }) (*Output[resource.LoginResult], error) {
	result, err := a.id.Login(ctx, in.Body.Email, in.Body.Password, requestOf(ctx).source)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).principal = &access.Principal{User: result.User} // for the audit record
	return ok(result), nil
}

func (a *API) session(ctx context.Context, _ *struct{}) (*Output[resource.Whoami], error) {
	p := who(ctx)
	if err := a.id.LoadMemberships(ctx, p, "", ""); err != nil {
		return nil, err
	}
	roles := append([]resource.Membership{}, p.Memberships...) // an empty list is [] in JSON
	slices.SortFunc(roles, func(x, y resource.Membership) int { return cmp.Compare(x.Key(), y.Key()) })
	return ok(resource.Whoami{User: p.User, Sysadmin: p.Sysadmin, Memberships: roles, ExpiresAt: p.Session.ExpiresAt}), nil
}

// PasswordChange is the body of password.change.
type PasswordChange struct {
	OldPassword string `json:"oldPassword" required:"true" maxLength:"256"`
	NewPassword string `json:"newPassword" required:"true" minLength:"10" maxLength:"256"`
}

func (a *API) changePassword(ctx context.Context, in *struct{ Body PasswordChange }) (*Empty, error) {
	return &Empty{}, a.id.ChangePassword(ctx, who(ctx), in.Body.OldPassword, in.Body.NewPassword, requestOf(ctx).source)
}
