// Package quota grants what accounts may have. All that tenants make passes here,
// whoever makes it in their name: the API, or a controller for a claim in their cluster.
//
// It promises that of two grants of one account that come at once the later one is
// decided anew, on any server. Only modules import it.
package quota

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Quota knows what accounts have. It is safe for concurrent use.
type Quota struct {
	Store *store.Store
	// Limits is what each account may have unless a sysadmin said otherwise; 0 is no limit.
	Limits resource.Limits
}

// Exceeded is the error of a grant that a limit forbids.
type Exceeded struct {
	Account string
	Over    []string // what of, in words: "apps: at most 5, in use 5, asked for 1 more"
}

// Error says which limits it would be.
func (e *Exceeded) Error() string {
	return fmt.Sprintf("the account %q would have more than it may: %s", e.Account, strings.Join(e.Over, "; "))
}

// Going is the error of a grant for an account that is being deleted.
type Going struct{ Account string }

// Error says so.
func (e *Going) Error() string { return fmt.Sprintf("the account %q is being deleted", e.Account) }

// Grant checks that the account stays within its limits with more, and returns it and a
// write to commit together with what uses it: that fails with store.ErrConflict if
// anything else was granted meanwhile, and the caller decides anew. Errors are
// *Exceeded, *Going, store.ErrNotFound or the store's.
func (q Quota) Grant(ctx context.Context, name string, more resource.Limits) (*resource.Account, store.Op, error) {
	account, err := store.Of[resource.Account](q.Store).Get(ctx, name)
	if err != nil {
		return nil, store.Op{}, err
	}
	if account.Deleting() {
		return nil, store.Op{}, &Going{name}
	}
	used := resource.Limits{Users: account.Users}
	if more != (resource.Limits{Users: more.Users}) {
		if used, err = q.Used(ctx, account); err != nil {
			return nil, store.Op{}, err
		}
	}
	limits := account.Spec.Limits.Or(q.Limits)
	over := &Exceeded{Account: name}
	for _, d := range resource.Dimensions() {
		limit, have, asked := *d.Of(&limits), *d.Of(&used), *d.Of(&more)
		if limit > 0 && asked > 0 && (asked > limit || have > limit-asked) { // their sum may be beyond all numbers
			text := fmt.Sprintf("%s: at most %s, in use %s, asked for %s more",
				d.Noun, d.Unit.Text(limit), d.Unit.Text(have), d.Unit.Text(asked))
			if of := d.Of(&more); of == &more.Volumes || of == &more.VolumeBytes {
				text += " (what is in the trash counts: `mp volumes trash purge`)"
			}
			over.Over = append(over.Over, text)
		}
	}
	if over.Over != nil {
		return nil, store.Op{}, over
	}
	account.Grants++
	account.Users += more.Users
	return account, store.Of[resource.Account](q.Store).UpdateOp(account), nil
}

// GrantMore is Grant for a change: for what now asks for beyond was. It writes nothing
// if that is nothing.
func (q Quota) GrantMore(ctx context.Context, now, was resource.Object) (store.Op, error) {
	asker, counts := now.(resource.Asker)
	if !counts {
		return store.Op{}, nil
	}
	more := asker.Asks().Sub(was.(resource.Asker).Asks())
	if !slices.ContainsFunc(resource.Dimensions(), func(d resource.Dimension) bool { return *d.Of(&more) > 0 }) {
		return store.Op{}, nil
	}
	_, op, err := q.Grant(ctx, AccountOf(now), more)
	return op, err
}

// AccountOf is the account that a resource below one stands in.
func AccountOf(obj resource.Object) string {
	account, _, _ := strings.Cut(obj.Key(), "/")
	return account
}

// Used is what an account has, by what was asked for. What is being deleted
// counts until it is gone.
func (q Quota) Used(ctx context.Context, account *resource.Account) (resource.Limits, error) {
	used := resource.Limits{Users: account.Users}
	for _, kind := range resource.Counted() {
		items, _, err := store.Any(q.Store, kind).List(ctx, account.Name, "", 0)
		if err != nil {
			return resource.Limits{}, err
		}
		for _, item := range items {
			used = used.Add(item.(resource.Asker).Asks())
		}
	}
	return used, nil
}
