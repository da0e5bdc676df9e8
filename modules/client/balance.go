package client

import (
	"fmt"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) balanceCommand() *command {
	return &command{
		name:  "balance",
		usage: "have copies of shared volumes go to disks with more room",
		about: `After a host or a disk was added: as long as the shares that are promised of two disks differ by more than a tenth,
a copy goes from the fuller one to the other, the fullest and the emptiest first. What counts is what volumes,
snapshots and machines have been promised there, not what is used of it.
Only copies of volumes with three full ones go, one after the other, while all of them are there; copies of one
volume stay on different hosts, and in as many zones as now. Reading and writing go on, and the old copy is kept
until the new one has all. If it is cut off it goes on by itself; --stop begins no more, and one on its way is finished.
Local volumes stay where they are: 'mp volumes move' brings one elsewhere.`,
		examples: []string{"mp nodes storage balance --dry-run", "mp nodes storage balance --timeout 0",
			"mp nodes storage balance --stop"},
		flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "show which copies would go where, and change nothing"},
			&cli.BoolFlag{Name: "stop", Usage: "begin no more copies"},
		}, waitFlags(), resultFlag()),
		run: (*call).balance,
	}
}

func (p *program) balances() noun[resource.Balance] {
	return noun[resource.Balance]{one: "balance", in: anywhere, tasks: true,
		columns: standard([]column[resource.Balance]{
			{head: "COPIES", cell: func(b *resource.Balance) string { return fmt.Sprint(b.Status.Copies) }},
			{head: "BYTES", cell: func(b *resource.Balance) string { return resource.Bytes.Text(b.Status.Bytes) }},
		})}
}

func (c *call) balance() error {
	balances, path := c.balances(), apiPath("balances", resource.StorageBalance)
	if c.Bool("dry-run") {
		var b resource.Balance
		if err := c.get(path, &b); err != nil {
			return err
		}
		if err := planned().printList(c, b.Status.Plan); err != nil {
			return err
		}
		if m := b.Status.Moving; m != nil {
			c.note("On its way is a copy of %s, from %s to %s.", printable(m.Volume), printable(m.From), printable(m.To))
		}
		return nil
	}
	accepted, err := balances.write(c, http.MethodPut, path, map[string]any{"spec": map[string]any{"stop": c.Bool("stop")}})
	if err != nil {
		return err
	}
	if c.Bool("stop") {
		return balances.settle(c, path, accepted, "No more copies are begun.", "No more copies are begun.")
	}
	return balances.settle(c, path, accepted, "Copies of shared volumes go to disks with more room.",
		"The copies of shared volumes are where they should be.")
}

// planned are copies that would go elsewhere.
func planned() noun[resource.BalancedCopy] {
	return noun[resource.BalancedCopy]{
		one:   "copy",
		in:    anywhere,
		empty: "No copy has to go elsewhere.",
		columns: []column[resource.BalancedCopy]{
			{head: "VOLUME", cell: func(b *resource.BalancedCopy) string { return b.Volume }},
			{head: "FROM", cell: func(b *resource.BalancedCopy) string { return b.From }},
			{head: "TO", cell: func(b *resource.BalancedCopy) string { return b.To }},
			{head: "SIZE", cell: func(b *resource.BalancedCopy) string { return resource.Bytes.Text(b.SizeBytes) }},
			{head: "USED", cell: func(b *resource.BalancedCopy) string { return resource.Bytes.Text(b.UsedBytes) }},
		},
	}
}
