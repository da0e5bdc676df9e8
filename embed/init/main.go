// Command init is the first process of a machine, the sandbox that is one
// Kubernetes node of a workspace, and of the container of a host's storage. It starts the machine's services in order,
// starts them again when they end, keeps their output within bounds, reaps
// what lost its parent, and on SIGTERM stops them in reverse order.
//
// It promises that the machine ends when it does and within StopTimeout, and
// that its state file tells at any time what runs. The other party is the host's agent:
// it writes the configuration before the start, reads the state file after, and
// sends SIGTERM. Nothing imports it; it uses the standard library and x/sys
// only, so that it stays small. What the container runtime mounts
// is mounted already.
//
//	init [--config /etc/multipaas/init.json]
//
// Try it outside a machine: it then adopts orphans by being their subreaper
// and leaves mounts and control groups alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "/etc/multipaas/init.json", "configuration `file`")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	cfg, err := LoadConfig(*file)
	if err != nil {
		fmt.Fprintln(stderr, "init:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err = prepare(os.Getpid() == 1 && !cfg.Plain)
	if err == nil {
		err = newSupervisor(cfg, stderr).Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(stderr, "init:", err)
		return 1
	}
	return 0
}
