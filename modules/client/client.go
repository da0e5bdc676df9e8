// Package client is the command line that tenants and operators type: `mp`,
// also reached as `multipaas mp`, and `multipaas token` on the operator's side.
//
// It promises: nothing that needs a terminal when there is none, one exit code
// per kind of failure (see ExitOK and its like), errors on standard error with
// what to do about them, and no word to a server whose certificate the pinned
// authority has not signed.
//
// Parties: main hands over arguments and the three streams; the server's API
// under /v1 does the work; the user's folder ~/.config/multipaas (or MP_CONFIG)
// keeps the pinned authority, the chosen context and the session. Only main and
// appliance may import it. It runs no part of the platform.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// Main runs one command, like {"ws", "create", "shop"}, and returns its exit
// code. It reads the environment and the user's configuration folder. When ctx
// ends, as on Ctrl-C, a running operation is left to the platform and Main
// returns ExitInterrupted.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := newProgram("mp", stdin, stdout, stderr)
	if len(args) > 0 && args[0] == "mp" {
		// A kubeconfig calls our file with "mp kube-credential ...", also where
		// the file itself, and not a link to it, has the name mp.
		args = args[1:]
	}
	return p.run(ctx, p.commands(), args)
}

// Command is `mp` as a command of the one file. It takes its arguments as they
// are: they are parsed as when the file is called by the name mp.
func Command() *cli.Command {
	return embedded("mp", "the client: what tenants type", func(p *program) *command { return p.commands() })
}

// Token is `multipaas token`: an operator makes, lists and withdraws the tokens
// with which machines join. It needs a session like any mp command, or, on the
// server itself, the bootstrap administrator's file and no session.
func Token() *cli.Command {
	return embedded("token", "create, list and revoke join tokens", func(p *program) *command { return p.tokenCommands() })
}

// embedded wraps a tree of commands for the command table of main. Flags and
// help are left to the tree: urfave's own parser wants flags before arguments.
func embedded(name, usage string, tree func(*program) *command) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "COMMAND",
		SkipFlagParsing: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			p := newProgram("multipaas "+name, c.App.Reader, c.App.Writer, c.App.ErrWriter)
			if code := p.run(c.Context, tree(p), c.Args().Slice()); code != ExitOK {
				return cli.Exit("", code) // the sentence is on standard error already
			}
			return nil
		},
	}
}

// program is one invocation: the streams it talks through and the name it was
// called by, which its hints repeat.
type program struct {
	name string
	in   io.Reader
	out  io.Writer
	err  io.Writer
	// roomGrace is how long a command waits for room.
	roomGrace time.Duration
}

func newProgram(name string, in io.Reader, out, errw io.Writer) *program {
	return &program{name: name, in: in, out: out, err: errw, roomGrace: roomGrace}
}

// command is one node of the tree: a noun with verbs below it, or a verb that
// runs. The docs are rendered from the same fields as the help.
type command struct {
	name     string // "delete, rm": aliases stand behind
	usage    string // one line, no full stop
	about    string // what else there is to know, in whole sentences
	args     string // "NAME [COUNT]"; also says how many there may be
	examples []string
	flags    []cli.Flag
	run      func(*call) error
	// names offers what may stand as the next argument, for completion.
	names func(*call) ([]string, error)
	sub   []*command
}

// called are its names, the first of which is the one that is said.
func (c *command) called() []string { return strings.Split(c.name, ", ") }

// group is a noun with verbs below it.
func group(name, usage string, sub ...*command) *command {
	return &command{name: name, usage: usage, sub: sub}
}

// help is what most commands say of themselves: what they do, and examples.
func help(usage string, examples ...string) command {
	return command{usage: usage, examples: examples}
}

// argCount reads how many arguments are wanted from args: each word is one,
// those in brackets may be left out, "..." is any number.
func (c *command) argCount() (least, most int) {
	words := strings.Fields(c.args)
	for _, word := range words {
		if !strings.HasPrefix(word, "[") {
			least++
		}
	}
	if strings.HasSuffix(c.args, "...") {
		return least, 1 << 10
	}
	return least, len(words)
}

// find returns the verb or noun of that name below c, or nil.
func (c *command) find(name string) *command {
	i := slices.IndexFunc(c.sub, func(s *command) bool { return slices.Contains(s.called(), name) })
	if i < 0 {
		return nil
	}
	return c.sub[i]
}

// call is one run of one verb: its parsed flags and arguments, and what the
// user's folder and environment say.
type call struct {
	*cli.Context
	*program
	cmd    *command
	path   string // "mp ws create"
	opened *remote
	config *Config
	dir    string
}

func (c *call) arg(i int) string { return c.Args().Get(i) }

// run finds the command, parses its flags, runs it and tells what went wrong.
func (p *program) run(ctx context.Context, root *command, args []string) int {
	if len(args) > 0 && args[0] == completeWord {
		p.complete(ctx, root, args[1:])
		return ExitOK
	}
	r, err := resolve(root, args)
	switch {
	case err != nil:
	case r.help:
		p.writeHelp(p.out, p.path(r.path), r.cmd)
		return ExitOK
	case r.cmd.run == nil: // a verb is missing
		p.writeHelp(p.err, p.path(r.path), r.cmd)
		return ExitUsage
	default:
		err = p.parse(ctx, r, r.cmd.run)
	}
	if _, known := errors.AsType[*failure](err); ctx.Err() != nil && !known {
		err = &failure{text: "interrupted", code: ExitInterrupted}
	}
	return p.report(err)
}

func (p *program) path(words []string) string {
	return strings.Join(append([]string{p.name}, words...), " ")
}

