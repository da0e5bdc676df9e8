package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func passwordFileFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "password-file", Usage: "read the password from the first line of `FILE`, - for standard input" + usage}
}

func newPasswordFileFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "new-password-file",
		Usage: "read the new password from the first line of `FILE`, - for standard input (or MP_NEW_PASSWORD)" + usage}
}

func (p *program) registerCommand() *command {
	return &command{
		name: "register", usage: "create an account and its first owner", args: "[ACCOUNT]",
		about: `Whether anybody may register, or only a sysadmin, is up to the platform's operator.
The password has at least 10 characters. It is read from --password-file or
MP_PASSWORD, or asked for. If a sysadmin registers somebody else, that one has to change it
at the first login.`,
		examples: []string{
			"mp register acme --email owner@acme.example",
			"mp register acme --email owner@acme.example --password-file -",
		},
		flags: flags(
			&cli.StringFlag{Name: "account", Aliases: []string{"a"}, Usage: "`NAME` of the new account, if not given as argument"},
			&cli.StringFlag{Name: "email", Aliases: []string{"e", "u", "user"}, Usage: "e-mail `ADDRESS` of the owner"},
			passwordFileFlag(" (or MP_PASSWORD)"), resultFlag()),
		run: (*call).register,
	}
}

func (c *call) register() error {
	account, err := c.ask(cmp.Or(c.arg(0), c.String("account")), "Account", "--account")
	if err != nil {
		return err
	}
	if err := checkName("account", account); err != nil {
		return err
	}
	email, err := c.ask(c.String("email"), "E-mail", "--email")
	if err != nil {
		return err
	}
	password, err := c.password("password-file", "MP_PASSWORD", "Password", true)
	if err != nil {
		return err
	}
	r, err := c.anonymous()
	if err != nil {
		return err
	}
	// Where only a sysadmin may register, his session is what allows it.
	if s, err := readSession(c.dir, r.server); err == nil && s != nil && time.Now().Before(s.ExpiresAt) {
		r.token = s.Token
	}
	var made resource.Account
	if err := r.do(c.Context.Context, http.MethodPost, apiPath("register"), resource.Register{Account: account, Email: email, Password: password}, &made); err != nil {
		return err
	}
	made.Name = cmp.Or(made.Name, account)
	return c.accounts().printResult(c, &made, "Account %s is created. Log in with '%s'.", made.Name, c.hint("login", email))
}

func (p *program) loginCommand() *command {
	return &command{
		name: "login", usage: "log in", args: "[EMAIL]",
		about: `The password is read from --password-file or MP_PASSWORD, or asked for. If somebody else has
chosen it, you have to set one of your own: it is read from --new-password-file or
MP_NEW_PASSWORD, or asked for. If you belong to only one account or organization, it is
chosen at once.`,
		examples: []string{"mp login me@example.com", "mp login me@example.com --password-file ~/.mp-password",
			"mp login me@example.com --password-file first.txt --new-password-file ~/.mp-password", "echo \"$SECRET\" | mp login me@example.com --password-file -"},
		flags: flags(
			&cli.StringFlag{Name: "user", Aliases: []string{"u", "email"}, Usage: "e-mail `ADDRESS`, if not given as argument"},
			passwordFileFlag(" (or MP_PASSWORD)"),
			newPasswordFileFlag(", if the other is a first one")),
		run: (*call).login,
	}
}

