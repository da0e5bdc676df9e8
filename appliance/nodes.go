package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// addNodes adds who notices that nodes are silent, and makes the hub, which
// their agents ask and tell: the API serves it.
func (s *server) addNodes(
	from part[*store.Store],
	id part[*identity.Identity],
	nodes cacheOf[*resource.Node],
	workspaces cacheOf[*resource.Workspace],
	machines cacheOf[*resource.Machine],
	keys cacheOf[*resource.WorkspaceKeys],
	claims cacheOf[*resource.VNI],
	volumes cacheOf[*resource.Volume],
	snapshots cacheOf[*resource.Snapshot],
	trash cacheOf[*resource.Trash],
) part[*node.Hub] {
	n := &needs{}
	add(s.graph, "node-monitor", n, &node.Monitor{
		Log:      s.part("node-monitor"),
		Store:    from.of(n),
		Nodes:    nodes.of(n),
		Machines: machines.of(n),
		Claims:   claims.of(n),
		Trash:    trash.of(n),
	})
	n = &needs{}
	return made(n, node.NewHub(node.HubConfig{
		Log:         s.part("hub"),
		Store:       from.of(n),
		CA:          s.ca,
		Storage:     s.storageCA,
		Seal:        s.seal,
		Tokens:      id.of(n),
		Server:      s.cfg.Name,
		Address:     s.cfg.Address,
		Plan:        s.cfg.Plan,
		Nodes:       nodes.of(n),
		Workspaces:  workspaces.of(n),
		Machines:    machines.of(n),
		Keys:        keys.of(n),
		Own:         s.own,
		Named:       s.named(),
		Reached:     s.cfg.Egress.Lets,
		Claims:      claims.of(n),
		Volumes:     volumes.of(n),
		Snapshots:   snapshots.of(n),
		Trash:       trash.of(n),
		Registry:    s.registryName(),
		UpstreamDNS: s.cfg.UpstreamDNS,
		Front: func() ([]netip.Addr, wire.Door) {
			service := s.service()
			return service, s.cfg.frontDoor(service)
		},
	}))
}

// named are the addresses that the configuration gives to somebody: resolvers, and what
// tenants shall reach.
func (s *server) named() (all []netip.Addr) {
	for _, a := range s.cfg.UpstreamDNS {
		all = append(all, a.Addr())
	}
	for _, p := range s.cfg.Egress.Allow {
		if p.IsSingleIP() {
			all = append(all, p.Addr())
		}
	}
	return all
}

func (s *server) checkNodes(
	nodes *store.Cache[*resource.Node], claims *store.Cache[*resource.VNI], trash *store.Cache[*resource.Trash],
	volumes *store.Cache[*resource.Volume],
) func(context.Context) {
	return func(context.Context) {
		known, overdue := map[string]bool{}, node.Overdue(claims.List(""), trash.List(""), time.Now())
		flips := node.Flips(volumes.List(""), time.Now())
		for _, n := range nodes.List("") {
			known["node "+n.Name] = true
			var err error
			if n.Status.Phase == resource.Degraded {
				err = fmt.Errorf("no report since %s", n.Status.HeartbeatAt.Format(time.RFC3339))
			}
			s.problems.Update(node.Silent, "node "+n.Name, err)
			s.problems.Update(node.Differs, "node "+n.Name, differs(n))
			s.problems.Update(node.NotShown, "node "+n.Name, notShown(n))
			s.problems.Update(node.Keeps, "node "+n.Name, overdue[n.UID])
			s.problems.Update(node.Flipped, "node "+n.Name, flips[n.UID])
		}
		for _, p := range []problem.Problem{node.Silent, node.Differs, node.NotShown, node.Keeps, node.Flipped} {
			s.problems.ClearOthers(p, known)
		}
	}
}

// notShown says which addresses a node says to have besides, and has not shown.
func notShown(n *resource.Node) error {
	if c := n.Status.Conditions.Get(resource.NodeAddressesShown); c != nil && c.Status == resource.False {
		return errors.New(c.Message)
	}
	return nil
}

// differs says what a node claims that was not confirmed. That its disk has grown
// is no problem: somebody has made room.
func differs(n *resource.Node) error {
	var all []string
	for _, t := range []string{resource.NodeAddressConfirmed, resource.NodeCapacityConfirmed} {
		if c := n.Status.Conditions.Get(t); c != nil && c.Status == resource.False && c.Reason != resource.DiskGrown {
			all = append(all, c.Message)
		}
	}
	if all == nil {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}
