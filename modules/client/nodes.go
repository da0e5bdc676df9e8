package client

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func nodeTable(c *call) table[*resource.Node] {
	now := c.now()
	used := func(used, all string) string { return used + "/" + all }
	return table[*resource.Node]{
		name:  func(n *resource.Node) string { return n.Name },
		empty: "No node has joined yet. 'multipaas token create --role node' prints the command that does it.",
		columns: []column[*resource.Node]{
			{head: "NAME", cell: func(n *resource.Node) string { return n.Name }},
			{head: "PHASE", cell: func(n *resource.Node) string { return phaseOf(&n.Meta, n.Status.Phase) }},
			{head: "SCHEDULABLE", cell: func(n *resource.Node) string { return yesNo(!n.Spec.Unschedulable) }},
			{head: "CPU", cell: func(n *resource.Node) string {
				return used(cpus(n.Status.Allocated.MilliCPU), cpus(n.Status.Capacity.MilliCPU))
			}},
			{head: "MEMORY", cell: func(n *resource.Node) string {
				return used(bytesText(n.Status.Allocated.MemoryBytes), bytesText(n.Status.Capacity.MemoryBytes))
			}},
			{head: "DISK", cell: func(n *resource.Node) string {
				return used(bytesText(n.Status.Allocated.DiskBytes), bytesText(n.Status.Capacity.DiskBytes))
			}},
			{head: "AGE", cell: func(n *resource.Node) string { return age(n.CreatedAt, now) }},
			{head: "ADDRESS", wide: true, cell: func(n *resource.Node) string {
				text, _ := n.Status.Address.MarshalText() // none is no text
				return string(text)
			}},
			{head: "VERSION", wide: true, cell: func(n *resource.Node) string { return n.Status.Version }},
			{head: "KERNEL", wide: true, cell: func(n *resource.Node) string { return n.Status.Kernel }},
			{head: "OS", wide: true, cell: func(n *resource.Node) string { return n.Status.OS }},
			{head: "DRIVERS", wide: true, cell: func(n *resource.Node) string { return strings.Join(n.Status.Drivers, ", ") }},
			{head: "HEARTBEAT", wide: true, cell: func(n *resource.Node) string { return age(n.Status.HeartbeatAt, now) }},
		},
	}
}

func nodeNames() func(*call) ([]string, error) {
	return names(func(n *resource.Node) string { return n.Name }, func(*call) (string, error) { return apiPath("nodes"), nil })
}

func (p *program) nodeCommands() *command {
	return &command{
		name: "nodes", aliases: []string{"node"}, usage: "list, show, cordon and remove the platform's hosts (for sysadmins)",
		sub: []*command{
			{
				name: "list", aliases: []string{"ls"}, usage: "list the nodes, with what is promised of their size",
				examples: []string{"mp nodes list", "mp nodes list -o wide"},
				flags:    outputFlags(),
				run: func(c *call) error {
					items, err := list[*resource.Node](c, apiPath("nodes"), nil)
					if err != nil {
						return err
					}
					return printList(c, items, nodeTable(c))
				},
			},
			{
				name: "show", aliases: []string{"get"}, usage: "show a node", args: "NAME", names: nodeNames(),
				examples: []string{"mp nodes show host1"},
				flags:    flags(resultFlag()),
				run: func(c *call) error {
					var got resource.Node
					if err := c.get(apiPath("nodes", c.arg(0)), &got); err != nil {
						return err
					}
					return printOne(c, &got, nodeTable(c), func(w io.Writer) { printConditions(w, got.Status.Conditions, c.now()) })
				},
			},
			{
				name: "cordon", usage: "keep new machines away from a node", args: "NAME", names: nodeNames(),
				about:    "Machines that run there stay.",
				examples: []string{"mp nodes cordon host1"},
				flags:    flags(dryRunFlag(), resultFlag()),
				run:      func(c *call) error { return c.setSchedulable(false) },
			},
			{
				name: "uncordon", usage: "let new machines onto a node again", args: "NAME", names: nodeNames(),
				examples: []string{"mp nodes uncordon host1"},
				flags:    flags(dryRunFlag(), resultFlag()),
				run:      func(c *call) error { return c.setSchedulable(true) },
			},
			{
				name: "remove", aliases: []string{"rm", "delete"}, usage: "move a node's machines elsewhere and take it out of the platform", args: "NAME", names: nodeNames(),
				about:    "With --lost nothing is awaited from the node itself. Give it only if the host will not\ncome back: its machines are made anew elsewhere, and two of one kind must not run.",
				examples: []string{"mp nodes remove host1 --yes --timeout 30m", "mp nodes remove host1 --lost"},
				flags: flags(&cli.BoolFlag{Name: "lost", Usage: "the host will not come back: do not wait for it"},
					yesFlag(), dryRunFlag(), waitFlags(), resultFlag()),
				run: func(c *call) error {
					path := apiPath("nodes", c.arg(0))
					if c.Bool("lost") {
						path += "?lost=true"
					}
					if err := c.confirm("Remove node "+c.arg(0)+"? Its machines are drained and made anew elsewhere.", ""); err != nil {
						return err
					}
					return remove[*resource.Node](c, path, nodeTable(c), "Node "+c.arg(0), Target{})
				},
			},
		},
	}
}

func (c *call) setSchedulable(on bool) error {
	var got resource.Node
	body := map[string]any{"spec": map[string]any{"unschedulable": !on}}
	if err := c.write(http.MethodPatch, apiPath("nodes", c.arg(0)), body, &got); err != nil {
		return err
	}
	sentence := fmt.Sprintf("Node %s takes no new machines.", c.arg(0))
	if on {
		sentence = fmt.Sprintf("Node %s takes new machines.", c.arg(0))
	}
	return printResult(c, &got, nodeTable(c), "%s", sentence)
}
