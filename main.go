// Command multipaas is the one file of MultiPaaS: server, node and client. This
// is the command table and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance"
	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/appliance/doctor"
	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/appliance/preflight"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/modules/client"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch filepath.Base(args[0]) { // a link named for one of its roles
	case "mp":
		return client.Main(ctx, args[1:], os.Stdin, os.Stdout, os.Stderr)
	case "kubectl":
		args = append([]string{"multipaas", "kubectl"}, args[1:]...)
	}
	err := faultpoint.Arm(os.Getenv(faultpoint.Variable))
	if err == nil {
		err = table().RunContext(ctx, addressLast(args))
	}
	var exit cli.ExitCoder
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if text := exit.Error(); text != "" {
			fmt.Fprintln(os.Stderr, text)
		}
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "multipaas:", err)
	return 1
}

// table is the command table.
func table() *cli.App {
	return &cli.App{
		Name: "multipaas", Usage: "a private, multi-tenant Kubernetes platform in one file", Version: version,
		HideHelpCommand: true, EnableBashCompletion: true,
		ExitErrHandler: func(*cli.Context, error) {}, // main exits, nobody else
		Commands: []*cli.Command{
			serverCommand(), nodeCommand(), client.Command(), client.Token(),
			statusCommand(), doctorCommand(), configCommand(), preflightCommand(), appliance.PayloadCommand(), kubectlCommand(),
		},
	}
}

// addressLast moves the server's address behind the flags of `node join`:
// urfave/cli takes flags only before arguments, people write them anywhere.
func addressLast(args []string) []string {
	if len(args) < 4 || args[1] != "node" || args[2] != "join" {
		return args
	}
	i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "https://") })
	if i < 0 {
		return args
	}
	return append(slices.Delete(slices.Clone(args), i, i+1), args[i])
}

// configFlags choose the configuration of a role. Everything else is in the
// file or in MULTIPAAS_* variables.
func configFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Value: paths.DefaultConfig, Usage: "configuration `FILE` (YAML); the default one need not exist"},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIRECTORY` for everything that is kept"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` of this machine on the platform (default: the host name)"},
		&cli.StringFlag{Name: "address", Usage: "`ADDRESS` of this machine on the platform's network"},
		&cli.StringFlag{Name: "domain", Usage: "`DOMAIN` below which apps are reached"},
		&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warn or error"},
	}
}

func loadFile(c *cli.Context) (appliance.File, error) {
	flags := map[string]string{}
	for flag, setting := range map[string]string{"data-dir": "data_dir", "name": "name", "address": "address", "domain": "domain", "log-level": "log.level"} {
		if c.IsSet(flag) {
			flags[setting] = c.String(flag)
		}
	}
	return appliance.Load(config.Sources{
		File:     c.String("config"),
		Optional: !c.IsSet("config"),
		Env:      os.Environ(),
		Flags:    flags,
	})
}

func load(c *cli.Context) (appliance.Config, error) {
	file, err := loadFile(c)
	if err != nil {
		return appliance.Config{}, err
	}
	machine, err := appliance.ThisMachine()
	if err != nil {
		return appliance.Config{}, err
	}
	cfg := file.Complete(machine)
	return cfg, cfg.Validate()
}

// role loads the configuration, sets up logging and runs a role.
func role(c *cli.Context, run func(context.Context, appliance.Config, *slog.Logger) error) error {
	cfg, err := load(c)
	if err != nil {
		return err
	}
	level, err := logs.ParseLevel(cfg.Log.Level)
	if err != nil {
		return err
	}
	log := logs.New(os.Stderr, level, cfg.Log.Format)
	logs.Redirect(log)
	return run(c.Context, cfg, log)
}

func serverCommand() *cli.Command {
	return &cli.Command{
		Name: "server", Usage: "run a control machine: datastore, API, registry, load balancer, tenants' planes",
		Description: "Runs in the foreground until SIGTERM. The first start writes the first sysadmin's credentials to\n" +
			"<data_dir>/bootstrap-admin.json (0600).\n\n   multipaas server --address 192.0.2.10 --domain paas.example",
		Flags: configFlags(),
		Action: func(c *cli.Context) error {
			return role(c, func(ctx context.Context, cfg appliance.Config, log *slog.Logger) error {
				return appliance.RunServer(ctx, cfg, version, log)
			})
		},
	}
}

func nodeCommand() *cli.Command {
	return &cli.Command{
		Name: "node", Usage: "make this machine a node, run it, or take it out",
		Subcommands: []*cli.Command{
			{
				Name: "join", Usage: "join a platform and run as its node", ArgsUsage: "https://SERVER:7443",
				Description: "Joins once with a token (`multipaas token create --role node` on the platform), then runs the node in\n" +
					"the foreground until SIGTERM; joined already, it only runs. The token is never an argument, for\n" +
					"arguments can be read by every process:\n\n" +
					"   MULTIPAAS_JOIN_TOKEN=... multipaas node join https://192.0.2.10:7443\n" +
					"   multipaas node join --token-file token https://192.0.2.10:7443",
				Flags: append(configFlags(), &cli.StringFlag{Name: "token-file", Usage: "`FILE` with the join token, - for standard input"},
					&cli.BoolFlag{Name: "no-run", Usage: "join only: a unit runs the node"}),
				Action: func(c *cli.Context) error {
					return role(c, func(ctx context.Context, cfg appliance.Config, log *slog.Logger) error {
						return joinNode(ctx, c, cfg, log)
					})
				},
			},
			{
				Name: "run", Usage: "run a node that has joined", Flags: configFlags(),
				Action: func(c *cli.Context) error {
					return role(c, func(ctx context.Context, cfg appliance.Config, log *slog.Logger) error {
						return appliance.RunNode(ctx, cfg, version, log)
					})
				},
			},
			{
				Name: "leave", Usage: "take this node out of the platform", Flags: configFlags(),
				Description: "The node's machines are replaced on other nodes, drained and removed; then the running node ends by\n" +
					"itself and this machine may join again. Follow it with: multipaas status",
				Action: func(c *cli.Context) error {
					cfg, err := load(c)
					if err != nil {
						return err
					}
					if err := appliance.LeaveNode(c.Context, cfg); err != nil {
						return err
					}
					fmt.Fprintln(os.Stdout, "Leaving. The running node ends when its machines are gone.")
					return nil
				},
			},
		},
	}
}

