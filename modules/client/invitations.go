package client

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) invitations() noun[resource.Invitation] {
	return noun[resource.Invitation]{
		one: "invitation",
		columns: []column[resource.Invitation]{
			{head: "PLACE", cell: func(i *resource.Invitation) string { return placeOf(i.Account, i.Organization) }},
			{head: "USER", cell: func(i *resource.Invitation) string { return i.Name }},
			{head: "ROLE", cell: func(i *resource.Invitation) string { return string(i.Role) }},
			{head: "BY", cell: func(i *resource.Invitation) string { return i.By }},
			{head: "EXPIRES", cell: func(i *resource.Invitation) string { return i.ExpiresAt.Format("2006-01-02 15:04 MST") }},
		},
	}
}

func placeOf(account, organization string) string {
	return Target{Account: account, Organization: organization}.String()
}

func (p *program) invitationCommands() *command {
	return group("invitations, invitation", "list, accept and decline roles that you are offered",
		&command{
			name:  "list, ls",
			usage: "list what you are invited to, or whom you have invited",
			about: `A user of another account gets a role only by accepting it. With --sent, what waits for an
answer in the account is shown: 'mp org users remove' and 'mp accounts owners remove'
withdraw it.`,
			examples: []string{"mp invitations list", "mp invitations list --sent"},
			flags: flags(&cli.BoolFlag{Name: "sent", Usage: "show what waits for an answer in the account"},
				placeFlags(inAccount), outputFlags()),
			run: (*call).listInvitations,
		},
		&command{
			name:  "accept",
			usage: "take a role that you are offered",
			args:  "ACCOUNT[/ORGANIZATION] CODE",
			about: `The code comes from who has invited you, and only from him: it says that it is you whom he
means.`,
			examples: []string{"mp invitations accept acme/web ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
			flags:    flags(resultFlag()),
			run: func(c *call) error {
				in, err := c.answer()
				if err != nil {
					return err
				}
				in.Code = c.arg(1)
				var made resource.Membership
				if err := c.write(http.MethodPost, apiPath("session", "invitations", "accept"), in, &made); err != nil {
					return err
				}
				return c.members().printResult(c, &made, "You are %s of %s.", made.Role, placeOf(made.Account, made.Organization))
			},
		},
		&command{
			name:     "decline",
			usage:    "refuse a role that you are offered",
			args:     "ACCOUNT[/ORGANIZATION]",
			examples: []string{"mp invitations decline acme/web"},
			run: func(c *call) error {
				in, err := c.answer()
				if err != nil {
					return err
				}
				if err := c.write(http.MethodPost, apiPath("session", "invitations", "decline"), in, nil); err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.out, "The invitation to %s is declined.\n", placeOf(in.Account, in.Organization))
				return err
			},
		},
	)
}

// answer is to the invitation that the first argument names.
func (c *call) answer() (resource.Answer, error) {
	account, organization, both := strings.Cut(c.arg(0), "/")
	if err := checkName("account", account); err != nil {
		return resource.Answer{}, err
	}
	if both {
		if err := checkName("organization", organization); err != nil {
			return resource.Answer{}, err
		}
	}
	return resource.Answer{Account: account, Organization: organization}, nil
}

func (c *call) listInvitations() error {
	n, path := c.invitations(), apiPath("session", "invitations")
	n.empty = "Nobody has invited you."
	if c.Bool("sent") {
		t, err := c.need(inAccount)
		if err != nil {
			return err
		}
		n.empty, path = "No invitation waits for an answer.", t.at(inAccount, "invitations")
	}
	var list resource.List[resource.Invitation]
	if err := c.get(path, &list); err != nil {
		return err
	}
	return n.printList(c, list.Items)
}
