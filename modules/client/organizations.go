package client

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) organizations() noun[resource.Organization] {
	return noun[resource.Organization]{
		one:   "organization",
		in:    inAccount,
		place: true,
		empty: "You belong to no organization here. Create one with 'mp org create NAME'.",
		columns: standard([]column[resource.Organization]{
			{head: "ACCOUNT", cell: func(o *resource.Organization) string { return o.Account }},
			{head: "STATE", cell: func(o *resource.Organization) string { return phaseOf(&o.Meta, resource.Ready) }},
			{head: "UID", wide: true, cell: func(o *resource.Organization) string { return o.UID }},
		}),
	}
}

func (p *program) members() noun[resource.Membership] {
	return noun[resource.Membership]{
		one:   "member",
		in:    inOrganization,
		empty: "The organization has no members of its own.",
		columns: []column[resource.Membership]{
			{head: "USER", cell: func(m *resource.Membership) string { return m.Name }},
			{head: "ROLE", cell: func(m *resource.Membership) string { return string(m.Role) }},
			{head: "OF ACCOUNT", cell: func(m *resource.Membership) string { return m.UserAccount }},
			{head: "MADE BY", cell: func(m *resource.Membership) string { return m.UserBy }},
			{head: "ORGANIZATION", wide: true, cell: func(m *resource.Membership) string {
				return Target{Account: m.Account, Organization: m.Organization}.String()
			}},
		},
	}
}

// organizationsAndMembers offers members behind the name of an organization.
func (c *call) organizationsAndMembers() ([]string, error) {
	if c.NArg() == 0 {
		return c.organizations().names(c)
	}
	t, err := c.placeArg(inOrganization)
	if err != nil {
		return nil, err
	}
	return c.members().namesIn(c, t)
}

func (p *program) organizationCommands() *command {
	organizations := p.organizations()
	return group("org, orgs, organization, organizations", "create, list, choose and delete organizations; manage their members",
		organizations.create(help("create an organization and work in it", "mp org create web"), nil),
		organizations.list(help("list your organizations in the account",
			"mp org list", "mp org list --account acme -o json")),
		organizations.use(command{
			usage:    "work in this organization",
			about:    "Changing to another organization leaves its workspace and namespace.",
			examples: []string{"mp org use web"},
		}),
		organizations.delete("Delete organization %s?", help("delete an organization that has no workspaces or images left",
			"mp org delete web --yes")),
		&command{
			name:  "users, members",
			usage: "list, add and remove an organization's members",
			sub: []*command{
				p.members().list(command{
					usage:    "list the members",
					args:     "[ORGANIZATION]",
					names:    organizations.names,
					examples: []string{"mp org users list"},
				}),
				{
					name:  "add",
					usage: "give users a role in an organization",
					args:  "[ORGANIZATION] [EMAIL]...",
					names: organizations.names,
					about: `An admin manages workspaces and members, a developer deploys into workspaces. A
member gets the new role. Users of the account must exist: see 'mp users create'. Others are
invited: what is printed has to reach them by a way on which you know that it is them, for
anybody may have made a user of that name. They have eight days to accept.`,
					examples: []string{
						"mp org users add web dev@acme.example",
						"mp org users add --users a@acme.example,b@acme.example --role admin",
					},
					flags: flags(placeFlags(inOrganization), usersFlag(),
						&cli.StringFlag{Name: "role", Value: string(resource.RoleDeveloper), Usage: "`ROLE`: admin or developer"},
						dryRunFlag(), resultFlag()),
					run: (*call).addMembers,
				},
				{
					name:     "remove, rm, delete",
					usage:    "take users out of an organization, or withdraw their invitations",
					args:     "[ORGANIZATION] [EMAIL]...",
					names:    (*call).organizationsAndMembers,
					about:    "The users themselves stay.",
					examples: []string{"mp org users remove web dev@acme.example --yes"},
					flags:    flags(placeFlags(inOrganization), usersFlag(), yesFlag(), dryRunFlag()),
					run:      (*call).removeMembers,
				},
			},
		},
	)
}

func usersFlag() cli.Flag {
	return &cli.StringSliceFlag{
		Name:    "users",
		Aliases: []string{"u"},
		Usage:   "e-mail `ADDRESSES`, separated by commas",
	}
}

// membersArg is the organization and the users that the arguments and --users
// name. An argument with an @ is a user.
func (c *call) membersArg() (Target, []string, error) {
	var users []string
	for u := range strings.SplitSeq(strings.Join(c.StringSlice("users"), ","), ",") {
		if u = strings.TrimSpace(u); u != "" {
			users = append(users, u)
		}
	}
	place, args := c.need, c.Args().Slice()
	if len(args) > 0 && !strings.Contains(args[0], "@") {
		place, args = c.placeArg, args[1:]
	}
	t, err := place(inOrganization)
	if err != nil {
		return t, nil, err
	}
	users = append(users, args...)
	for _, u := range users {
		if !strings.Contains(u, "@") {
			return t, nil, usagef("users are named by their e-mail address", "%q is not a user", u)
		}
	}
	if len(users) == 0 {
		return t, nil, usagef("name them as arguments or with --users", "%s: no user is named", c.path)
	}
	return t, users, nil
}

func (c *call) addMembers() error {
	t, users, err := c.membersArg()
	if err != nil {
		return err
	}
	role := resource.Role(c.String("role"))
	if role != resource.RoleAdmin && role != resource.RoleDeveloper {
		return usagef("use admin or developer", "--role %q is not a role in an organization", role)
	}
	return c.giveRole(c.members(), t, users, string(role), map[string]any{"role": role})
}

func (c *call) removeMembers() error {
	t, users, err := c.membersArg()
	if err != nil {
		return err
	}
	return c.takeRole(c.members(), t, users, "a member", fmt.Sprintf("Take %s out of %s?", strings.Join(users, ", "), t))
}

// giveRole makes users what body says in t, and says so of each.
func (c *call) giveRole(n noun[resource.Membership], t Target, users []string, role string, body any) error {
	for _, u := range users {
		var made resource.Membership
		if err := c.write(http.MethodPut, t.at(n.in, n.many(), u), body, &made); err != nil {
			return err
		}
		said := fmt.Sprintf("%s is %s of %s.", printable(u), role, t)
		if made.Offer != nil {
			said = fmt.Sprintf("%s is not of the account %s, and has to accept being %s of %s until %s:\n  mp invitations accept %s %s\n"+
				"Send this to a person of whom you know who it is: anybody may have made that user.",
				printable(u), t.Account, role, t, made.Offer.ExpiresAt.Format("2006-01-02 15:04 MST"), t, made.Offer.Code)
		}
		if err := n.printResult(c, &made, "%s", said); err != nil {
			return err
		}
	}
	return nil
}

// takeRole asks, and takes the role of users in t from them.
func (c *call) takeRole(n noun[resource.Membership], t Target, users []string, role, question string) error {
	if err := c.confirm(question, ""); err != nil {
		return err
	}
	for _, u := range users {
		if err := c.write(http.MethodDelete, t.at(n.in, n.many(), u), nil, nil); err != nil {
			return err
		}
		// The server takes the role or the invitation to it, whichever there is.
		fmt.Fprintf(c.out, "%s is now neither %s of %s nor invited to be one.\n", printable(u), role, t)
	}
	return nil
}
