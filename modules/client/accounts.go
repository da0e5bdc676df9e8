package client

import (
	"fmt"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) accounts() noun[resource.Account] {
	return noun[resource.Account]{
		one:   "account",
		many:  "accounts",
		in:    anywhere,
		place: true,
		table: table[resource.Account]{
			empty: "You belong to no account yet.",
			columns: []column[resource.Account]{
				{head: "NAME", cell: func(a *resource.Account) string { return a.Name }},
				{head: "STATE", cell: func(a *resource.Account) string { return phaseOf(&a.Meta, resource.Ready) }},
				{head: "AGE", cell: func(a *resource.Account) string { return p.age(a.CreatedAt) }},
				{head: "UID", wide: true, cell: func(a *resource.Account) string { return a.UID }},
			},
		},
	}
}

// owners are memberships in an account, and members those in an organization.
func (p *program) owners() noun[resource.Membership] {
	owners := p.members()
	owners.one, owners.many, owners.in = "owner", "owners", inAccount
	return owners
}

func (p *program) accountCommands() *command {
	accounts := p.accounts()
	return &command{
		name:    "accounts",
		aliases: []string{"account"},
		usage:   "list, choose and delete accounts",
		sub: []*command{
			accounts.list(command{
				usage:    "list the accounts you belong to",
				examples: []string{"mp accounts list", "mp accounts list -o name"},
			}),
			accounts.use(command{
				usage:    "work in this account",
				about:    "Changing to another account leaves its organization, workspace and namespace.",
				examples: []string{"mp accounts use acme"},
			}),
			{
				name:  "set",
				usage: "set an account's limits (for sysadmins)",
				args:  "NAME",
				names: accounts.names,
				about: "Limits that are not set are those of the platform's configuration; 0 goes back to that.",
				examples: []string{
					"mp accounts set acme --max-workspaces 5 --max-cpu 64 --max-memory 256Gi",
					"mp accounts set acme --max-images 500Gi",
				},
				flags: flags(limitFlags(), dryRunFlag(), resultFlag()),
				run:   (*call).setAccount,
			},
			accounts.delete("Delete account %s?", command{
				usage:    "delete an account that has no organizations left",
				examples: []string{"mp accounts delete acme --yes"},
			}),
			{
				name:  "owners",
				usage: "list, add and remove an account's owners",
				about: "An owner may do everything in the account. The last one can't be removed.",
				sub: []*command{
					p.owners().list(command{
						usage:    "list the owners",
						examples: []string{"mp accounts owners list"},
					}),
					{
						name:     "add",
						usage:    "make a user an owner",
						args:     "EMAIL",
						examples: []string{"mp accounts owners add second@acme.example"},
						flags:    flags(placeFlags(inAccount), dryRunFlag(), resultFlag()),
						run: func(c *call) error {
							t, err := c.need(inAccount)
							if err != nil {
								return err
							}
							var made resource.Membership
							if err := c.write(http.MethodPut, t.account("owners", c.arg(0)), nil, &made); err != nil {
								return err
							}
							return printResult(c, &made, p.owners().table, "%s is an owner of %s.", printable(c.arg(0)), t.Account)
						},
					},
					{
						name:     "remove",
						aliases:  []string{"rm", "delete"},
						usage:    "remove an owner",
						args:     "EMAIL",
						examples: []string{"mp accounts owners remove second@acme.example --yes"},
						flags:    flags(placeFlags(inAccount), yesFlag(), dryRunFlag()),
						run: func(c *call) error {
							t, err := c.need(inAccount)
							if err != nil {
								return err
							}
							return c.removeOwner(t.account("owners", c.arg(0)), c.arg(0), t.Account)
						},
					},
				},
			},
		},
	}
}

// limitFlags has a flag for each thing that accounts have limits of.
func limitFlags() []cli.Flag {
	var all []cli.Flag
	for _, d := range resource.Dimensions() {
		name := "max-" + d.Setting
		switch d.Unit {
		case resource.Count:
			all = append(all, &cli.Int64Flag{Name: name, Usage: "`NUMBER`: " + d.Doc})
		case resource.Thousandths:
			all = append(all, &cli.StringFlag{Name: name, Usage: "`NUMBER`: " + d.Doc + ", like 64 or 1.5"})
		case resource.Bytes:
			all = append(all, &cli.StringFlag{Name: name, Usage: "`SIZE`: " + d.Doc + ", like 256Gi"})
		}
	}
	return all
}

func (c *call) setAccount() error {
	it, err := c.accounts().arg(c)
	if err != nil {
		return err
	}
	limits := map[string]int64{}
	for _, d := range resource.Dimensions() {
		flag := "max-" + d.Setting
		switch {
		case !c.IsSet(flag):
		case d.Unit == resource.Count:
			limits[d.Name] = c.Int64(flag)
		case c.String(flag) == "0":
			limits[d.Name] = 0
		default:
			if limits[d.Name], err = amount(c, flag, d.Unit == resource.Thousandths); err != nil {
				return err
			}
		}
	}
	spec := map[string]any{}
	if len(limits) > 0 {
		spec["limits"] = limits
	}
	return c.accounts().patch(c, it, spec, "is changed")
}

// removeOwner takes one user's role at path, in the account where.
func (c *call) removeOwner(path, user, where string) error {
	if err := c.confirm("Remove owner "+user+" of "+where+"?", ""); err != nil {
		return err
	}
	if err := c.write(http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.out, "%s is no longer an owner of %s.\n", printable(user), where)
	return err
}
