package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/machine"
)

// NodeCommand is `multipaas node`.
func NodeCommand(version string) *cli.Command {
	return &cli.Command{
		Name:        "node",
		Usage:       "make this machine a node, run it, or take it out",
		Subcommands: []*cli.Command{joinCommand(version), runCommand(version), leaveCommand(), lookCommand()},
	}
}

// lookCommand is what lookAtMachines runs.
func lookCommand() *cli.Command {
	return &cli.Command{
		Name:            "look",
		Hidden:          true,
		SkipFlagParsing: true,
		Action:          func(c *cli.Context) error { return machine.Look(c.Context, c.Args().Slice(), c.App.Writer) },
	}
}

// lookAtMachines is a process that looks at what machines have made, for their driver: it may come
// to wait for one of them for ever.
func lookAtMachines(args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"node", "look"}, args...)...)
	cmd.Env, cmd.Stderr = []string{"PATH=/nonexistent"}, os.Stderr // the agent's environment has secrets
	return cmd
}

func joinCommand(version string) *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "join a platform, then run as its node",
		ArgsUsage: "[https://SERVER:7443]",
		Description: "Joins with a token that works once (`multipaas token create --role node` on the platform), then runs the\n" +
			"node in the foreground until SIGTERM. If this machine has joined already, it only runs. The token is never an\n" +
			"argument, since every process can read those:\n\n" +
			"   MULTIPAAS_JOIN_TOKEN=... multipaas node join https://192.0.2.10:7443\n" +
			"   multipaas node join --token-file token https://192.0.2.10:7443",
		Flags: configFlags(
			&cli.StringFlag{Name: "token-file", Usage: "`FILE` with the join token, - for standard input"},
			&cli.BoolFlag{Name: "no-run", Usage: "only join; a service runs the node"}),
		Action: func(c *cli.Context) error {
			return role(c, version, func(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
				if err := joinOnce(ctx, c, cfg); err != nil || c.Bool("no-run") {
					return err
				}
				return RunNode(ctx, cfg, version, log)
			})
		},
	}
}

func runCommand(version string) *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run a node that has joined",
		Flags: configFlags(),
		Action: func(c *cli.Context) error {
			return role(c, version, func(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
				// Before anything is unpacked or changed on this machine.
				if _, _, err := agent.Joined(cfg.Paths.Node()); err != nil {
					return err
				}
				return RunNode(ctx, cfg, version, log)
			})
		},
	}
}

func leaveCommand() *cli.Command {
	return &cli.Command{
		Name:  "leave",
		Usage: "take this node out of the platform",
		Description: "The node's machines are replaced on other nodes, drained and removed. Then the running node exits, with\n" +
			"status 3, and this machine may join again. To follow it: multipaas status. What is in volumes that are here\n" +
			"still is kept: multipaas doctor lists them, and says how they are deleted.",
		Flags: configFlags(),
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			if err := agent.Leave(c.Context, cfg.Paths.Node()); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Leaving. The running node exits once its machines are gone.")
			return nil
		},
	}
}

// joinOnce joins, unless this machine has: it may leave the server's name out then.
func joinOnce(ctx context.Context, c *cli.Context, cfg Config) error {
	at, name, err := agent.Joined(cfg.Paths.Node())
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist), err == nil && c.NArg() == 0:
		return err
	case c.NArg() != 1:
		return cli.Exit("multipaas: name the server: multipaas node join https://SERVER:7443", 2)
	}
	server := c.Args().First()
	if err == nil && at == strings.TrimSuffix(server, "/") && name == cfg.Name {
		return nil
	}
	token, err := joinToken(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Paths.Data, 0o700); err != nil {
		return err
	}
	return agent.Join(ctx, cfg.Paths.Node(), server, cfg.Name, token)
}

func joinToken(c *cli.Context) (string, error) {
	switch file := c.String("token-file"); file {
	case "":
		if token := os.Getenv("MULTIPAAS_JOIN_TOKEN"); token != "" {
			return token, nil
		}
		return "", cli.Exit("multipaas: no join token: set MULTIPAAS_JOIN_TOKEN or --token-file; "+
			"make one on the platform with: multipaas token create --role node", 2)
	case "-":
		return readLine(c.App.Reader)
	default:
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return readLine(f)
	}
}

// readLine reads one short line, the token.
func readLine(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, 4096))
	return strings.TrimSpace(string(data)), err
}
