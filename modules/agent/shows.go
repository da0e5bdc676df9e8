package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/modules/wire"
)

// An address that could not be shown is left alone for a while, twice as long each time:
// from a bridge's, or a storage network's, no way may ever lead to the server. What was
// shown half an hour ago is asked for half an hour more (modules/node).
const (
	showPause    = wire.ReportEvery / 2
	maxShowPause = 5 * time.Minute
)

// shows says which of the addresses that the server asks for are tried now.
type shows struct {
	pauses *flowcontrol.Backoff
	asked  []netip.Addr
}

func newShows() *shows { return &shows{pauses: flowcontrol.NewBackOff(showPause, maxShowPause)} }

// next is told each list. An address that isn't on one begins anew: it has been shown,
// or this host has lost it.
func (s *shows) next(all []netip.Addr) (now []netip.Addr) {
	for _, was := range s.asked {
		if !slices.Contains(all, was) {
			s.pauses.DeleteEntry(was.String())
		}
	}
	s.asked = all
	for _, address := range all {
		if !s.pauses.IsInBackOffSinceUpdate(address.String(), time.Now()) {
			now = append(now, address)
		}
	}
	return now
}

func (s *shows) failed(address netip.Addr) { s.pauses.Next(address.String(), time.Now()) }

// showsAtOnce is from how many addresses the server is told at a time.
const showsAtOnce = 8

// showAddresses tells the server from addresses that this host has them, as it asks.
// From where no way leads there it can't; the server says so, if it matters.
func (a *Agent) showAddresses(ctx context.Context) {
	shows := newShows()
	for {
		var all []netip.Addr
		select {
		case <-ctx.Done():
			return
		case all = <-a.show:
		}
		var work errgroup.Group
		work.SetLimit(showsAtOnce)
		for _, address := range shows.next(all[:min(len(all), wire.MaxAddresses)]) {
			work.Go(func() error {
				if err := a.cfg.Client.show(ctx, address); err != nil {
					a.cfg.Log.Debug("show the server an address of this host", "address", address, "err", err)
					shows.failed(address)
					return nil
				}
				a.forget() // what the server says of it is over
				wake(a.tell)
				return nil
			})
		}
		_ = work.Wait()
	}
}
