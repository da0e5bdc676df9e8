package client

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) nodes() noun[resource.Node] {
	used := func(text func(resource.Size) string) func(*resource.Node) string {
		return func(n *resource.Node) string { return text(n.Status.Allocated) + "/" + text(n.Status.Capacity) }
	}
	return noun[resource.Node]{
		one:   "node",
		in:    anywhere,
		tasks: true,
		empty: "No node has joined yet. 'multipaas token create --role node' prints the command that does it.",
		columns: standard([]column[resource.Node]{
			{head: "SCHEDULABLE", cell: func(n *resource.Node) string { return yesNo(!n.Spec.Unschedulable) }},
			{head: "CPU", cell: used(resource.Size.CPU)},
			{head: "MEMORY", cell: used(resource.Size.Memory)},
			{head: "DISK", cell: used(resource.Size.Disk)},
			{head: "ZONE", wide: true, cell: func(n *resource.Node) string { return n.Spec.Zone }},
			{head: "ADDRESS", wide: true, cell: func(n *resource.Node) string {
				text, _ := n.Status.Address.MarshalText() // none is no text
				return string(text)
			}},
			{head: "ALSO", wide: true, cell: func(n *resource.Node) string { return joined(n.Status.Addresses) }},
			{head: "VERSION", wide: true, cell: func(n *resource.Node) string { return n.Status.Version }},
			{head: "KERNEL", wide: true, cell: func(n *resource.Node) string { return n.Status.Kernel }},
			{head: "OS", wide: true, cell: func(n *resource.Node) string { return n.Status.OS }},
			{head: "DRIVERS", wide: true, cell: func(n *resource.Node) string { return strings.Join(n.Status.Drivers, ", ") }},
			{head: "HEARTBEAT", wide: true, cell: func(n *resource.Node) string { return since(n.Status.HeartbeatAt) }},
		}),
	}
}

func (p *program) nodeCommands() *command {
	nodes := p.nodes()
	return group("nodes, node", "list, show, cordon, set and remove the platform's hosts, and their storage (for sysadmins)",
		nodes.list(help("list the nodes, and how much of each is allocated", "mp nodes list", "mp nodes list -o wide")),
		nodes.show(help("show a node", "mp nodes show host1")),
		&command{
			name:     "cordon",
			usage:    "keep new machines away from a node",
			args:     "NAME",
			names:    nodes.names,
			about:    "Machines that run on it stay.",
			examples: []string{"mp nodes cordon host1"},
			flags:    flags(dryRunFlag(), resultFlag()),
			run:      func(c *call) error { return c.setSchedulable(false, "takes no new machines any more") },
		},
		&command{
			name:     "uncordon",
			usage:    "allow new machines on a node again",
			args:     "NAME",
			names:    nodes.names,
			examples: []string{"mp nodes uncordon host1"},
			flags:    flags(dryRunFlag(), resultFlag()),
			run:      func(c *call) error { return c.setSchedulable(true, "takes new machines again") },
		},
		&command{
			name:  "set",
			usage: "set a node's zone, and confirm what it says of itself",
			args:  "NAME",
			names: nodes.names,
			about: `Clusters' nodes have the zone of their host as the label topology.kubernetes.io/zone, and
spread their pods over zones. A host without one is a zone of its own.

A node is at the address from which its first report came, and machines get no more of it
than it had then. What it says since is not taken at its word, but shown: in
'mp nodes show', and among the problems of 'multipaas status' on the server. If the host has
moved or grown, say so here; an empty value, as in --memory '', takes back what was said.

Tenants reach no address that a host has. What it has besides its own on the platform's network,
a second network card's or one that moves between hosts, counts once it has reported from there;
where no way leads from there to the server, say so here. That it has shown one counts for an hour,
and it is asked again meanwhile. One that is somebody else's, from which tenants are kept because the
host has shown it, is given back with --not-also. Each list replaces the one before.`,
			examples: []string{
				"mp nodes set host1 --zone room-2", "mp nodes set host1 --zone ''",
				"mp nodes set host1 --address 192.0.2.17", "mp nodes set host1 --memory 256Gi --disk 4Ti",
				"mp nodes set host1 --memory ''",
				"mp nodes set host1 --also 198.51.100.17,203.0.113.4", "mp nodes set host1 --also ''",
				"mp nodes set host1 --not-also 10.0.0.5",
			},
			flags: flags(dryRunFlag(), resultFlag(), []cli.Flag{
				&cli.StringFlag{Name: "zone", Usage: "`ZONE` of the host: a rack, a room; empty for the host itself"},
				&cli.StringFlag{Name: "address", Usage: "`ADDRESS` by which the other hosts reach it; empty to say no more of it"},
				&cli.StringFlag{Name: "also", Usage: "other `ADDRESSES` that it has and need not show, with commas; empty for none"},
				&cli.StringFlag{Name: "not-also", Usage: "`ADDRESSES` that aren't its own, even if it shows them; empty for none"},
				&cli.StringFlag{Name: "cpu", Usage: "`CPUS` that its machines may have: 64; empty for what it had when it joined"},
				&cli.StringFlag{Name: "memory", Usage: "memory `SIZE` that its machines may have: 256Gi; empty for what it had"},
				&cli.StringFlag{Name: "disk", Usage: "disk `SIZE` that its machines may have: 4Ti; empty for what it had"},
			}),
			run: (*call).setNode,
		},
		nodes.delete("", command{
			name:  "remove, rm, delete",
			usage: "move a node's machines elsewhere and remove it from the platform",
			about: `With --lost, the platform does not wait for the node itself. Give it only if the host will
never come back: its machines are created again elsewhere, and none may run twice. Local volumes
are on their host's disk: while some are there, the node is removed with --lost only, and they are
lost with it.`,
			examples: []string{"mp nodes remove host1 --yes --timeout 30m", "mp nodes remove host1 --lost"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "lost", Usage: "the host will never come back: do not wait for it"}},
			run: func(c *call) error {
				query := ""
				if c.Bool("lost") {
					query = "?lost=true"
				}
				return nodes.remove(c, "Remove node %s? Its machines are drained and created again elsewhere.", query)
			},
		}),
		p.poolCommands(),
	)
}

