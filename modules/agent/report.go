package agent

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// reportLoop tells the server what is, every reportEvery and on change.
func (a *Agent) reportLoop(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	// Somebody may have flushed the host's rules, or taken a link down.
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	failing := false
	for {
		err := a.sendReport(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			a.cfg.Log.Warn("report to the server", "error", err)
		}
		failing = err != nil
		if errors.Is(err, ErrRemoved) {
			return // follow is told too and cleans up
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-look.C:
			a.queue.Add("")
		case <-a.kick:
		}
	}
}

func (a *Agent) sendReport(ctx context.Context) error {
	rep := a.cfg.Facts()
	there, err := a.cfg.Machines.List(ctx)
	if err != nil {
		return err
	}
	byUID := map[string]wire.MachineReport{}
	for _, m := range there {
		byUID[m.UID] = m
	}
	a.mu.Lock()
	if a.state != nil {
		for _, m := range a.state.Machines {
			r, ok := byUID[m.UID]
			if gone, isGone := a.removed[m.UID]; isGone {
				r = gone
			} else if !ok {
				r = wire.MachineReport{Message: "not started yet"}
			}
			r.Key, r.UID = m.Key, m.UID
			if p := a.problems[m.UID]; p != "" && !r.Removed {
				r.Message = p
			}
			if !r.Running && !r.Removed && !m.Remove {
				a.queue.Add(m.UID) // it fell over: start it again
			}
			rep.Machines = append(rep.Machines, r)
		}
	}
	if p := a.problems[""]; p != "" {
		rep.Problems = append(rep.Problems, resource.Condition{Type: "NetworksReady", Status: resource.False, Reason: "NotReady", Message: p})
	}
	a.mu.Unlock()
	return a.client.call(ctx, http.MethodPost, "/v1/agent/report", rep, nil)
}
