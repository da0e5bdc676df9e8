package client

import (
	"cmp"
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

// asOperator opens a session of this command's own, with the credentials in a
// file. endSession ends it.
func (c *call) asOperator(file string) (*remote, error) {
	var who struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := readJSON(file, &who, true); err != nil {
		if os.IsNotExist(err) || os.IsPermission(err) {
			return nil, usagef("give DATA_DIR/bootstrap-admin.json, as root on the server", "read the credentials: %v", err)
		}
		return nil, err
	}
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
	server = cmp.Or(server, "https://127.0.0.1:7443")
	if file := c.String("ca"); file != "" {
		if ca, err = authorityIn(file); err != nil {
			return nil, err
		}
	}
	if len(ca) == 0 {
		return nil, usagef("give --ca FILE: the platform's CA file", "nothing says that %s is the right server", server)
	}
	r, err := newRemote(server, ca)
	if err != nil {
		return nil, err
	}
	var got resource.LoginResult
	if err := r.do(c.Context.Context, http.MethodPost, apiPath("login"), resource.Login{Email: who.Email, Password: who.Password}, &got); err != nil {
		return nil, err
	}
	r.token = got.Token
	return r, nil
}

// endSession ends the session that asOperator has opened, if it has.
func (c *call) endSession() {
	if c.opened == nil || c.String("credentials") == "" {
		return
	}
	// Also when the command's context has ended: the session would live for hours.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context.Context), 5*time.Second)
	defer cancel()
	if err := c.opened.do(ctx, http.MethodPost, apiPath("logout"), nil, nil); err != nil {
		c.note("mp: the session of this command was not ended: %v", err)
	}
}

func (p *program) tokens() noun[resource.JoinToken] {
	return noun[resource.JoinToken]{
		one:   "token",
		in:    anywhere,
		gone:  "revoked",
		empty: "There are no join tokens.",
		columns: []column[resource.JoinToken]{
			{head: "ID", cell: func(t *resource.JoinToken) string { return t.Name }},
			{head: "ROLE", cell: func(t *resource.JoinToken) string { return t.Role }},
			{head: "STATE", cell: func(t *resource.JoinToken) string {
				switch {
				case t.UsedBy != "":
					return "used"
				case time.Now().After(t.ExpiresAt):
					return "expired"
				}
				return "unused"
			}},
			{head: "USED-BY", cell: func(t *resource.JoinToken) string { return t.UsedBy }},
			{head: "EXPIRES", cell: func(t *resource.JoinToken) string { return t.ExpiresAt.Local().Format("2006-01-02 15:04") }},
			{head: "AGE", wide: true, cell: func(t *resource.JoinToken) string { return since(t.CreatedAt) }},
		},
	}
}

// tokenCommands is the tree of `multipaas token`.
func (p *program) tokenCommands() *command {
	tokens := p.tokens()
	return &command{
		name:  "token",
		usage: "create, list and revoke join tokens",
		about: `A machine joins the platform with a token. These commands use the session of 'mp login',
or on the server, without a session, --credentials with the bootstrap administrator's file.`,
		sub: []*command{
			{
				name:  "create",
				usage: "create a token with which one machine can join, once",
				about: `Prints the command to run on that machine. The token pins the platform's certificate
authority. It is shown only this once.`,
				examples: []string{
					"multipaas token create --role node --ttl 1h",
					"multipaas token create -o json",
					"multipaas token create --credentials /var/lib/multipaas/bootstrap-admin.json --ca /var/lib/multipaas/pki/ca.crt",
				},
				flags: flags(
					&cli.StringFlag{Name: "role", Value: "node", Usage: "`ROLE` of the machine: node"},
					&cli.DurationFlag{Name: "ttl", Value: time.Hour, Usage: "valid for `DURATION`, 1m to 168h"},
					credentialFlags(), resultFlag()),
				run: (*call).createToken,
			},
			tokens.list(command{
				usage:    "list join tokens, without their secrets",
				examples: []string{"multipaas token ls"},
				flags:    credentialFlags(),
			}),
			tokens.delete("Revoke token %s?", command{
				name:     "rm, delete, remove",
				usage:    "revoke a join token",
				args:     "ID",
				about:    "Nodes that joined with it stay.",
				examples: []string{"multipaas token rm 9f86d081 --yes"},
				flags:    credentialFlags(),
			}),
		},
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
	c.note("Run this on the machine that is to join, before %s:", made.ExpiresAt.Local().Format("15:04 on 2006-01-02"))
	_, err = fmt.Fprintln(c.out, printableLines(made.Command))
	return err
}
