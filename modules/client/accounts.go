package client

import (
	"fmt"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// checkName is resource.CheckName as a usage error: the API would say the same.
func checkName(what, name string) error {
	if err := resource.CheckName(what, name); err != nil {
		return usagef("names are RFC 1123 labels, like \"shop\" or \"team-2\"", "%v", err)
	}
	return nil
}

func accountTable(c *call) table[*resource.Account] {
	now := c.now()
	return table[*resource.Account]{
		name:  func(a *resource.Account) string { return a.Name },
		empty: "You belong to no account yet.",
		columns: []column[*resource.Account]{
			{head: "NAME", cell: func(a *resource.Account) string { return a.Name }},
			{head: "STATE", cell: func(a *resource.Account) string { return stateOf(&a.Meta) }},
			{head: "AGE", cell: func(a *resource.Account) string { return age(a.CreatedAt, now) }},
			{head: "UID", wide: true, cell: func(a *resource.Account) string { return a.UID }},
		},
	}
}

// stateOf is for kinds without a phase of their own.
func stateOf(m *resource.Meta) string {
	if m.Deleting() {
		return string(resource.Deleting)
	}
	return string(resource.Ready)
}

var accountsPath = func(*call) (string, error) { return apiPath("accounts"), nil }

func accountNames() func(*call) ([]string, error) {
	return names(func(a *resource.Account) string { return a.Name }, accountsPath)
}

func (p *program) accountCommands() *command {
	return &command{
		name: "accounts", aliases: []string{"account"}, usage: "list, choose and delete accounts",
		sub: []*command{
			{
				name: "list", aliases: []string{"ls"}, usage: "list the accounts you belong to",
				examples: []string{"mp accounts list", "mp accounts list -o name"},
				flags:    outputFlags(),
				run: func(c *call) error {
					items, err := list[*resource.Account](c, apiPath("accounts"), nil)
					if err != nil {
						return err
					}
					return printList(c, items, accountTable(c))
				},
			},
			{
				name: "use", usage: "work in this account", args: "NAME", names: accountNames(),
				about:    "Another account than before takes organization, workspace and namespace out of the\ncontext.",
				examples: []string{"mp accounts use acme"},
				run: func(c *call) error {
					var got resource.Account
					if err := c.get(apiPath("accounts", c.arg(0)), &got); err != nil {
						return err
					}
					return c.choose(Target{Account: got.Name})
				},
			},
			{
				name: "set", usage: "set what an account may have (for sysadmins)", args: "NAME", names: accountNames(),
				about:    "What is not set is as the platform's configuration says; 0 goes back to that.",
				examples: []string{"mp accounts set acme --max-workspaces 5 --max-cpu 64 --max-memory 256Gi", "mp accounts set acme --max-images 500Gi"},
				flags: flags(
					&cli.Int64Flag{Name: "max-users", Usage: "`NUMBER` of users that were made for it"},
					&cli.Int64Flag{Name: "max-organizations", Usage: "`NUMBER` of organizations"},
					&cli.Int64Flag{Name: "max-workspaces", Usage: "`NUMBER` of workspaces"},
					&cli.Int64Flag{Name: "max-machines", Usage: "`NUMBER` of machines in all workspaces"},
					&cli.Int64Flag{Name: "max-apps", Usage: "`NUMBER` of apps in all workspaces"},
					&cli.StringFlag{Name: "max-cpu", Usage: "`CPUS` of all machines"},
					&cli.StringFlag{Name: "max-memory", Usage: "`MEMORY` of all machines: 256Gi"},
					&cli.StringFlag{Name: "max-disk", Usage: "`DISK` of all machines: 2Ti"},
					&cli.StringFlag{Name: "max-images", Usage: "`BYTES` in the registry: 100Gi"},
					dryRunFlag(), resultFlag()),
				run: (*call).setAccount,
			},
			{
				name: "delete", aliases: []string{"rm"}, usage: "delete an account that has no organizations any more", args: "NAME", names: accountNames(),
				examples: []string{"mp accounts delete acme --yes"},
				flags:    flags(yesFlag(), dryRunFlag()),
				run: func(c *call) error {
					name := c.arg(0)
					if err := c.confirm("Delete account "+name+"?", name); err != nil {
						return err
					}
					return remove[*resource.Account](c, apiPath("accounts", name), accountTable(c), "Account "+name, Target{Account: name})
				},
			},
			{
				name: "owners", usage: "list, add and remove an account's owners",
				about: "An owner may do everything in the account. Somebody must be left.",
				sub: []*command{
					{
						name: "list", aliases: []string{"ls"}, usage: "list the owners",
						examples: []string{"mp accounts owners list"},
						flags:    flags(placeFlags(inAccount), outputFlags()),
						run: func(c *call) error {
							t, err := c.need(inAccount)
							if err != nil {
								return err
							}
							items, err := list[*resource.Membership](c, t.account("owners"), nil)
							if err != nil {
								return err
							}
							return printList(c, items, memberTable())
						},
					},
					{
						name: "add", usage: "make a user an owner", args: "EMAIL",
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
							return printResult(c, &made, memberTable(), "%s is owner of %s.", printable(c.arg(0)), t.Account)
						},
					},
					{
						name: "remove", aliases: []string{"rm", "delete"}, usage: "take an owner's role", args: "EMAIL",
						examples: []string{"mp accounts owners remove second@acme.example --yes"},
						flags:    flags(placeFlags(inAccount), yesFlag(), dryRunFlag()),
						run: func(c *call) error {
							t, err := c.need(inAccount)
							if err != nil {
								return err
							}
							return c.removeMember(t.account("owners", c.arg(0)), c.arg(0), t.Account)
						},
					},
				},
			},
		},
	}
}

