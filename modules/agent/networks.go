package agent

import (
	"context"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// NetworkHost keeps the host's side of workspaces' networks. Implemented by
// modules/network. All calls are idempotent and may block for seconds.
type NetworkHost interface {
	Attach(ctx context.Context, n wire.Network) error
	Detach(ctx context.Context, id string) error
	// Attached lists the IDs of networks of which something is here.
	Attached() ([]string, error)
}

// Networks drives the networks of workspaces.
func Networks(host NetworkHost) Driver { return networks{host} }

type networks struct{ host NetworkHost }

// networksEvery is how often networks are looked at though nothing has changed:
// somebody may have flushed the host's rules, or taken a link down.
const networksEvery = 30 * time.Second

const networkKind = "network"

func (networks) Kind() string { return networkKind }

func (d networks) Wanted(s *wire.State) []Item {
	var items []Item
	for _, n := range s.Networks {
		items = append(items, Item{
			Key:       n.ID,
			Workspace: n.ID,
			Every:     networksEvery,
			Ensure:    func(ctx context.Context) error { return d.host.Attach(ctx, n) },
		})
	}
	return items
}

func (d networks) Drop(ctx context.Context, id string) error { return d.host.Detach(ctx, id) }

func (d networks) List(context.Context) ([]string, error) { return d.host.Attached() }

func (d networks) Report(_ context.Context, s *wire.State, progress func(string) Progress, r *Report) ([]string, error) {
	for _, n := range s.Networks {
		p := progress(n.ID)
		r.Networks = append(r.Networks, wire.NetworkReport{ID: n.ID, Ready: p.Ready(), Message: p.Problem})
		hold(r, n.ID)
	}
	there, err := d.host.Attached()
	if err != nil {
		there = []string{wire.HoldsUnknown}
	}
	hold(r, there...)
	return nil, nil
}
