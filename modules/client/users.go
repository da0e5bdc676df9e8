package client

import (
	"fmt"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) users() noun[resource.User] {
	return noun[resource.User]{
		one:   "user",
		in:    anywhere,
		empty: "There are no users.",
		columns: []column[resource.User]{
			{head: "EMAIL", cell: func(u *resource.User) string { return u.Name }},
			{head: "NAME", cell: func(u *resource.User) string { return u.Spec.DisplayName }},
			{head: "ACCOUNT", cell: func(u *resource.User) string { return u.Account }},
			{head: "MADE BY", wide: true, cell: func(u *resource.User) string { return u.CreatedBy }},
			{head: "FIRST PASSWORD", wide: true, cell: func(u *resource.User) string { return yesNo(u.FirstPassword) }},
			{head: "SYSADMIN", cell: func(u *resource.User) string { return yesNo(u.Spec.Sysadmin) }},
			{head: "DISABLED", cell: func(u *resource.User) string { return yesNo(u.Spec.Disabled) }},
			{head: "AGE", cell: func(u *resource.User) string { return since(u.CreatedAt) }},
		},
	}
}

func (p *program) userCommands() *command {
	users := p.users()
	return group("users, user", "create, list, change and delete users",
		&command{
			name:  "create, add",
			usage: "create a user",
			args:  "EMAIL",
			about: `For account owners and sysadmins. The user counts towards the limit of users of the chosen
account, but has no role yet: 'mp org users add' gives one in an organization. With
--account '', for sysadmins, the user counts nowhere. The first password is read from
--password-file or MP_PASSWORD, or asked for. It is good for one thing, to set another at
the first login, so that nobody else knows it.`,
			examples: []string{"mp users create dev@acme.example --password-file -", "mp users create ops@example.com --sysadmin"},
			flags: flags(placeFlags(inAccount),
				&cli.StringFlag{Name: "display-name", Usage: "the user's full `NAME`"},
				&cli.BoolFlag{Name: "sysadmin", Usage: "may do everything on the platform, and counts towards no account (for sysadmins)"},
				passwordFileFlag(" (or MP_PASSWORD)"), resultFlag()),
			run: (*call).createUser,
		},
		users.set(command{
			usage:    "change a user (for sysadmins)",
			args:     "EMAIL",
			about:    "A disabled user can't log in, and running sessions end.",
			examples: []string{"mp users set dev@acme.example --disabled", "mp users set ops@example.com --sysadmin=false"},
			flags: []cli.Flag{
				&cli.StringFlag{Name: "display-name", Usage: "the user's full `NAME`"},
				&cli.BoolFlag{Name: "sysadmin", Usage: "may do everything on the platform, or --sysadmin=false"},
				&cli.BoolFlag{Name: "disabled", Usage: "can't log in, or --disabled=false"},
			},
		}, (*call).newUserSpec),
		&command{
			name:     "set-password",
			usage:    "set a user's password (for sysadmins)",
			args:     "EMAIL",
			about:    "The user has to change it at the next login.",
			names:    users.names,
			examples: []string{"mp users set-password dev@acme.example --password-file -"},
			flags:    flags(passwordFileFlag(" (or MP_PASSWORD)")),
			run:      (*call).setUserPassword,
		},
		users.delete("Delete user %s and all roles of that user?", command{
			usage:    "delete a user and all roles of that user (for sysadmins)",
			args:     "EMAIL",
			examples: []string{"mp users delete dev@acme.example --yes"},
		}),
		users.list(help("list the platform's users (for sysadmins)", "mp users list")),
	)
}

// newUser is the body of POST /v1/users.
type newUser struct {
	Email       string `json:"email"`
	Password    string `json:"password"`
	DisplayName string `json:"displayName,omitempty"`
	Account     string `json:"account,omitempty"`
	Sysadmin    bool   `json:"sysadmin,omitempty"`
}

func (c *call) createUser() error {
	account, err := c.accountOfUser()
	if err != nil {
		return err
	}
	if _, err := c.remote(); err != nil {
		return err
	}
	password, err := c.password("password-file", "MP_PASSWORD", "Password for "+printable(c.arg(0)), true)
	if err != nil {
		return err
	}
	body := newUser{
		Email:       c.arg(0),
		Password:    password,
		DisplayName: c.String("display-name"),
		Account:     account,
		Sysadmin:    c.Bool("sysadmin"),
	}
	var made resource.User
	if err := c.write(http.MethodPost, apiPath("users"), body, &made); err != nil {
		return err
	}
	return c.users().printResult(c, &made, "User %s is created.", printable(made.Name))
}

// accountOfUser is the account that a new user counts in: the one at hand, but for
// sysadmins, who are the platform's, and unless an empty one is given.
func (c *call) accountOfUser() (string, error) {
	switch given := c.String("account"); {
	case c.Bool("sysadmin") && given != "":
		return "", usagef("leave out --account", "%s: a sysadmin counts towards no account", c.path)
	case c.Bool("sysadmin"), c.IsSet("account"):
		return given, nil
	}
	t, err := c.place()
	return t.Account, err
}

func (c *call) setUserPassword() error {
	if _, err := c.remote(); err != nil {
		return err
	}
	password, err := c.password("password-file", "MP_PASSWORD", "New password for "+printable(c.arg(0)), true)
	if err != nil {
		return err
	}
	if err := c.write(http.MethodPut, apiPath("users", c.arg(0), "password"), map[string]string{"password": password}, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "The password of %s is set, and all sessions of that user have ended.\n", printable(c.arg(0)))
	return err
}

func (c *call) newUserSpec() (map[string]any, string, error) {
	spec := map[string]any{}
	for _, flag := range []string{"sysadmin", "disabled"} {
		if c.IsSet(flag) {
			spec[flag] = c.Bool(flag)
		}
	}
	if c.IsSet("display-name") {
		spec["displayName"] = c.String("display-name")
	}
	return spec, "is changed", nil
}
