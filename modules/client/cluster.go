package client

import (
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) clusterNodes() noun[resource.ClusterNode] {
	return noun[resource.ClusterNode]{
		one:   "node",
		in:    inWorkspace,
		empty: "The cluster has no nodes yet.",
		columns: []column[resource.ClusterNode]{
			{head: "NAME", cell: func(n *resource.ClusterNode) string { return n.Name }},
			{head: "READY", cell: func(n *resource.ClusterNode) string { return yesNo(n.Ready) }},
			{head: "VERSION", cell: func(n *resource.ClusterNode) string { return n.Version }},
			{head: "ADDRESS", cell: func(n *resource.ClusterNode) string { return n.Address }},
			{head: "SIZE", wide: true, cell: func(n *resource.ClusterNode) string { return n.Size.String() }},
			{head: "HOST", wide: true, cell: func(n *resource.ClusterNode) string { return n.Node }},
		},
	}
}

func (p *program) machines() noun[resource.Machine] {
	return noun[resource.Machine]{
		one:   "machine",
		in:    inWorkspace,
		empty: "The workspace has no machines.",
		columns: standard([]column[resource.Machine]{
			// Its own column: a machine isn't Stateful, since no task is about one.
			{head: "PHASE", cell: func(m *resource.Machine) string { return phaseOf(&m.Meta, m.Status.Phase) }},
			{head: "ADDRESS", cell: func(m *resource.Machine) string { return m.Spec.Address.String() }},
			{head: "RESTARTS", cell: func(m *resource.Machine) string { return strconv.Itoa(m.Status.Restarts) }},
			{head: "DRIVER", wide: true, cell: func(m *resource.Machine) string { return m.Spec.Driver }},
			{head: "SIZE", wide: true, cell: func(m *resource.Machine) string { return m.Spec.Size.String() }},
			{head: "PODS", wide: true, cell: func(m *resource.Machine) string { return m.Spec.PodCIDR.String() }},
			{head: "HOST", wide: true, cell: func(m *resource.Machine) string { return m.Spec.Node }},
		}),
	}
}

func (p *program) clusterCommands() *command {
	workspaces := p.workspaces()
	return group("cluster", "scale a workspace's cluster, list its nodes, configure kubectl",
		workspaces.set(command{
			name:  "scale",
			usage: "change the number of machines",
			args:  "[WORKSPACE]",
			about: `Machines are drained before they are removed. While no node has room for a new one, the
command says so, and after 30 seconds of that it ends with exit code 5, unless --timeout
is given. The platform adds the machine as soon as there is room.`,
			examples: []string{"mp cluster scale --machines 3", "mp cluster scale shop -n 1 --timeout 20m"},
			flags: []cli.Flag{
				&cli.IntFlag{Name: "machines", Aliases: []string{"n", "nodes"}, Usage: "the wanted `NUMBER` of machines"},
			},
		}, (*call).newScale),
		p.clusterNodes().list(command{
			name:     "list-nodes, nodes",
			usage:    "list the cluster's nodes as Kubernetes sees them",
			args:     "[WORKSPACE]",
			names:    workspaces.names,
			examples: []string{"mp cluster list-nodes", "mp cluster list-nodes shop -o wide"},
		}),
		p.machines().list(command{
			name:     "list-machines, machines",
			usage:    "list the cluster's machines as the platform sees them",
			args:     "[WORKSPACE]",
			names:    workspaces.names,
			about:    "Also shows machines that are not nodes yet.",
			examples: []string{"mp cluster list-machines"},
		}),
		&command{
			name:  "config-kubectl",
			usage: "write a kubeconfig for the workspace",
			args:  "[WORKSPACE]",
			names: workspaces.names,
			about: `Writes a file of its own, ~/.kube/config-ACCOUNT-ORGANIZATION-WORKSPACE unless --file says
otherwise, and prints the line that makes kubectl use it. It holds no secret: kubectl
calls 'mp kube-credential' for a short-lived token, with your session. Where the platform's
names resolve, the server in it is the workspace's own name.`,
			examples: []string{
				"mp cluster config-kubectl",
				"eval \"$(mp cluster config-kubectl shop)\"",
				"mp cluster config-kubectl --file - > shop.kubeconfig",
			},
			flags: flags(placeFlags(inWorkspace), namespaceFlag(),
				&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "write to `FILE`, - for standard output"}),
			run: (*call).configKubectl,
		},
	)
}

func (c *call) newScale() (map[string]any, string, error) {
	if !c.IsSet("machines") {
		return nil, "", usagef("give --machines NUMBER", "%s: the number of machines is missing", c.path)
	}
	n := c.Int("machines")
	return map[string]any{"machines": n}, "has " + count(n, "machine"), checkMachines(n)
}

// count is "1 machine" or "2 machines".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
