package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/appliance/doctor"
	"github.com/multipaas/multipaas/appliance/logs"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/appliance/preflight"
	"github.com/multipaas/multipaas/appliance/status"
)

// configFlags choose the configuration of a role. Everything else is in the
// file or in MULTIPAAS_* variables.
func configFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{
			Name:    "config",
			Aliases: []string{"c"},
			Value:   paths.DefaultConfig,
			Usage:   "configuration `FILE` (YAML); the default one is optional",
		},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIRECTORY` for everything that is kept"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` of this machine on the platform (default: the host name)"},
		&cli.StringFlag{Name: "address", Usage: "`ADDRESS` of this machine on the platform's network"},
		&cli.StringFlag{Name: "domain", Usage: "`DOMAIN` below which apps are reached"},
		&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warn or error"},
	}, more...)
}

func loadFile(c *cli.Context) (File, error) {
	flags := map[string]string{}
	for flag, setting := range map[string]string{
		"data-dir": "data_dir", "name": "name", "address": "address", "domain": "domain", "log-level": "log.level",
	} {
		if c.IsSet(flag) {
			flags[setting] = c.String(flag)
		}
	}
	return Load(config.Sources{
		File:     c.String("config"),
		Optional: !c.IsSet("config"),
		Env:      os.Environ(),
		Flags:    flags,
	})
}

func loadConfig(c *cli.Context) (Config, error) {
	file, err := loadFile(c)
	if err != nil {
		return Config{}, err
	}
	machine, err := ThisMachine()
	if err != nil {
		return Config{}, err
	}
	cfg := file.Complete(machine)
	return cfg, cfg.Validate()
}

// role loads the configuration, sets up logging and runs a role.
func role(c *cli.Context, version string, run func(context.Context, Config, string, *slog.Logger) error) error {
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	level, err := logs.ParseLevel(cfg.Log.Level)
	if err != nil {
		return err
	}
	log := logs.New(os.Stderr, level, cfg.Log.Format)
	logs.Redirect(log)
	return run(c.Context, cfg, version, log)
}

// ServerCommand is `multipaas server`.
func ServerCommand(version string) *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "run a server: datastore, API, registry, load balancer, tenants' control planes",
		Description: "Runs in the foreground until SIGTERM. The first start writes the first sysadmin's credentials to\n" +
			"<data_dir>/bootstrap-admin.json (0600).\n\n   multipaas server --address 192.0.2.10 --domain paas.example",
		Flags:  configFlags(),
		Action: func(c *cli.Context) error { return role(c, version, RunServer) },
	}
}

// StatusCommand is `multipaas status`.
func StatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what runs on this machine, and what is wrong",
		Flags: configFlags(outputFlag("text")),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			s, err := status.Fetch(c.Context, file.paths().Socket())
			if err != nil {
				return err
			}
			return status.Render(c.App.Writer, s, c.String("output"), time.Now())
		},
	}
}

func outputFlag(plain string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: plain, Usage: plain + ", json or yaml"}
}

// DoctorCommand is `multipaas doctor`.
func DoctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "find leftovers of MultiPaaS on this machine, and remove them",
		Description: "Compares what is on this machine with what should be: processes, network namespaces and what is in them,\n" +
			"firewall tables, mounts, control groups, loop devices, sockets and files; on a server the datastore too. The\n" +
			"running server or node says what should be there; if none runs, the data directory does. Whatever belongs to\n" +
			"nothing is an orphan. Orphans are listed; only --fix removes them, and of volumes' data only what --volume names.\n\n" +
			"Exit status: 0 if there are no orphans but volumes, or all were removed; 1 if there are, or the machine can't be examined.",
		Flags: configFlags(
			&cli.BoolFlag{Name: "fix", Usage: "remove the orphans, and report each removal"},
			&cli.StringSliceFlag{Name: "volume", Usage: "with --fix, destroy the data of the orphan volume with this `UID` too"},
			&cli.BoolFlag{Name: "inventory", Usage: "show everything that was found, not only orphans"},
			outputFlag("table")),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			if o := c.String("output"); !slices.Contains([]string{"table", "json", "yaml"}, o) {
				return cli.Exit(fmt.Sprintf("multipaas: output %q: unknown: use table, json or yaml", o), 2)
			}
			removed := func(o doctor.Orphan) { fmt.Fprintln(c.App.ErrWriter, o.Told()) }
			r, err := Doctor(c.Context, file.paths(), c.Bool("fix"), c.StringSlice("volume"), removed)
			if err != nil {
				return err
			}
			if c.Bool("inventory") {
				return doctor.RenderInventory(c.App.Writer, r.Inventory, c.String("output"))
			}
			if err := doctor.Render(c.App.Writer, r, c.String("output"), time.Now()); err != nil {
				return err
			}
			if !r.Healthy() {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

// ConfigCommand is `multipaas config`.
func ConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "show the configuration in effect, and check it",
		Flags: configFlags(&cli.BoolFlag{Name: "diff", Usage: "show only what differs from the defaults"}),
		Action: func(c *cli.Context) error {
			file, err := loadFile(c)
			if err != nil {
				return err
			}
			text, err := config.Print(file)
			if c.Bool("diff") {
				text, err = config.Diff(file, Defaults())
			}
			if err != nil {
				return err
			}
			fmt.Fprint(c.App.Writer, text)
			_, err = loadConfig(c)
			return err
		},
	}
}

// PreflightCommand is `multipaas preflight`.
func PreflightCommand() *cli.Command {
	return &cli.Command{
		Name:      "preflight",
		Usage:     "check whether this machine can be a server or a node",
		ArgsUsage: "server|node",
		Flags:     configFlags(),
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			var checks []preflight.Check
			switch c.Args().First() {
			case "server":
				checks = serverChecks(cfg)
			case "node":
				checks = preflight.Node(cfg.Paths.Data)
			default:
				return cli.Exit("multipaas: say for which role: multipaas preflight server, or: multipaas preflight node", 2)
			}
			results := preflight.Run(c.Context, checks)
			if err := preflight.Render(c.App.Writer, results); err != nil {
				return err
			}
			if failed := preflight.Failures(results); len(failed) > 0 {
				return fmt.Errorf("%d checks failed", len(failed))
			}
			return nil
		},
	}
}

// KubectlCommand is `multipaas kubectl`.
func KubectlCommand() *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Usage:           "run the kubectl of the payload",
		ArgsUsage:       "ARGUMENTS...",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			kube, err := kubectl(c.Context)
			if err != nil {
				return err
			}
			return syscall.Exec(kube, append([]string{"kubectl"}, c.Args().Slice()...), os.Environ())
		},
	}
}
