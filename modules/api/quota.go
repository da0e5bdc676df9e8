package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// AccountPatch is the body of accounts.patch: what is left out stays.
type AccountPatch struct {
	Spec struct {
		Limits struct {
			Users         *int64 `json:"users,omitempty" minimum:"0"`
			Organizations *int64 `json:"organizations,omitempty" minimum:"0"`
			Workspaces    *int64 `json:"workspaces,omitempty" minimum:"0"`
			Machines      *int64 `json:"machines,omitempty" minimum:"0"`
			Apps          *int64 `json:"apps,omitempty" minimum:"0"`
			MilliCPU      *int64 `json:"milliCPU,omitempty" minimum:"0"`
			MemoryBytes   *int64 `json:"memoryBytes,omitempty" minimum:"0"`
			DiskBytes     *int64 `json:"diskBytes,omitempty" minimum:"0"`
			ImageBytes    *int64 `json:"imageBytes,omitempty" minimum:"0"`
		} `json:"limits" doc:"0: as the platform says"`
	} `json:"spec"`
}

func (a *API) patchAccount(ctx context.Context, in *struct {
	AccountPath
	Match
	Body AccountPatch
}) (*Output[*resource.Account], error) {
	if _, err := find(ctx, store.Of[resource.Account](a.store), in.Account, "account", in.Account); err != nil {
		return nil, err
	}
	to := in.Body.Spec.Limits
	account, err := store.Of[resource.Account](a.store).Modify(ctx, in.Account, func(account *resource.Account) error {
		if err := in.check(account.Metadata()); err != nil {
			return err
		}
		l := &account.Spec.Limits
		set(&l.Users, to.Users)
		set(&l.Organizations, to.Organizations)
		set(&l.Workspaces, to.Workspaces)
		set(&l.Machines, to.Machines)
		set(&l.Apps, to.Apps)
		set(&l.MilliCPU, to.MilliCPU)
		set(&l.MemoryBytes, to.MemoryBytes)
		set(&l.DiskBytes, to.DiskBytes)
		set(&l.ImageBytes, to.ImageBytes)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return object(200, account), nil
}

// grant checks that the account stays within its limits with more, and returns
// a write to commit together with what uses it: it fails with store.ErrConflict
// if anything else was granted meanwhile, and the caller decides anew. All that
// accounts can have passes here.
func (a *API) grant(ctx context.Context, name string, more resource.Limits) (store.Op, error) {
	_, op, err := a.grantOf(ctx, name, more)
	return op, err
}

// grantOf is grant, and says of which account it is.
func (a *API) grantOf(ctx context.Context, name string, more resource.Limits) (*resource.Account, store.Op, error) {
	account, err := find(ctx, store.Of[resource.Account](a.store), name, "account", name)
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
	for _, x := range []struct {
		what              string
		limit, used, more int64
		text              func(int64) string
	}{
		{"users", limits.Users, used.Users, more.Users, count},
		{"organizations", limits.Organizations, used.Organizations, more.Organizations, count},
		{"workspaces", limits.Workspaces, used.Workspaces, more.Workspaces, count},
		{"machines", limits.Machines, used.Machines, more.Machines, count},
		{"apps", limits.Apps, used.Apps, more.Apps, count},
		{"CPUs", limits.MilliCPU, used.MilliCPU, more.MilliCPU, thousandths},
		{"memory", limits.MemoryBytes, used.MemoryBytes, more.MemoryBytes, mebibytes},
		{"disk", limits.DiskBytes, used.DiskBytes, more.DiskBytes, mebibytes},
	} {
		if x.limit > 0 && x.more > 0 && x.used+x.more > x.limit {
			over = append(over, fmt.Sprintf("%s: at most %s, in use %s, asked for %s more", x.what, x.text(x.limit), x.text(x.used), x.text(x.more)))
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

// used is what an account has, by what was asked for. What is being deleted
// counts until it is gone.
func (a *API) used(ctx context.Context, account *resource.Account) (resource.Limits, error) {
	orgs, err := all(ctx, store.Of[resource.Organization](a.store), account.Name)
	if err != nil {
		return resource.Limits{}, err
	}
	workspaces, err := all(ctx, store.Of[resource.Workspace](a.store), account.Name)
	if err != nil {
		return resource.Limits{}, err
	}
	apps, err := all(ctx, store.Of[resource.App](a.store), account.Name)
	if err != nil {
		return resource.Limits{}, err
	}
	used := resource.Limits{Users: account.Users, Organizations: int64(len(orgs)), Workspaces: int64(len(workspaces)), Apps: int64(len(apps))}
	for _, ws := range workspaces {
		m := machinesOf(ws.Spec, ws.Spec.Machines)
		used.Machines += m.Machines
		used.MilliCPU += m.MilliCPU
		used.MemoryBytes += m.MemoryBytes
		used.DiskBytes += m.DiskBytes
	}
	return used, nil
}

// machinesOf is what n machines of a workspace need.
func machinesOf(spec resource.WorkspaceSpec, n int) resource.Limits {
	x, size := int64(max(n, 0)), spec.MachineSize
	return resource.Limits{Machines: x, MilliCPU: x * size.MilliCPU, MemoryBytes: x * size.MemoryBytes, DiskBytes: x * size.DiskBytes}
}

func count(n int64) string       { return strconv.FormatInt(n, 10) }
func thousandths(n int64) string { return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64) }
func mebibytes(n int64) string   { return strconv.FormatInt(n>>20, 10) + " MiB" }

// goneMeanwhile makes of a commit's error that something was not found that it
// was the place above, as far as that can be told.
func goneMeanwhile(err error, what, name string) error {
	if errors.Is(err, store.ErrNotFound) {
		return missing(what, name)
	}
	return asConflict(err)
}
