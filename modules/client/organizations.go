package client

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func organizationTable(c *call) table[*resource.Organization] {
	now := c.now()
	return table[*resource.Organization]{
		name:  func(o *resource.Organization) string { return o.Name },
		empty: "There is no organization you belong to. Make one with 'mp org create NAME'.",
		columns: []column[*resource.Organization]{
			{head: "NAME", cell: func(o *resource.Organization) string { return o.Name }},
			{head: "ACCOUNT", cell: func(o *resource.Organization) string { return o.Account }},
			{head: "STATE", cell: func(o *resource.Organization) string { return stateOf(&o.Meta) }},
			{head: "AGE", cell: func(o *resource.Organization) string { return age(o.CreatedAt, now) }},
			{head: "UID", wide: true, cell: func(o *resource.Organization) string { return o.UID }},
		},
	}
}

func memberTable() table[*resource.Membership] {
	return table[*resource.Membership]{
		name:  func(m *resource.Membership) string { return m.Name },
		empty: "The organization has no members of its own.",
		columns: []column[*resource.Membership]{
			{head: "USER", cell: func(m *resource.Membership) string { return m.Name }},
			{head: "ROLE", cell: func(m *resource.Membership) string { return string(m.Role) }},
			{head: "ORGANIZATION", wide: true, cell: func(m *resource.Membership) string {
				return Target{Account: m.Account, Organization: m.Organization}.String()
			}},
		},
	}
}

func organizationNames() func(*call) ([]string, error) {
	return names(func(o *resource.Organization) string { return o.Name }, func(c *call) (string, error) {
		t, err := c.need(inAccount)
		return t.account("organizations"), err
	})
}

// memberNames offers users behind the name of an organization.
func memberNames() func(*call) ([]string, error) {
	orgs := organizationNames()
	return func(c *call) ([]string, error) {
		if c.NArg() == 0 {
			return orgs(c)
		}
		t, err := c.need(inAccount)
		if err != nil {
			return nil, err
		}
		t.Organization = c.arg(0)
		return names(func(m *resource.Membership) string { return m.Name }, func(*call) (string, error) {
			return t.organization("members"), nil
		})(c)
	}
}

// organizationArg is the place of the organization in argument i, or of the
// chosen one if it is left out.
func (c *call) organizationArg(i int) (Target, error) {
	if c.NArg() <= i {
		return c.need(inOrganization)
	}
	t, err := c.need(inAccount)
	if err != nil {
		return t, err
	}
	return Target{Account: t.Account, Organization: c.arg(i)}, checkName("organization", c.arg(i))
}