func (c *call) login() error {
	r, err := c.anonymous()
	if err != nil {
		return err
	}
	email, err := c.ask(cmp.Or(c.arg(0), c.String("user")), "E-mail", "--user")
	if err != nil {
		return err
	}
	password, err := c.password("password-file", "MP_PASSWORD", "Password", false)
	if err != nil {
		return err
	}
	var got resource.LoginResult
	if err := r.do(c.Context.Context, http.MethodPost, apiPath("login"), resource.Login{Email: email, Password: password}, &got); err != nil {
		if prob, ok := errors.AsType[*Problem](err); ok && prob.Status == http.StatusUnauthorized && prob.Remedy == "" {
			prob.Remedy = "check the e-mail address and the password"
		}
		return err
	}
	r.token = got.Token
	if got.FirstPassword {
		if err := c.replaceFirst(r, password); err != nil {
			return err
		}
	}
	if err := dropSession(c.dir); err != nil { // the tokens of who was logged in before
		return err
	}
	if err := writeSession(c.dir, &Session{Server: r.server, Token: got.Token, User: got.User, ExpiresAt: got.ExpiresAt}); err != nil {
		return err
	}
	var who resource.Whoami
	if err := r.do(c.Context.Context, http.MethodGet, apiPath("session"), nil, &who); err != nil {
		return err
	}
	place := placeAfterLogin(c.config.Context, who)
	if err := c.use(place); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Logged in as %s.\n", printable(got.User))
	if place.Account != "" {
		fmt.Fprintf(c.out, "Working in %s.\n", printable(place.String()))
	}
	return nil
}

// replaceFirst sets a password of the user's own in place of the one that somebody
// else chose. If that fails, the session, which is good for nothing else, ends.
func (c *call) replaceFirst(r *remote, first string) (err error) {
	defer func() {
		if err != nil {
			_ = r.do(context.WithoutCancel(c.Context.Context), http.MethodPost, apiPath("logout"), nil, nil)
		}
	}()
	if c.String("new-password-file") == "" && os.Getenv("MP_NEW_PASSWORD") == "" {
		c.note("mp: your password was chosen by somebody else: set one of your own")
	}
	own, err := c.password("new-password-file", "MP_NEW_PASSWORD", "New password", true)
	if err != nil {
		return err
	}
	body := map[string]string{"oldPassword": first, "newPassword": own}
	return r.do(c.Context.Context, http.MethodPut, apiPath("session", "password"), body, nil)
}

// placeAfterLogin keeps the place as far as the user belongs there, and goes
// into an account or organization that is the only one he has.
func placeAfterLogin(t Target, who resource.Whoami) Target {
	if who.Sysadmin && t.Account != "" {
		return t // he may be anywhere
	}
	in := func(account string) []resource.Membership {
		elsewhere := func(m resource.Membership) bool { return m.Account != account }
		return slices.DeleteFunc(slices.Clone(who.Memberships), elsewhere)
	}
	if len(in(t.Account)) == 0 {
		t = Target{}
		if all := who.Memberships; len(all) > 0 && len(in(all[0].Account)) == len(all) {
			t.Account = all[0].Account
		}
	}
	owner := false
	var orgs []string
	for _, m := range in(t.Account) {
		if m.Organization == "" {
			owner = true
		} else {
			orgs = append(orgs, m.Organization)
		}
	}
	if t.Organization != "" && !owner && !slices.Contains(orgs, t.Organization) {
		t = Target{Account: t.Account}
	}
	if t.Organization == "" && len(orgs) == 1 {
		t.Organization = orgs[0]
	}
	return t
}

func (p *program) logoutCommand() *command {
	return &command{
		name: "logout", usage: "log out, here and on the server",
		about:    "The chosen account, organization and workspace are kept for the next login.",
		examples: []string{"mp logout"},
		run:      (*call).logout,
	}
}

func (c *call) logout() error {
	r, err := c.remote()
	if err == nil {
		err = r.do(c.Context.Context, http.MethodPost, apiPath("logout"), nil, nil)
	}
	if c.dir == "" {
		return err // not even the folder is known
	}
	if dropErr := dropSession(c.dir); dropErr != nil {
		return dropErr
	}
	prob, _ := errors.AsType[*Problem](err)
	fail, _ := errors.AsType[*failure](err)
	if err == nil || prob != nil && prob.Status == http.StatusUnauthorized || fail != nil && fail.code == ExitDenied {
		fmt.Fprintln(c.out, "Logged out.")
		return nil
	}
	_, _, code := c.explain(err)
	return &failure{text: "the session is forgotten here, but the server was not told: " + err.Error(), remedy: "it ends there by itself; change the password if the token may have leaked", code: code, cause: err}
}

