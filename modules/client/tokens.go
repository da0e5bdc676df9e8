package client

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// credentialFlags let an operator on the server host work without a session.
func credentialFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "credentials", Usage: "log in for this one command with `FILE`, like DATA_DIR/bootstrap-admin.json"},
		&cli.StringFlag{Name: "server", Usage: "with --credentials: the server's `URL` (default: that of 'mp init', or https://127.0.0.1:7443)"},
		&cli.StringFlag{Name: "ca", Usage: "with --credentials: the platform's authority in `FILE`, PEM (default: that of 'mp init')"},
	}
}

// asOperator runs fn with the session, or with one of its own that ends with
// it when --credentials is given.
func (c *call) asOperator(fn func() error) error {
	file := c.String("credentials")
	if file == "" {
		if c.String("server") != "" || c.String("ca") != "" {
			return usagef("give --credentials too, or 'mp init' and 'mp login' first", "%s: --server and --ca go with --credentials", c.path)
		}
		return fn()
	}
	var who struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := readJSON(file, &who, true); err != nil {
		if os.IsNotExist(err) || os.IsPermission(err) {
			return usagef("give DATA_DIR/bootstrap-admin.json, as root on the server", "read the credentials: %v", err)
		}
		return err
	}
	r, err := c.operatorRemote()
	if err != nil {
		return err
	}
	var got resource.LoginResult
	if err := r.do(c.Context.Context, http.MethodPost, apiPath("login"), resource.Login{Email: who.Email, Password: who.Password}, &got); err != nil {
		return err
	}
	r.token = got.Token
	c.opened = r
	err = fn()
	// Also when ctx has ended: the session would live for hours.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context.Context), 5*time.Second)
	defer cancel()
	if outErr := r.do(ctx, http.MethodPost, apiPath("logout"), nil, nil); err == nil && outErr != nil {
		c.note("mp: the session of this command was not ended: %v", outErr)
	}
	return err
}

func (c *call) operatorRemote() (*remote, error) {
	conf, err := c.conf()
	if err != nil {
		return nil, err
	}
	server, ca := conf.Server, []byte(conf.CA)
	if s := c.String("server"); s != "" {
		if server, err = serverURL(s); err != nil {
			return nil, err
		}
	}
	if server == "" {
		server = "https://127.0.0.1:7443"
	}
	if file := c.String("ca"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, usagef("give the CA file of the platform", "read the authority: %v", err)
		}
		if ca, err = onlyCertificates(data, file); err != nil {
			return nil, err
		}
	}
	if len(ca) == 0 {
		return nil, usagef("give --ca FILE: the platform's CA file", "nothing says that %s is the right server", server)
	}
	return newRemote(server, ca, "")
}

func tokenTable(c *call) table[*resource.JoinToken] {
	now := c.now()
	return table[*resource.JoinToken]{
		name:  func(t *resource.JoinToken) string { return t.Name },
		empty: "There are no join tokens.",
		columns: []column[*resource.JoinToken]{
			{head: "ID", cell: func(t *resource.JoinToken) string { return t.Name }},
			{head: "ROLE", cell: func(t *resource.JoinToken) string { return t.Role }},
			{head: "STATE", cell: func(t *resource.JoinToken) string {
				switch {
				case t.UsedBy != "":
					return "used"
				case now.After(t.ExpiresAt):
					return "expired"
				}
				return "unused"
			}},
			{head: "USED-BY", cell: func(t *resource.JoinToken) string { return t.UsedBy }},
			{head: "EXPIRES", cell: func(t *resource.JoinToken) string { return t.ExpiresAt.Local().Format("2006-01-02 15:04") }},
			{head: "AGE", wide: true, cell: func(t *resource.JoinToken) string { return age(t.CreatedAt, now) }},
		},
	}
}

func (p *program) tokenCreateCommand() *command {
	return &command{
		name: "create", usage: "make a token with which one machine can join, once",
		about:    "Prints the command to type on that machine. The token pins the platform's certificate\nauthority; it is shown this once.",
		examples: []string{"multipaas token create --role node --ttl 1h", "multipaas token create -o json", "multipaas token create --credentials /var/lib/multipaas/bootstrap-admin.json --ca /var/lib/multipaas/pki/ca.crt"},
		flags: flags(
			&cli.StringFlag{Name: "role", Value: "node", Usage: "`ROLE` of the machine: node"},
			&cli.DurationFlag{Name: "ttl", Value: time.Hour, Usage: "good for `DURATION`, 1m to 168h"},
			credentialFlags(), resultFlag()),
		run: func(c *call) error { return c.asOperator(c.createToken) },
	}
}

func (c *call) createToken() error {
	format, err := c.format()
	if err != nil {
		return err
	}
	if role := c.String("role"); role != "node" {
		return usagef("use node", "--role %q can't join", role)
	}
	ttl := c.Duration("ttl")
	if ttl < time.Minute || ttl > 7*24*time.Hour {
		return usagef("use 1m to 168h", "--ttl %v is too short or too long", ttl)
	}
	var made resource.NewJoinTokenResult
	if err := c.write(http.MethodPost, apiPath("tokens"), resource.NewJoinToken{Role: "node", TTLSeconds: int64(ttl / time.Second)}, &made); err != nil {
		return err
	}
	switch format {
	case asJSON, asYAML:
		return printData(c, format, made)
	case asName:
		_, err = fmt.Fprintln(c.out, made.Token)
		return err
	}
	c.note("On the machine that shall join, until %s:", made.ExpiresAt.Local().Format("15:04 on 2006-01-02"))
	_, err = fmt.Fprintln(c.out, printableLines(made.Command))
	return err
}

func (p *program) tokenListCommand() *command {
	return &command{
		name: "list", aliases: []string{"ls"}, usage: "list join tokens; their secrets are not kept anywhere",
		examples: []string{"multipaas token ls"},
		flags:    flags(credentialFlags(), outputFlags()),
		run: func(c *call) error {
			return c.asOperator(func() error {
				items, err := list[*resource.JoinToken](c, apiPath("tokens"), nil)
				if err != nil {
					return err
				}
				return printList(c, items, tokenTable(c))
			})
		},
	}
}

func (p *program) tokenRemoveCommand() *command {
	return &command{
		name: "rm", aliases: []string{"delete", "remove"}, usage: "withdraw a join token", args: "ID",
		about:    "Nodes that have joined with it stay.",
		examples: []string{"multipaas token rm 9f86d081 --yes"},
		flags:    flags(credentialFlags(), yesFlag()),
		names:    names(func(t *resource.JoinToken) string { return t.Name }, func(*call) (string, error) { return apiPath("tokens"), nil }),
		run: func(c *call) error {
			if err := c.confirm("Withdraw token "+c.arg(0)+"?", ""); err != nil {
				return err
			}
			return c.asOperator(func() error {
				if err := c.write(http.MethodDelete, apiPath("tokens", c.arg(0)), nil, nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.out, "Token %s is withdrawn.\n", c.arg(0))
				return err
			})
		},
	}
}