func (c *call) setAccount() error {
	limits := map[string]int64{}
	for flag, field := range map[string]string{"max-users": "users", "max-organizations": "organizations", "max-workspaces": "workspaces", "max-machines": "machines", "max-apps": "apps"} {
		if c.IsSet(flag) {
			limits[field] = c.Int64(flag)
		}
	}
	for flag, field := range map[string]string{"max-cpu": "milliCPU", "max-memory": "memoryBytes", "max-disk": "diskBytes", "max-images": "imageBytes"} {
		if !c.IsSet(flag) {
			continue
		}
		limits[field] = 0
		if c.String(flag) == "0" {
			continue
		}
		n, err := amount(c, flag, flag == "max-cpu")
		if err != nil {
			return err
		}
		limits[field] = n
	}
	if len(limits) == 0 {
		return usagef("see '"+c.path+" --help'", "%s: nothing to set is given", c.path)
	}
	var got resource.Account
	if err := c.write(http.MethodPatch, apiPath("accounts", c.arg(0)), map[string]any{"spec": map[string]any{"limits": limits}}, &got); err != nil {
		return err
	}
	return printResult(c, &got, accountTable(c), "Account %s is changed.", printable(c.arg(0)))
}

// removeMember takes one user's role at path, which is his role in where.
func (c *call) removeMember(path, user, where string) error {
	if err := c.confirm("Take "+user+"'s role in "+where+"?", ""); err != nil {
		return err
	}
	if err := c.write(http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.out, "%s has no role in %s any more.\n", printable(user), where)
	return err
}

// choose remembers t on top of the context and says so.
func (c *call) choose(t Target) error {
	conf, err := c.conf()
	if err != nil {
		return err
	}
	if err := c.use(conf.Context.with(t)); err != nil {
		return err
	}
	now := conf.Context
	text := now.String()
	if now.Namespace != "" {
		text += ", namespace " + now.Namespace
	}
	_, err = fmt.Fprintf(c.out, "Working in %s.\n", printable(text))
	return err
}

// remove deletes what is at path, waits until it is gone, and takes it out of
// the context if gone is, or is above, what is chosen there.
func remove[T any](c *call, path string, t table[T], what string, gone Target) error {
	var accepted resource.Accepted[T]
	if err := c.write(http.MethodDelete, path, nil, &accepted); err != nil {
		return err
	}
	if gone != (Target{}) {
		if err := c.forget(gone); err != nil {
			return err
		}
	}
	said := func(word string) func() error {
		return func() error {
			format, err := c.format()
			if err != nil {
				return err
			}
			if format == asTable || format == asWide || accepted.Task == "" {
				_, err := fmt.Fprintf(c.out, "%s %s.\n", what, word)
				return err
			}
			return printOne(c, accepted.Resource, t, nil)
		}
	}
	return c.settle(accepted.Task, said("is being deleted"), said("is deleted"))
}

// forget takes a place that goes out of the context, and cached tokens for it.
func (c *call) forget(gone Target) error {
	if gone.Workspace != "" {
		if err := c.dropKubeToken(gone); err != nil {
			return err
		}
	}
	now := c.config.Context
	kept := now
	switch {
	case gone.Account != now.Account:
		return nil
	case gone.Organization == "":
		kept = Target{}
	case gone.Organization != now.Organization:
		return nil
	case gone.Workspace == "":
		kept = Target{Account: now.Account}
	case gone.Workspace != now.Workspace:
		return nil
	case gone.Namespace == "":
		kept = Target{Account: now.Account, Organization: now.Organization}
	case gone.Namespace == now.Namespace:
		kept.Namespace = ""
	}
	if kept == now {
		return nil
	}
	return c.use(kept)
}
