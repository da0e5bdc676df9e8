package client

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// poolEntry is a pool of a node, as it shall be and as it is.
type poolEntry struct {
	resource.Pool
	State string `json:"state"`
}

// poolsOf are a node's pools, its own folder first.
func poolsOf(n *resource.Node) (all []poolEntry) {
	if own := n.Pool(""); own != nil {
		e := poolEntry{*own, "Ready"}
		if own.Message != "" {
			e.State = "Away"
		}
		all = append(all, e)
	}
	for _, want := range n.Spec.Pools {
		e := poolEntry{Pool: resource.Pool{Name: want.Name, UID: want.UID, Path: want.Path, Device: want.Device}, State: "Pending"}
		if seen := n.Pool(want.UID); seen != nil {
			e.Pool = *seen
			e.Device = cmp.Or(seen.Device, want.Device)
			switch {
			case seen.Message == "":
				e.State = "Ready"
			case seen.Made:
				e.State = "Away"
			default:
				e.State = "Refused"
			}
		}
		if want.Removing {
			e.State = "Removing"
		}
		if want.Lost {
			e.State = "Lost"
		}
		all = append(all, e)
	}
	return all
}

// poolOf is the one of this name, nil if there is none.
func poolOf(n *resource.Node, name string) *poolEntry {
	all := poolsOf(n)
	if i := slices.IndexFunc(all, func(e poolEntry) bool { return e.Name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

func (p *program) pools() noun[poolEntry] {
	size := func(of func(*poolEntry) int64) func(*poolEntry) string {
		return func(e *poolEntry) string {
			if n := of(e); n != 0 {
				return resource.Bytes.Text(n)
			}
			return ""
		}
	}
	return noun[poolEntry]{
		one:   "pool",
		in:    anywhere,
		name:  func(e *poolEntry) string { return e.Name },
		empty: "The node has not said yet where it has volumes.",
		columns: []column[poolEntry]{
			{head: "NAME", cell: func(e *poolEntry) string { return e.Name }},
			{head: "STATE", cell: func(e *poolEntry) string { return e.State }},
			{head: "ON", cell: func(e *poolEntry) string { return cmp.Or(e.Device, e.Path) }},
			{head: "SIZE", cell: size(func(e *poolEntry) int64 { return e.SizeBytes })},
			{head: "FREE", cell: size(func(e *poolEntry) int64 { return e.FreeBytes })},
			{head: "PROMISED", cell: size(func(e *poolEntry) int64 { return e.PromisedBytes })},
			{head: "HEALTH", cell: func(e *poolEntry) string {
				if e.Ails() {
					return "ails" // what, is said below
				}
				return e.Health
			}},
			{head: "SERIAL", wide: true, cell: func(e *poolEntry) string { return e.Serial }},
			{head: "PATH", wide: true, cell: func(e *poolEntry) string { return e.Path }},
		},
	}
}

func (p *program) poolCommands() *command {
	nodes, pools := p.nodes(), p.pools()
	return group("storage", "list, add and remove the disks and folders in which a node has volumes, and balance them",
		&command{
			name:     "list, ls",
			usage:    "list where a node has volumes",
			args:     "NODE",
			names:    nodes.names,
			examples: []string{"mp nodes storage list host1", "mp nodes storage list host1 -o wide"},
			flags:    outputFlags(),
			run: func(c *call) error {
				n, err := c.nodeNamed(c.arg(0))
				if err != nil {
					return err
				}
				entries := poolsOf(n)
				if err := pools.printList(c, entries); err != nil {
					return err
				}
				for _, e := range entries {
					if what := cmp.Or(e.Message, e.Note); what != "" {
						fmt.Fprintf(c.err, "%s: %s\n", printable(e.Name), printable(what))
					}
					if e.Ails() {
						fmt.Fprintf(c.err, "%s: %s\n", printable(e.Name), printable(e.Health))
					}
				}
				return nil
			},
		},
		&command{
			name:  "add",
			usage: "have a node keep volumes on a disk, a partition, or in a folder",
			args:  "NODE",
			names: nodes.names,
			about: `A disk or partition gets an XFS file system of its own, and is found again by what is written
on it, whatever it is called after a reboot. If it holds anything, nothing is done: to destroy what
it holds, give its serial number with --erase, as the refusal names it. That is consent to one try. What is mounted or used
otherwise is refused in any case. A folder has to be empty, to belong to root, and to be on a file system
of its own. The node's service may write where its unit says only: before, have systemctl edit
multipaas-node add ReadWritePaths=-PATH to its [Service], and restart it; machines go on running.

New volumes go where there is most room; those that are there stay where they are, until 'mp nodes storage balance'
has copies of shared ones go there.`,
			examples: []string{
				"mp nodes storage add host1 --device /dev/sdb",
				"mp nodes storage add host1 --device /dev/disk/by-id/nvme-X_S4EV --name fast --erase S4EV",
				"mp nodes storage add host1 --path /srv/volumes",
			},
			flags: flags([]cli.Flag{
				&cli.StringFlag{Name: "device", Usage: "the disk or partition: `DEVICE`, as /dev/sdb"},
				&cli.StringFlag{Name: "path", Usage: "the empty folder: `PATH`"},
				&cli.StringFlag{Name: "name", Usage: "what it is called: `NAME`, by default as the device or the folder"},
				&cli.StringFlag{Name: "erase", Usage: "destroy what is on the device with this `SERIAL` number"},
			}, dryRunFlag(), waitFlags(), resultFlag()),
			run: (*call).addPool,
		},
		&command{
			name:  "remove, rm, delete",
			usage: "take a disk or folder from a node",
			args:  "NODE POOL",
			names: nodes.names,
			about: `Refused while volumes, copies or snapshots are in it, in the trash too. With --lost, one that is
away is given up with all that is in it: give it only if its disk will never come back.`,
			examples: []string{"mp nodes storage remove host1 sdb", "mp nodes storage remove host1 sdb --lost"},
			flags: flags([]cli.Flag{
				&cli.BoolFlag{Name: "lost", Usage: "its disk will never come back: what is in it is lost"},
			}, yesFlag(), dryRunFlag(), waitFlags(), resultFlag()),
			run: (*call).removePool,
		},
		p.balanceCommand(),
	)
}

func (c *call) nodeNamed(name string) (*resource.Node, error) {
	n := &resource.Node{}
	return n, c.get(apiPath("nodes", name), n)
}

func (c *call) addPool() error {
	device, folder := c.String("device"), c.String("path")
	if (device == "") == (folder == "") {
		return usagef("give --device /dev/sdb or --path /srv/volumes", "%s: a device or a path is missing, or there is both", c.path)
	}
	name := cmp.Or(c.String("name"), strings.ToLower(path.Base(cmp.Or(device, folder))))
	if err := checkName("pool", name); err != nil {
		return err
	}
	body := map[string]any{"name": name}
	for field, text := range map[string]string{"device": device, "path": folder, "erase": c.String("erase")} {
		if text != "" {
			body[field] = text
		}
	}
	if device != "" && c.String("erase") != "" {
		fmt.Fprintf(c.err, "What %s holds is destroyed.\n", printable(device))
	}
	var got resource.Node
	if err := c.write(http.MethodPost, apiPath("nodes", c.arg(0), "pools"), body, &got); err != nil {
		return err
	}
	pools := c.pools()
	var now *poolEntry
	err := c.untilNode("it is looked at", &got, func(n *resource.Node) bool {
		now = poolOf(n, name)
		return now == nil || now.State != "Pending"
	})
	switch {
	case err != nil:
		return err
	case now == nil:
		return failf("", "the pool %s of node %s was taken away meanwhile", name, c.arg(0))
	case now.State == "Refused" || now.State == "Away":
		return failf("mend that and add it again; to give it up: mp nodes storage remove "+c.arg(0)+" "+name,
			"node %s can't have it: %s", c.arg(0), printable(now.Message))
	case now.State == "Pending":
		return pools.printResult(c, now, "Node %s is asked to have the pool %s.", c.arg(0), name)
	}
	if now.Note != "" {
		fmt.Fprintln(c.err, "Note: "+printable(now.Note))
	}
	return pools.printResult(c, now, "Node %s has the pool %s, with %s free.", c.arg(0), name, resource.Bytes.Text(now.FreeBytes))
}

func (c *call) removePool() error {
	node, name, query := c.arg(0), c.arg(1), ""
	question, typed := fmt.Sprintf("Take the pool %s from node %s?", name, node), ""
	if c.Bool("lost") {
		query, typed = "?lost=true", name
		question = fmt.Sprintf("Give up the pool %s of node %s, with all volumes in it?", name, node)
	}
	if err := c.confirm(question, typed); err != nil {
		return err
	}
	var got resource.Node
	if err := c.write(http.MethodDelete, apiPath("nodes", node, "pools", name)+query, nil, &got); err != nil {
		return err
	}
	last := poolOf(&got, name)
	if c.Bool("lost") {
		return c.pools().printResult(c, cmp.Or(last, &poolEntry{}),
			"The pool %s of node %s is given up. Copies of shared volumes are made anew in other places; once its local "+
				"volumes are deleted it goes.", name, node)
	}
	err := c.untilNode("it is let go of", &got, func(n *resource.Node) bool {
		now := poolOf(n, name)
		last = cmp.Or(now, last)
		return now == nil
	})
	if err != nil {
		return err
	}
	return c.pools().printResult(c, cmp.Or(last, &poolEntry{}), "Node %s does not have the pool %s any more.", node, name)
}

// untilNode asks for a node until it is as ok says, unless nobody wants to wait.
func (c *call) untilNode(what string, n *resource.Node, ok func(*resource.Node) bool) error {
	ctx, cancel := c.Context.Context, context.CancelFunc(func() {})
	if limit := c.Duration("timeout"); limit > 0 {
		ctx, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	for !ok(n) && c.Bool("wait") && !c.Bool("no-wait") {
		select {
		case <-ctx.Done():
			return &failure{text: "timed out while waiting until " + what, remedy: "see: mp nodes storage list " + c.arg(0),
				code: ExitTimeout}
		case <-time.After(time.Second): // not waiting for an event: nodes have none that a client is told of
		}
		now, err := c.nodeNamed(n.Name)
		if err != nil {
			return err
		}
		n = now
	}
	return nil
}
