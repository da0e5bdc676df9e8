// Command payload is `multipaas payload` alone: the build makes the payload
// with it before there is a multipaas to carry it.
package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/embed/payload"
)

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	command := payload.Command()
	app := &cli.App{
		Name:           command.Name,
		Usage:          command.Usage,
		Commands:       command.Subcommands,
		ExitErrHandler: func(*cli.Context, error) {}, // run is who exits
	}
	err := app.Run(args)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	if coder, ok := err.(cli.ExitCoder); ok {
		return coder.ExitCode()
	}
	return 1
}
