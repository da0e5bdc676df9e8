package client

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) accounts() noun[resource.Account] {
	return noun[resource.Account]{
		one:   "account",
		in:    anywhere,
		place: true,
		empty: "You belong to no account yet.",
		columns: standard([]column[resource.Account]{
			{head: "STATE", cell: func(a *resource.Account) string { return phaseOf(&a.Meta, resource.Ready) }},
			{head: "DOMAINS", wide: true, cell: func(a *resource.Account) string { return strings.Join(a.Spec.Domains, ",") }},
			{head: "UID", wide: true, cell: func(a *resource.Account) string { return a.UID }},
		}),
	}
}

// owners are memberships in an account, and members those in an organization.
func (p *program) owners() noun[resource.Membership] {
	owners := p.members()
	owners.one, owners.in = "owner", inAccount
	return owners
}

func (p *program) accountCommands() *command {
	accounts := p.accounts()
	return group("accounts, account", "list, choose and delete accounts",
		accounts.list(help("list the accounts you belong to", "mp accounts list", "mp accounts list -o name")),
		accounts.use(command{
			usage:    "work in this account",
			about:    "Changing to another account leaves its organization, workspace and namespace.",
			examples: []string{"mp accounts use acme"},
		}),
		accounts.set(command{
			usage: "set an account's limits and domains (for sysadmins)",
			about: `Limits that are not set are those of the platform's configuration; 0 goes back to that.
Of the domains that are given, and below them, nobody but the account makes users from then
on; those who are there stay: 'mp users list' shows whose they are.`,
			examples: []string{
				"mp accounts set acme --max-workspaces 5 --max-cpu 64 --max-memory 256Gi",
				"mp accounts set acme --max-images 500Gi",
				"mp accounts set acme --domain acme.example --domain acme.org",
			},
			flags: append(limitFlags(), &cli.StringSliceFlag{Name: "domain",
				Usage: "e-mail `DOMAINS` that are the account's alone, all of them; '' for none"}),
		}, (*call).newLimits),
		accounts.delete("Delete account %s?", help("delete an account that has no organizations left",
			"mp accounts delete acme --yes")),
		&command{
			name:  "owners",
			usage: "list, add and remove an account's owners",
			about: `An owner may do everything in the account. The last one can't be removed. A user of another
account has to accept: see 'mp org users add'.`,
			sub: []*command{
				p.owners().list(help("list the owners", "mp accounts owners list")),
				{
					name:     "add",
					usage:    "make a user an owner, or offer it",
					args:     "EMAIL",
					examples: []string{"mp accounts owners add second@acme.example"},
					flags:    flags(placeFlags(inAccount), dryRunFlag(), resultFlag()),
					run: func(c *call) error {
						t, err := c.need(inAccount)
						if err != nil {
							return err
						}
						return c.giveRole(p.owners(), Target{Account: t.Account}, c.Args().Slice(), "an owner", nil)
					},
				},
				{
					name:     "remove, rm, delete",
					usage:    "remove an owner, or withdraw the offer",
					args:     "EMAIL",
					examples: []string{"mp accounts owners remove second@acme.example --yes"},
					flags:    flags(placeFlags(inAccount), yesFlag(), dryRunFlag()),
					run: func(c *call) error {
						t, err := c.need(inAccount)
						if err != nil {
							return err
						}
						question := "Remove owner " + c.arg(0) + " of " + t.Account + "?"
						return c.takeRole(p.owners(), Target{Account: t.Account}, c.Args().Slice(), "an owner", question)
					},
				},
			},
		},
	)
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

func (c *call) newLimits() (map[string]any, string, error) {
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
			n, err := amount(c, flag)
			if err != nil {
				return nil, "", err
			}
			limits[d.Name] = n
		}
	}
	spec := map[string]any{}
	if len(limits) > 0 {
		spec["limits"] = limits
	}
	if c.IsSet("domain") {
		domains := []string{}
		for d := range strings.SplitSeq(strings.Join(c.StringSlice("domain"), ","), ",") {
			if d = strings.TrimSpace(d); d != "" {
				domains = append(domains, d)
			}
		}
		spec["domains"] = domains
	}
	return spec, "is changed", nil
}
