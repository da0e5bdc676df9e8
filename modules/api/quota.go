package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/multipaas/multipaas/modules/internal/quota"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// AccountPatch is the body of accounts.patch: what is left out stays.
type AccountPatch struct {
	Spec struct {
		Limits  LimitsPatch `json:"limits" doc:"0: as the platform says"`
		Domains *[]string   `json:"domains,omitempty" maxItems:"20" doc:"All that are reserved for it from now on"`
	} `json:"spec"`
}

// LimitsPatch is some of resource.Limits, as JSON.
type LimitsPatch []byte

// UnmarshalJSON keeps text, if it can be applied to limits.
func (p *LimitsPatch) UnmarshalJSON(text []byte) error {
	*p = slices.Clone(text)
	return p.apply(&resource.Limits{})
}

func (p LimitsPatch) apply(l *resource.Limits) error {
	if p == nil {
		return nil
	}
	return json.Unmarshal(p, l)
}

// Schema is for huma: a number from 0 on for each dimension.
func (LimitsPatch) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false, Properties: map[string]*huma.Schema{}}
	for _, d := range resource.Dimensions() {
		s.Properties[d.Name] = &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(float64)}
	}
	return s
}

// grant is quota.Grant with its refusals for people.
func (a *API) grant(ctx context.Context, name string, more resource.Limits) (*resource.Account, store.Op, error) {
	account, op, err := a.quota().Grant(ctx, name, more)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return nil, op, missing("account", name)
	}
	return account, op, refusedGrant(err, more.Users > 0)
}

// grantMore is grant for a change: for what now asks for beyond was.
func (a *API) grantMore(ctx context.Context, now, was resource.Object) (store.Op, error) {
	op, err := a.quota().GrantMore(ctx, now, was)
	return op, refusedGrant(err, false)
}

func (a *API) quota() quota.Quota { return quota.Quota{Store: a.store, Limits: a.cfg.Limits} }

// refusedGrant is the problem that the error of a grant is; another error is returned
// as it is.
func refusedGrant(err error, users bool) error {
	var over *quota.Exceeded
	var going *quota.Going
	switch {
	case errors.As(err, &going):
		return deleting("account", going.Account)
	case !errors.As(err, &over):
		return err
	}
	remedy := "Delete what is not needed any more, or ask a sysadmin to raise the limit (`mp accounts set`)."
	if users {
		remedy = "Ask a sysadmin to delete users who are not needed any more, or to raise the limit (`mp accounts set`)."
	}
	p := conflict("limit", fmt.Sprintf("The account %q would have more than it may.", over.Account), remedy)
	for _, text := range over.Over {
		p.Detail += " " + capital(text)
	}
	return p
}
