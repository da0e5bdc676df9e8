package dctest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// Inventory is what of MultiPaaS is on a host, by `multipaas doctor --inventory`
// there. Compare of two says what has leaked between them. The
// appliance may run or not; one that is just starting is an error.
func (d *Datacenter) Inventory(ctx context.Context, h *lab.Host) (inventory.Inventory, error) {
	var inv inventory.Inventory
	out, err := h.Run(ctx, "multipaas", "doctor", "--inventory", "-o", "json")
	if err != nil {
		return inv, err
	}
	return inv, json.Unmarshal(out, &inv)
}

// Inventories are those of the server and of all nodes, by name.
func (d *Datacenter) Inventories(ctx context.Context) (map[string]inventory.Inventory, error) {
	all := map[string]inventory.Inventory{}
	for _, h := range append([]*lab.Host{d.Server}, d.Nodes...) {
		inv, err := d.Inventory(ctx, h)
		if err != nil {
			return nil, err
		}
		all[h.Name()] = inv
	}
	return all, nil
}

// MustInventories waits until all hosts can be looked at, and have what they will have:
// a young plane is told some seconds later what its share of the room is.
func (d *Datacenter) MustInventories(t testing.TB) (all map[string]inventory.Inventory) {
	t.Helper()
	wait.For(t, wait.Patience, "the inventory of every host", func(ctx context.Context) (err error) {
		if all, err = d.Inventories(ctx); err != nil {
			return err
		}
		for host, inv := range all {
			names := map[string]bool{}
			for _, i := range inv.Items {
				names[i.Name] = true
			}
			for name := range names {
				if dir, ok := strings.CutSuffix(name, "/plane.json"); ok && !names[dir+"/share.json"] {
					return fmt.Errorf("%s: the plane in %s has no share yet", host, dir)
				}
			}
		}
		return nil
	})
	return all
}

// Leaks compares all hosts with how they were, again and again until nothing
// has leaked or patience is over; then it returns what has, a line each that
// begins with the host's name.
func (d *Datacenter) Leaks(t testing.TB, patience time.Duration, before map[string]inventory.Inventory) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	last := []string{"no inventory could be taken"}
	for {
		after, err := d.Inventories(ctx)
		switch {
		case err == nil:
			last = nil
			for host, was := range before {
				for _, l := range Compare(was, after[host]) {
					last = append(last, host+": "+l.String())
				}
			}
			if len(last) == 0 {
				return nil
			}
		case !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			last = []string{"take inventory: " + strings.TrimSpace(err.Error())}
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(500 * time.Millisecond):
		}
	}
}
