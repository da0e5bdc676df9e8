package appliance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
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
) part[*node.Hub] {
	n := &needs{}
	add(s.graph, "node-monitor", n, &node.Monitor{
		Log:      s.part("node-monitor"),
		Store:    from.of(n),
		Nodes:    nodes.of(n),
		Machines: machines.of(n),
	})
	n = &needs{}
	return made(n, node.NewHub(node.HubConfig{
		Log:         s.part("hub"),
		Store:       from.of(n),
		CA:          s.ca,
		Tokens:      id.of(n),
		Server:      s.cfg.Name,
		Address:     s.cfg.Address,
		Plan:        s.cfg.Plan,
		Nodes:       nodes.of(n),
		Workspaces:  workspaces.of(n),
		Machines:    machines.of(n),
		Keys:        keys.of(n),
		Registry:    s.registryName(),
		UpstreamDNS: s.cfg.UpstreamDNS,
		Door:        s.door(),
	}))
}

func (s *server) checkNodes(nodes *store.Cache[*resource.Node]) func(context.Context) {
	return func(context.Context) {
		known := map[string]bool{}
		for _, n := range nodes.List("") {
			known["node "+n.Name] = true
			var err error
			if n.Status.Phase == resource.Degraded {
				err = fmt.Errorf("no report since %s", n.Status.HeartbeatAt.Format(time.RFC3339))
			}
			s.problems.Update(node.Silent, "node "+n.Name, err)
			s.problems.Update(node.Differs, "node "+n.Name, differs(n))
		}
		s.problems.ClearOthers(node.Silent, known)
		s.problems.ClearOthers(node.Differs, known)
	}
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