func (p *program) organizationCommands() *command {
	return &command{
		name: "org", aliases: []string{"orgs", "organization", "organizations"}, usage: "make, list, choose and delete organizations; their members",
		sub: []*command{
			{
				name: "create", usage: "make an organization and work in it", args: "NAME",
				examples: []string{"mp org create web"},
				flags:    flags(placeFlags(inAccount), dryRunFlag(), resultFlag()),
				run:      (*call).createOrganization,
			},
			{
				name: "list", aliases: []string{"ls"}, usage: "list the account's organizations that you belong to",
				examples: []string{"mp org list", "mp org list --account acme -o json"},
				flags:    flags(placeFlags(inAccount), outputFlags()),
				run: func(c *call) error {
					t, err := c.need(inAccount)
					if err != nil {
						return err
					}
					items, err := list[*resource.Organization](c, t.account("organizations"), nil)
					if err != nil {
						return err
					}
					return printList(c, items, organizationTable(c))
				},
			},
			{
				name: "use", usage: "work in this organization", args: "NAME", names: organizationNames(),
				about:    "Another organization than before takes workspace and namespace out of the context.",
				examples: []string{"mp org use web"},
				flags:    placeFlags(inAccount),
				run: func(c *call) error {
					t, err := c.organizationArg(0)
					if err != nil {
						return err
					}
					if err := c.get(t.organization(), &resource.Organization{}); err != nil {
						return err
					}
					return c.choose(t)
				},
			},
			{
				name: "delete", aliases: []string{"rm"}, usage: "delete an organization that has no workspaces and images any more", args: "NAME", names: organizationNames(),
				examples: []string{"mp org delete web --yes"},
				flags:    flags(placeFlags(inAccount), yesFlag(), dryRunFlag()),
				run: func(c *call) error {
					t, err := c.organizationArg(0)
					if err != nil {
						return err
					}
					if err := c.confirm("Delete organization "+t.String()+"?", t.Organization); err != nil {
						return err
					}
					return remove[*resource.Organization](c, t.organization(), organizationTable(c), "Organization "+t.String(), t)
				},
			},
			{
				name: "users", aliases: []string{"members"}, usage: "list, add and remove an organization's members",
				sub: []*command{
					{
						name: "list", aliases: []string{"ls"}, usage: "list the members", args: "[ORGANIZATION]", names: organizationNames(),
						examples: []string{"mp org users list"},
						flags:    flags(placeFlags(inOrganization), outputFlags()),
						run: func(c *call) error {
							t, err := c.organizationArg(0)
							if err != nil {
								return err
							}
							items, err := list[*resource.Membership](c, t.organization("members"), nil)
							if err != nil {
								return err
							}
							return printList(c, items, memberTable())
						},
					},
					{
						name: "add", usage: "give users a role in an organization", args: "[ORGANIZATION] [EMAIL]...", names: organizationNames(),
						about:    "An admin decides on workspaces and members, a developer deploys into workspaces. Who is\na member already gets the new role. The users must be there: see 'mp users create'.",
						examples: []string{"mp org users add web dev@acme.example", "mp org users add --users a@acme.example,b@acme.example --role admin"},
						flags: flags(placeFlags(inOrganization),
							&cli.StringSliceFlag{Name: "users", Aliases: []string{"u"}, Usage: "e-mail `ADDRESSES`, with commas between; for the chosen organization if none is named"},
							&cli.StringFlag{Name: "role", Value: string(resource.RoleDeveloper), Usage: "`ROLE`: admin or developer"},
							dryRunFlag(), resultFlag()),
						run: (*call).addMembers,
					},
					{
						name: "remove", aliases: []string{"rm", "delete"}, usage: "take users out of an organization", args: "[ORGANIZATION] [EMAIL]...", names: memberNames(),
						about:    "The users themselves stay.",
						examples: []string{"mp org users remove web dev@acme.example --yes"},
						flags: flags(placeFlags(inOrganization),
							&cli.StringSliceFlag{Name: "users", Aliases: []string{"u"}, Usage: "e-mail `ADDRESSES`, with commas between; for the chosen organization if none is named"},
							yesFlag(), dryRunFlag()),
						run: (*call).removeMembers,
					},
				},
			},
		},
	}
}

func (c *call) createOrganization() error {
	t, err := c.organizationArg(0)
	if err != nil {
		return err
	}
	var made resource.Organization
	if err := c.write(http.MethodPut, t.organization(), nil, &made, "If-None-Match", "*"); err != nil {
		return err
	}
	if err := c.use(t); err != nil {
		return err
	}
	return printResult(c, &made, organizationTable(c), "Organization %s is there, and chosen.", t)
}

// members is the organization and the users that the arguments and --users
// name. An argument with an @ is a user.
func (c *call) members() (Target, []string, error) {
	var users []string
	for _, list := range c.StringSlice("users") {
		for _, u := range strings.Split(list, ",") {
			if u = strings.TrimSpace(u); u != "" {
				users = append(users, u)
			}
		}
	}
	args := c.Args().Slice()
	t, err := c.place()
	if err != nil {
		return t, nil, err
	}
	if len(args) > 0 && !strings.Contains(args[0], "@") {
		if t, err = c.organizationArg(0); err != nil {
			return t, nil, err
		}
		args = args[1:]
	} else if t, err = c.need(inOrganization); err != nil {
		return t, nil, err
	}
	users = append(users, args...)
	for _, u := range users {
		if !strings.Contains(u, "@") {
			return t, nil, usagef("users are named by their e-mail address", "%q is no user", u)
		}
	}
	if len(users) == 0 {
		return t, nil, usagef("name them as arguments or with --users", "%s: no user is named", c.path)
	}
	return t, users, nil
}

func (c *call) addMembers() error {
	t, users, err := c.members()
	if err != nil {
		return err
	}
	role := resource.Role(c.String("role"))
	if role != resource.RoleAdmin && role != resource.RoleDeveloper {
		return usagef("use admin or developer", "--role %q is no role of an organization", role)
	}
	for _, u := range users {
		var made resource.Membership
		if err := c.write(http.MethodPut, t.organization("members", u), map[string]any{"role": role}, &made); err != nil {
			return err
		}
		if err := printResult(c, &made, memberTable(), "%s is %s of %s.", u, role, t); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) removeMembers() error {
	t, users, err := c.members()
	if err != nil {
		return err
	}
	if err := c.confirm(fmt.Sprintf("Take %s out of %s?", strings.Join(users, ", "), t), ""); err != nil {
		return err
	}
	for _, u := range users {
		if err := c.write(http.MethodDelete, t.organization("members", u), nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s is no member of %s any more.\n", u, t)
	}
	return nil
}
