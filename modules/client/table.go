package client

import (
	"errors"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Arrange reads args, a line for the commands of app, as the lines of `mp` are read, and
// returns it in the order that urfave/cli takes: names, flags, "--", arguments. Left to
// itself that drops in silence what stands behind the first argument, and it counts no
// arguments: how many there may be stands in each command's ArgsUsage, as "NAME [COUNT]".
// What follows the name of a command that skips flags is left to it. An error has exit
// code ExitUsage. It changes nothing.
func Arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 || args[len(args)-1] == "--generate-bash-completion" {
		return args, nil
	}
	for i, list := 1, app.Commands; i < len(args); i++ {
		at := slices.IndexFunc(list, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if at < 0 {
			break
		}
		if list[at].SkipFlagParsing {
			return args, nil
		}
		list = list[at].Subcommands
	}
	root := &command{flags: append(slices.Clone(app.Flags), cli.VersionFlag), sub: commandsOf(app.Commands)}
	r, err := resolve(root, args[1:])
	if fail, ok := errors.AsType[*failure](err); ok {
		return nil, cli.Exit(app.Name+": "+fail.text+"\n  "+fail.remedy, fail.code)
	}
	out := append([]string{args[0]}, r.path...)
	switch {
	case err != nil:
		return nil, err
	case r.help:
		return append(out, "--help"), nil
	case r.cmd.run == nil:
		return append(out, r.flags...), nil
	}
	return slices.Concat(out, r.flags, []string{"--"}, r.args), nil
}

// commandsOf are the same commands, as far as it takes to read a line.
func commandsOf(list []*cli.Command) (all []*command) {
	for _, c := range list {
		if c.Hidden {
			continue
		}
		same := &command{name: strings.Join(c.Names(), ", "), args: c.ArgsUsage, flags: c.Flags, sub: commandsOf(c.Subcommands)}
		if len(c.Subcommands) == 0 {
			same.run = func(*call) error { return nil } // a verb
		}
		all = append(all, same)
	}
	return all
}