// sessionView is what `mp session` shows.
type sessionView struct {
	Server    string           `json:"server"`
	User      string           `json:"user,omitempty"`
	ExpiresAt string           `json:"expiresAt,omitempty"`
	Context   Target           `json:"context"`
	Checked   *resource.Whoami `json:"checked,omitempty"`
}

func (p *program) sessionCommand() *command {
	return &command{
		name: "session", usage: "show the server, the logged-in user and the chosen place",
		about:    "Reads only this machine's files, unless --check asks the server as well.",
		examples: []string{"mp session", "mp session --check -o json"},
		flags: flags(&cli.BoolFlag{Name: "check", Usage: "ask the server whether the session is valid, and for your roles"},
			placeFlags(inWorkspace), namespaceFlag(), resultFlag()),
		run: (*call).session,
	}
}

func (c *call) session() error {
	place, err := c.place()
	if err != nil {
		return err
	}
	view := sessionView{Server: c.config.Server, Context: place}
	s, err := readSession(c.dir, view.Server)
	if err != nil {
		return err
	}
	if s != nil && s.ExpiresAt.After(time.Now()) {
		view.User, view.ExpiresAt = s.User, s.ExpiresAt.Format("2006-01-02 15:04 MST")
	}
	if c.Bool("check") {
		view.Checked = &resource.Whoami{}
		if err := c.get(apiPath("session"), view.Checked); err != nil {
			return err
		}
	}
	t := noun[sessionView]{
		name: func(v *sessionView) string { return v.User },
		columns: []column[sessionView]{
			{head: "SERVER", cell: func(v *sessionView) string { return v.Server }},
			{head: "USER", cell: func(v *sessionView) string { return v.User }},
			{head: "EXPIRES", cell: func(v *sessionView) string { return v.ExpiresAt }},
			{head: "ACCOUNT", cell: func(v *sessionView) string { return v.Context.Account }},
			{head: "ORGANIZATION", cell: func(v *sessionView) string { return v.Context.Organization }},
			{head: "WORKSPACE", cell: func(v *sessionView) string { return v.Context.Workspace }},
			{head: "NAMESPACE", cell: func(v *sessionView) string { return v.Context.Namespace }},
		},
	}
	if view.Checked != nil {
		t.columns = append(t.columns, column[sessionView]{head: "ROLES", cell: func(v *sessionView) string { return roles(*v.Checked) }})
	}
	return t.printOne(c, &view)
}

// roles is "sysadmin, owner of acme, admin of acme/web".
func roles(who resource.Whoami) string {
	var all []string
	if who.Sysadmin {
		all = append(all, "sysadmin")
	}
	for _, m := range who.Memberships {
		all = append(all, fmt.Sprintf("%s of %s", m.Role, Target{Account: m.Account, Organization: m.Organization}))
	}
	return strings.Join(all, ", ")
}

func (p *program) passwdCommand() *command {
	return &command{
		name: "passwd", usage: "change your password",
		about:    "Both passwords are asked for on a terminal. Your other sessions end.",
		examples: []string{"mp passwd", "mp passwd --password-file old.txt --new-password-file new.txt"},
		flags: flags(passwordFileFlag(" (the old one, or MP_PASSWORD)"),
			newPasswordFileFlag("")),
		run: (*call).passwd,
	}
}

func (c *call) passwd() error {
	if _, err := c.remote(); err != nil {
		return err
	}
	before, err := c.password("password-file", "MP_PASSWORD", "Old password", false)
	if err != nil {
		return err
	}
	after, err := c.password("new-password-file", "MP_NEW_PASSWORD", "New password", true)
	if err != nil {
		return err
	}
	body := map[string]string{"oldPassword": before, "newPassword": after}
	if err := c.write(http.MethodPut, apiPath("session", "password"), body, nil); err != nil {
		return err
	}
	fmt.Fprintln(c.out, "The password is changed.")
	return nil
}
