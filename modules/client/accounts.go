package client

import (
	"fmt"
	"net/http"
	"net/url"

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
				name: "delete", aliases: []string{"rm"}, usage: "delete an account and everything in it", args: "NAME", names: accountNames(),
				examples: []string{"mp accounts delete acme --yes"},
				flags:    flags(yesFlag(), dryRunFlag(), waitFlags(), resultFlag()),
				run: func(c *call) error {
					name := c.arg(0)
					if err := c.confirm("Delete account "+name+" with its organizations, workspaces and images?", name); err != nil {
						return err
					}
					return remove[*resource.Account](c, apiPath("accounts", name), accountTable(c), "Account "+name, Target{Account: name})
				},
			},
		},
	}
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

func userTable(c *call) table[*resource.User] {
	now := c.now()
	return table[*resource.User]{
		name: func(u *resource.User) string { return u.Name }, empty: "There are no users.",
		columns: []column[*resource.User]{
			{head: "EMAIL", cell: func(u *resource.User) string { return u.Name }},
			{head: "NAME", cell: func(u *resource.User) string { return u.Spec.DisplayName }},
			{head: "SYSADMIN", cell: func(u *resource.User) string { return yesNo(u.Spec.Sysadmin) }},
			{head: "DISABLED", cell: func(u *resource.User) string { return yesNo(u.Spec.Disabled) }},
			{head: "AGE", cell: func(u *resource.User) string { return age(u.CreatedAt, now) }},
		},
	}
}

func (p *program) userCommands() *command {
	return &command{
		name: "users", aliases: []string{"user"}, usage: "make users, so that organizations can have members",
		sub: []*command{
			{
				name: "create", aliases: []string{"add"}, usage: "make a user", args: "EMAIL",
				about:    "For account owners and sysadmins. The user's first password comes from\n--password-file, from MP_PASSWORD, or is asked for; 'mp passwd' changes it. A role in an\norganization comes from 'mp org users add'.",
				examples: []string{"mp users create dev@acme.example --password-file -", "mp users create ops@example.com --sysadmin"},
				flags: flags(
					&cli.StringFlag{Name: "display-name", Usage: "the user's `NAME` for people"},
					&cli.BoolFlag{Name: "sysadmin", Usage: "may do everything on the platform (for sysadmins)"},
					passwordFileFlag(" (or MP_PASSWORD)"), resultFlag()),
				run: (*call).createUser,
			},
			{
				name: "list", aliases: []string{"ls"}, usage: "list the platform's users (for sysadmins)",
				examples: []string{"mp users list"},
				flags:    outputFlags(),
				run: func(c *call) error {
					items, err := list[*resource.User](c, apiPath("users"), url.Values{})
					if err != nil {
						return err
					}
					return printList(c, items, userTable(c))
				},
			},
		},
	}
}

// newUser is the body of POST /v1/users.
type newUser struct {
	Email    string            `json:"email"`
	Password string            `json:"password"`
	Spec     resource.UserSpec `json:"spec"`
}

func (c *call) createUser() error {
	if _, err := c.remote(); err != nil {
		return err
	}
	password, err := c.password("password-file", "MP_PASSWORD", "Password for "+c.arg(0), true)
	if err != nil {
		return err
	}
	body := newUser{Email: c.arg(0), Password: password, Spec: resource.UserSpec{DisplayName: c.String("display-name"), Sysadmin: c.Bool("sysadmin")}}
	var made resource.User
	if err := c.write(http.MethodPost, apiPath("users"), body, &made); err != nil {
		return err
	}
	return printResult(c, &made, userTable(c), "User %s is there.", printable(made.Name))
}
