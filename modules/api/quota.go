package api

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

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

// grant checks that the account stays within its limits with more, and returns
// it and a write to commit together with what uses it: that fails with
// store.ErrConflict if anything else was granted meanwhile, and the caller
// decides anew. All that accounts can have passes here.
func (a *API) grant(ctx context.Context, name string, more resource.Limits) (*resource.Account, store.Op, error) {
	account, err := find(ctx, store.Of[resource.Account](a.store), name)
	if err != nil {
		return nil, store.Op{}, err
	}
	if account.Deleting() {
		return nil, store.Op{}, deleting("account", name)
	}
	used := resource.Limits{Users: account.Users}
	if more != (resource.Limits{Users: more.Users}) {
		if used, err = a.used(ctx, account); err != nil {
			return nil, store.Op{}, err
		}
	}
	limits := account.Spec.Limits.Or(a.cfg.Limits)
	var over []string
	for _, d := range resource.Dimensions() {
		limit, have, asked := *d.Of(&limits), *d.Of(&used), *d.Of(&more)
		if limit > 0 && asked > 0 && have+asked > limit {
			over = append(over, fmt.Sprintf("%s: at most %s, in use %s, asked for %s more",
				d.Noun, d.Unit.Text(limit), d.Unit.Text(have), d.Unit.Text(asked)))
		}
	}
	if over != nil {
		remedy := "Delete what is not needed any more, or ask a sysadmin to raise the limit (`mp accounts set`)."
		if more.Users > 0 {
			remedy = "Ask a sysadmin to delete users who are not needed any more, or to raise the limit (`mp accounts set`)."
		}
		p := conflict("limit", fmt.Sprintf("The account %q would have more than it may.", name), remedy)
		for _, text := range over {
			p.Detail += " " + capital(text)
		}
		return nil, store.Op{}, p
	}
	account.Grants++
	account.Users += more.Users
	return account, store.Of[resource.Account](a.store).UpdateOp(account), nil
}

// grantMore is grant for a change: for what now asks for beyond was.
func (a *API) grantMore(ctx context.Context, now, was resource.Object) (store.Op, error) {
	asker, counts := now.(resource.Asker)
	if !counts {
		return store.Op{}, nil
	}
	more := asker.Asks().Sub(was.(resource.Asker).Asks())
	if !slices.ContainsFunc(resource.Dimensions(), func(d resource.Dimension) bool { return *d.Of(&more) > 0 }) {
		return store.Op{}, nil
	}
	_, op, err := a.grant(ctx, accountOf(now), more)
	return op, err
}

// accountOf is the account that a resource below one stands in.
func accountOf(obj resource.Object) string {
	account, _, _ := strings.Cut(obj.Key(), "/")
	return account
}

// used is what an account has, by what was asked for. What is being deleted
// counts until it is gone.
func (a *API) used(ctx context.Context, account *resource.Account) (resource.Limits, error) {
	used := resource.Limits{Users: account.Users}
	for _, kind := range resource.Counted() {
		items, err := all(ctx, store.Any(a.store, kind), account.Name)
		if err != nil {
			return resource.Limits{}, err
		}
		for _, item := range items {
			used = used.Add(item.(resource.Asker).Asks())
		}
	}
	return used, nil
}