func joinNode(ctx context.Context, c *cli.Context, cfg appliance.Config, log *slog.Logger) error {
	if err := joinOnce(ctx, c, cfg); err != nil || c.Bool("no-run") {
		return err
	}
	return appliance.RunNode(ctx, cfg, version, log)
}

// joinOnce joins, unless this machine has: it may leave the server's name out then.
func joinOnce(ctx context.Context, c *cli.Context, cfg appliance.Config) error {
	at, name, err := appliance.Joined(cfg)
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
	return appliance.JoinNode(ctx, cfg, server, token)
}

func joinToken(c *cli.Context) (string, error) {
	switch file := c.String("token-file"); file {
	case "":
		if token := os.Getenv("MULTIPAAS_JOIN_TOKEN"); token != "" {
			return token, nil
		}
		return "", cli.Exit("multipaas: no join token: set MULTIPAAS_JOIN_TOKEN or --token-file; make one on the platform with: multipaas token create --role node", 2)
	case "-":
		return readLine(os.Stdin)
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

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show the parts of the appliance on this machine and what is wrong",
		Flags: append(configFlags(), &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "text, json or yaml"}),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			s, err := status.Fetch(c.Context, paths.Paths{Data: file.DataDir, Run: file.RunDir}.Socket())
			if err != nil {
				return err
			}
			return status.Render(os.Stdout, s, c.String("output"), time.Now())
		},
	}
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "find what of MultiPaaS on this machine nobody wants any more, and remove it",
		Description: "Looks at processes, network namespaces and what is in them, firewall tables, mounts, control groups, loop\n" +
			"devices, sockets and files, on a server also at the datastore, and compares them with what is wanted: asked from\n" +
			"the running server or node, or read from the data directory while it is stopped. It names each orphan, and\n" +
			"changes nothing without --fix.\n\n" +
			"Exit status: 0 nothing is amiss, or all of it was removed; 1 there are orphans, or it could not look.",
		Flags: append(configFlags(),
			&cli.BoolFlag{Name: "fix", Usage: "remove the orphans, and say so of each once it is gone"},
			&cli.BoolFlag{Name: "inventory", Usage: "show all that was found, wanted or not"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table, json or yaml"}),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			if o := c.String("output"); !slices.Contains([]string{"table", "json", "yaml"}, o) {
				return cli.Exit(fmt.Sprintf("multipaas: output %q: unknown: use table, json or yaml", o), 2)
			}
			removed := func(o doctor.Orphan) { fmt.Fprintln(os.Stderr, o.Told()) }
			r, err := appliance.Doctor(c.Context, paths.Paths{Data: file.DataDir, Run: file.RunDir}, c.Bool("fix"), removed)
			if err != nil {
				return err
			}
			if c.Bool("inventory") {
				return doctor.RenderInventory(os.Stdout, r.Inventory, c.String("output"))
			}
			if err := doctor.Render(os.Stdout, r, c.String("output"), time.Now()); err != nil {
				return err
			}
			if !r.Healthy() {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "show the configuration in force and say what is wrong with it",
		Flags: append(configFlags(), &cli.BoolFlag{Name: "diff", Usage: "only what differs from the defaults"}),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			text, err := config.Print(file)
			if c.Bool("diff") {
				text, err = config.Diff(file, appliance.Defaults())
			}
			if err != nil {
				return err
			}
			fmt.Fprint(os.Stdout, text)
			_, err = load(c)
			return err
		},
	}
}

func preflightCommand() *cli.Command {
	return &cli.Command{
		Name: "preflight", Usage: "check whether this machine can be a server or a node", ArgsUsage: "server|node",
		Flags: configFlags(),
		Action: func(c *cli.Context) error {
			cfg, err := load(c)
			if err != nil {
				return err
			}
			var checks []preflight.Check
			switch c.Args().First() {
			case "server":
				checks = appliance.ServerChecks(cfg)
			case "node":
				checks = preflight.Node(cfg.Paths.Data)
			default:
				return cli.Exit("multipaas: say for which role: multipaas preflight server, or: multipaas preflight node", 2)
			}
			failed := 0
			for _, r := range preflight.Run(c.Context, checks) {
				fmt.Fprintf(os.Stdout, "%-8s %s\n", r.State, r)
				if r.State == preflight.Failed {
					failed++
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d checks failed", failed)
			}
			return nil
		},
	}
}

func kubectlCommand() *cli.Command {
	return &cli.Command{
		Name: "kubectl", Usage: "run the kubectl of the payload", ArgsUsage: "ARGUMENTS...", SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			kube, err := appliance.Kubectl(c.Context)
			if err != nil {
				return err
			}
			return syscall.Exec(kube, append([]string{"kubectl"}, c.Args().Slice()...), os.Environ())
		},
	}
}