// setNode sets the zone, and confirms an address and a capacity.
func (c *call) setNode() error {
	spec, now := map[string]any{}, []string{}
	if zone := c.String("zone"); c.IsSet("zone") {
		spec["zone"] = zone
		if now = append(now, "is in zone "+printable(zone)); zone == "" {
			now[0] = "is a zone of its own"
		}
	}
	if text := c.String("address"); c.IsSet("address") {
		address, err := netip.ParseAddr(text)
		if err != nil && text != "" {
			return usagef("write it like 192.0.2.17", "--address %q is not an address", text)
		}
		spec["address"] = address
	}
	for flag, field := range map[string]string{"also": "addresses", "not-also": "notAddresses"} {
		if !c.IsSet(flag) {
			continue
		}
		list := []netip.Addr{}
		for _, text := range strings.FieldsFunc(c.String(flag), func(r rune) bool { return r == ',' || r == ' ' }) {
			address, err := netip.ParseAddr(text)
			if err != nil {
				return usagef("write them like 192.0.2.17,198.51.100.4", "--%s: %q is not an address", flag, text)
			}
			list = append(list, address)
		}
		spec[field] = list
	}
	capacity, err := amounts(c)
	if err != nil {
		return err
	}
	for flag, field := range capacityFields {
		if c.IsSet(flag) && c.String(flag) == "" {
			capacity[field] = 0 // what it had when it joined
		}
	}
	if len(capacity) > 0 {
		spec["capacity"] = capacity
	}
	if len(spec) == 0 {
		return usagef("see '"+c.path+" --help'", "%s: there is nothing to set", c.path)
	}
	if spec["address"] != nil || spec["addresses"] != nil || spec["notAddresses"] != nil || spec["capacity"] != nil {
		now = append(now, "is taken for that from its next report on, within seconds")
	}
	return c.patchNode(spec, strings.Join(now, ", and "))
}

// setSchedulable says how it is then.
func (c *call) setSchedulable(on bool, now string) error {
	return c.patchNode(map[string]any{"unschedulable": !on}, now)
}

func (c *call) patchNode(spec map[string]any, now string) error {
	var got resource.Node
	if err := c.write(http.MethodPatch, apiPath("nodes", c.arg(0)), map[string]any{"spec": spec}, &got); err != nil {
		return err
	}
	return c.nodes().printResult(c, &got, "Node %s %s.", c.arg(0), now)
}

// joined are addresses with commas between.
func joined(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}
