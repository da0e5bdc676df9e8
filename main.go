// Command multipaas is the one file of MultiPaaS: server, node and client. This
// is the command table and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/embed/payload"
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
	app := table()
	args, err := client.Arrange(app, args)
	if err == nil {
		err = failpoint.Arm(os.Getenv(failpoint.Variable), appliance.Failpoints())
	}
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[cli.ExitCoder](err); ok {
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
		Name:                 "multipaas",
		Usage:                "a private, multi-tenant Kubernetes platform in one file",
		Version:              version,
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // main exits, nobody else
		Commands: []*cli.Command{
			service(appliance.ServerCommand(version)),
			service(appliance.NodeCommand(version)),
			client.Command(),
			client.Token(),
			appliance.StatusCommand(),
			appliance.DoctorCommand(),
			appliance.ConfigCommand(),
			appliance.PreflightCommand(),
			payload.Command(),
			appliance.KubectlCommand(),
		},
	}
}

// service makes a command go on when a terminal hangs up: systemd takes that for an end
// that was wanted, and who serves others should not end with the shell it was typed in.
func service(c *cli.Command) *cli.Command {
	c.Before = func(*cli.Context) error {
		// Caught, for what is ignored its children would ignore too.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		return nil
	}
	return c
}
