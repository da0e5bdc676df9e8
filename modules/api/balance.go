package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// balanceOperations have copies of shared volumes go to disks with more room. There is one wish of that, and who asks for it
// before anybody had it finds an empty one, with what would be done.
func (a *API) balanceOperations() {
	balances := &collection[resource.Balance, *resource.Balance]{
		api:     a,
		noun:    "balance",
		path:    "/v1/balances",
		example: resource.StorageBalance,
		fresh: func(_, name string) *resource.Balance {
			return &resource.Balance{Meta: resource.Meta{Name: name},
				Status: resource.BalanceStatus{State: resource.State{Phase: resource.Pending}}}
		},
		adopt: func(now, body *resource.Balance) { now.Spec.Stop = body.Spec.Stop },
		complete: func(now, was *resource.Balance) {
			if was != nil && !now.Spec.Stop && (was.Spec.Stop || was.Over()) {
				now.Spec.Round++
			}
		},
		check: func(_ context.Context, now, _ *resource.Balance) error {
			if now.Name != resource.StorageBalance {
				return missing("balance", now.Name)
			}
			return nil
		},
		show: func(ctx context.Context, all ...*resource.Balance) (err error) {
			for _, b := range all {
				if b.Status.Plan, err = a.cfg.Volumes.BalancePlan(ctx); err != nil {
					return err
				}
			}
			return nil
		},
	}
	get := balances.operation("get", http.MethodGet,
		"How far copies of shared volumes are that go to disks with more room, and which would go now")
	add(a, get, func(ctx context.Context, in *struct{ Place }) (*Output[*resource.Balance], error) {
		b, err := store.Of[resource.Balance](a.store).Get(ctx, resource.StorageBalance)
		if errors.Is(err, store.ErrNotFound) {
			b, err = balances.fresh("", resource.StorageBalance), nil
		}
		if in.name() != resource.StorageBalance {
			err = missing("balance", in.name())
		}
		if err != nil {
			return nil, err
		}
		return object(http.StatusOK, b), balances.shown(ctx, b)
	})
	balances.put("Have copies of shared volumes go from disks of which much is promised to those of which little is, or stop that")
}