// parse gives the flags of a resolved command to urfave/cli and calls fn.
func (p *program) parse(ctx context.Context, r resolved, fn func(*call) error) error {
	path := p.path(r.path)
	app := &cli.App{
		Name: p.name, Reader: p.in, Writer: p.out, ErrWriter: p.err,
		Flags: r.cmd.flags, HideHelp: true, HideVersion: true,
		DisableSliceFlagSeparator: true, // --env A=1,2 is one variable
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usagef("see '"+path+" --help'", "%s: %v", path, err)
		},
		Action: func(c *cli.Context) error {
			this := &call{Context: c, program: p, cmd: r.cmd, path: path}
			defer this.endSession()
			if err := this.checkNumbers(); err != nil {
				return err
			}
			return fn(this)
		},
	}
	return app.RunContext(ctx, slices.Concat([]string{p.name}, r.flags, []string{"--"}, r.args))
}

// checkNumbers refuses numbers and times below 0: none of our flags has a use for one.
func (c *call) checkNumbers() error {
	for _, f := range c.cmd.flags {
		name, negative := f.Names()[0], false
		switch f.(type) {
		case *cli.IntFlag:
			negative = c.Int(name) < 0
		case *cli.Int64Flag:
			negative = c.Int64(name) < 0
		case *cli.DurationFlag:
			negative = c.Duration(name) < 0
		}
		if negative {
			return usagef("give 0 or more", "%s: --%s can't be %v", c.path, name, c.Value(name))
		}
	}
	return nil
}

// buildVersion is what the linker knows about this file.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// note writes one line for people; results go to standard output instead.
func (p *program) note(format string, args ...any) {
	fmt.Fprintf(p.err, format+"\n", args...)
}

// defaultTimeout is how long a waiting command waits. A workspace of two
// machines takes under a minute on a calm host, several on a busy one.
const defaultTimeout = 10 * time.Minute

// completeWord is the hidden command that completion scripts call.
const completeWord = "__complete"

// commands is the tree of `mp`.
func (p *program) commands() *command {
	return &command{
		name:  "mp",
		usage: "the client of MultiPaaS: accounts, organizations, workspaces and apps",
		about: `A workspace is a Kubernetes cluster of its own, in an organization, in an account.
Commands work in the place that was chosen with 'mp accounts use', 'mp org use',
'mp ws use' and 'mp ns use'. MP_ACCOUNT, MP_ORGANIZATION, MP_WORKSPACE and MP_NAMESPACE
override that, and flags override those. 'mp ws:create' is 'mp ws create', and a noun
without a verb lists. Flags may stand anywhere; everything after -- is an argument.

The configuration is in MP_CONFIG, or ~/.config/multipaas. Exit codes: 0 ok, 1 failed,
2 usage or invalid value, 3 not found, 4 conflict, 5 timeout, 6 denied, 130 interrupted.`,
		examples: []string{
			"mp init https://multipaas.example:7443 --ca ca.crt",
			"mp login me@example.com",
			"mp ws create shop --machines 2",
			"mp apps deploy hello --image hello:1 --instances 2 --port 8080",
		},
		sub: []*command{
			p.initCommand(), p.registerCommand(), p.loginCommand(), p.logoutCommand(), p.sessionCommand(), p.passwdCommand(),
			p.accountCommands(), p.organizationCommands(), p.userCommands(), p.invitationCommands(),
			p.workspaceCommands(), p.namespaceCommands(), p.clusterCommands(),
			p.appCommands(), p.volumeCommands(), p.snapshotCommands(), p.claimCommands(),
			p.imageCommands(), p.taskCommands(), p.nodeCommands(),
			p.kubeCredentialCommand(), p.completionCommand(), p.versionCommand(),
		},
	}
}

// versionView is what `mp version` shows.
type versionView struct {
	Client string         `json:"client"`
	Server *resource.Info `json:"server,omitempty"`
}

// versionTimeout keeps `mp version` quick when the server is away.
const versionTimeout = 5 * time.Second

func (p *program) versionCommand() *command {
	return &command{
		name: "version", usage: "show the versions of client and platform, and the platform's addresses",
		examples: []string{"mp version", "mp version --client"},
		flags:    flags(&cli.BoolFlag{Name: "client", Usage: "do not ask the server"}, resultFlag()),
		run:      (*call).version,
	}
}

func (c *call) version() error {
	view := versionView{Client: buildVersion()}
	t := noun[versionView]{columns: []column[versionView]{
		{head: "CLIENT", cell: func(v *versionView) string { return v.Client }},
	}}
	conf, err := c.conf()
	if err != nil {
		return err
	}
	if conf.Server != "" && !c.Bool("client") {
		r, err := c.anonymous()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context.Context, versionTimeout)
		defer cancel()
		var info resource.Info
		if err := r.do(ctx, http.MethodGet, apiPath("info"), nil, &info); err != nil {
			c.note("mp: the server's version is not known: %s", printable(err.Error()))
		} else {
			view.Server = &info
			t.columns = append(t.columns,
				column[versionView]{head: "PLATFORM", cell: func(v *versionView) string { return v.Server.Version }},
				column[versionView]{head: "KUBERNETES", cell: func(v *versionView) string {
					return strings.Join(v.Server.KubernetesVersions, ", ")
				}},
				column[versionView]{head: "APPS-BELOW", cell: func(v *versionView) string { return v.Server.Domain }},
				column[versionView]{head: "REGISTRY", cell: func(v *versionView) string { return v.Server.Registry }},
				column[versionView]{head: "KUBERNETES-API", cell: func(v *versionView) string { return v.Server.KubernetesAPI }},
			)
		}
	}
	return t.printOne(c, &view)
}
