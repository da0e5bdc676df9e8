package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/wire"
)

// add has an item looked at soon. It does not block.
func (a *Agent) add(ref Ref) { a.loops[ref.Kind].Add(ref) }

// tenant is who holds a worker for ref: a workspace holds one of each driver's.
// What nobody wanted when it was first heard of is its own.
func (a *Agent) tenant(ref Ref) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ok := a.tenants[ref]
	if !ok {
		name = ref.String()
		if item, wanted := a.plan.items[ref]; wanted {
			name = ref.Kind + " of " + item.Workspace
		}
		a.tenants[ref] = name
	}
	return name
}

func (a *Agent) driver(kind string) Driver {
	return a.cfg.Drivers[slices.IndexFunc(a.cfg.Drivers, func(d Driver) bool { return d.Kind() == kind })]
}

// reconcile brings one item closer to the state.
func (a *Agent) reconcile(ctx context.Context, ref Ref) (again time.Duration, err error) {
	a.mu.Lock()
	p, live, removed := a.plan, a.live, a.done[ref].Removed
	item, wanted := p.items[ref]
	waits := wanted && slices.ContainsFunc(item.Needs, func(need Ref) bool { return !a.isReady(need) })
	a.mu.Unlock()
	switch {
	case !wanted && !live:
		return 0, nil // only the server itself can say that a thing is no more
	case !wanted:
		if on, err := a.unwanted(ctx, p, ref.Kind); err != nil || len(on) > 0 {
			return 0, err // sweep comes back to it once they are gone
		}
		drop := func(ctx context.Context) error { return a.driver(ref.Kind).Drop(ctx, ref.Key) }
		return 0, a.remove(ctx, ref, drop, Progress{})
	case item.Remove != nil && removed:
		return 0, nil
	case item.Remove != nil:
		return 0, a.remove(ctx, ref, item.Remove, Progress{Removed: true})
	case waits:
		return 0, nil // it is queued when what it needs is there
	}
	if removed { // and is wanted again
		a.note(ref, func(d *Progress) { d.Removed = false })
	}
	if err := item.Ensure(ctx); err != nil {
		return 0, err
	}
	if a.note(ref, func(d *Progress) { *d = Progress{serial: p.serial} }) {
		for user, item := range p.items {
			if slices.Contains(item.Needs, ref) {
				a.add(user)
			}
		}
	}
	return item.Every, nil
}

// remove takes an item away by do. after is what is remembered of it then.
func (a *Agent) remove(ctx context.Context, ref Ref, do func(context.Context) error, after Progress) error {
	if err := do(ctx); err != nil {
		return err
	}
	a.note(ref, func(d *Progress) { *d = after })
	wake(a.gone)
	return nil
}

// isReady says whether an item is as the newest state wants it. The caller holds
// a.mu.
func (a *Agent) isReady(ref Ref) bool {
	d := a.done[ref]
	return d.serial == a.plan.serial && d.Problem == ""
}

// ended takes down how a look at an item ended.
func (a *Agent) ended(ref Ref, err error) {
	a.note(ref, func(d *Progress) {
		d.Problem = ""
		if err != nil {
			d.Problem = err.Error()
		}
	})
}

// note changes what is remembered of an item. What is news is reported, and only
// that: a report has items looked at, so one for each look would have no end.
func (a *Agent) note(ref Ref, change func(d *Progress)) (news bool) {
	a.mu.Lock()
	before := a.done[ref]
	d := before
	change(&d)
	if d == (Progress{}) {
		delete(a.done, ref)
	} else {
		a.done[ref] = d
	}
	a.mu.Unlock()
	if d == before {
		return false
	}
	wake(a.tell)
	return true
}

// progress says how far the agent has come with an item of a plan. One that waits
// has the problems of what it waits for.
func (a *Agent) progress(p *plan, ref Ref) Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.done[ref]
	if item := p.items[ref]; out.Problem == "" && item.Remove == nil {
		for _, need := range item.Needs {
			if problem := a.done[need].Problem; problem != "" {
				out.Problem = need.String() + ": " + problem
			} else if _, ok := p.items[need]; !ok {
				out.Problem = need.String() + " is not in the state"
			}
		}
	}
	return out
}

// sweep queues what is on this host and not in the state, once the server itself
// has spoken. It returns how much that is.
func (a *Agent) sweep(ctx context.Context) (n int, err error) {
	a.mu.Lock()
	p, live := a.plan, a.live
	a.mu.Unlock()
	if !live {
		return 0, nil
	}
	refs, err := a.unwanted(ctx, p, "")
	for _, ref := range refs {
		a.add(ref)
	}
	return len(refs), err
}

// unwanted lists what is here and not in the plan, of the last of the drivers
// after the one of this kind that has any; the kind "" is before all. What stands
// on other things goes before them.
func (a *Agent) unwanted(ctx context.Context, p *plan, after string) (refs []Ref, err error) {
	for _, d := range slices.Backward(a.cfg.Drivers) {
		if d.Kind() == after {
			return nil, nil
		}
		keys, err := d.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			ref := Ref{d.Kind(), key}
			if _, wanted := p.items[ref]; !wanted {
				refs = append(refs, ref)
			}
		}
		if len(refs) > 0 {
			return refs, nil
		}
	}
	return nil, nil
}

// leave has drivers let go of what they keep, and says where that is.
func (a *Agent) leave() (kept []string, err error) {
	for _, d := range slices.Backward(a.cfg.Drivers) {
		if k, ok := d.(Keeper); ok {
			places, err := k.Leave()
			if err != nil {
				return nil, err
			}
			kept = append(kept, places...)
		}
	}
	return kept, nil
}

// cleanUp takes away everything that drivers have made and nobody may miss, and the identity.
func (a *Agent) cleanUp(ctx context.Context) error {
	if err := a.take(&wire.State{Node: a.cfg.Client.name}, true); err != nil {
		return err
	}
	for {
		left, err := a.sweep(ctx)
		if err != nil {
			return err
		}
		if left == 0 {
			kept, err := a.leave()
			if err != nil {
				return err
			}
			failpoint.Reach("node/leave/cleaned")
			// Nobody hears of it otherwise: a removed node reports no more. Without an
			// answer what it had is never given to others, which is no harm.
			if len(kept) == 0 {
				err = a.cfg.Client.call(ctx, wire.WipedPath, struct{}{}, nil)
			} else {
				err = errors.New("it keeps volumes")
				a.cfg.Log.Warn("volumes are kept, since nobody has said that what is in them may be lost; "+
					"`multipaas doctor` lists them, and says how they are deleted", "volumes", kept)
			}
			if err != nil {
				a.cfg.Log.Warn("the server does not know that this host holds nothing any more", "err", err)
			}
			return os.RemoveAll(a.cfg.Client.dir)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.gone:
		case <-time.After(5 * time.Second): // a look that failed is repeated by the loop; see again
		}
	}
}
