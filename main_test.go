package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write docs/multipaas.md anew; the test fails all the same")

// TestDocs holds docs/multipaas.md against the help of the commands. What `mp`
// and `token` take stands in docs/cli.md, which their own package keeps true.
func TestDocs(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString("# multipaas\n\nThe commands of the one file, as their help says it. `multipaas mp` has [its own page](cli.md).\n")
	for _, command := range []string{"", "server", "node join", "node run", "node leave", "status", "config", "preflight", "payload",
		"payload ls", "payload verify", "payload add", "payload pack"} {
		app := table()
		app.Version = "VERSION"
		var out bytes.Buffer
		app.Writer = &out
		if err := app.Run(append(append([]string{"multipaas"}, strings.Fields(command)...), "--help")); err != nil {
			t.Fatalf("%s --help: %v", command, err)
		}
		doc.WriteString("\n## " + strings.TrimSpace("multipaas "+command) + "\n\n```\n" + strings.TrimSpace(out.String()) + "\n```\n")
	}
	const file = "docs/multipaas.md"
	have, err := os.ReadFile(file)
	if err == nil && bytes.Equal(have, doc.Bytes()) {
		return
	}
	if *update {
		if err := os.WriteFile(file, doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("%s is not what the commands say: go test . -run TestDocs -update", file)
}

// TestHangup: a service goes on when a terminal hangs up, its children end as ever.
func TestHangup(t *testing.T) {
	app := cli.App{Commands: []*cli.Command{service(&cli.Command{Name: "serve", Subcommands: []*cli.Command{{
		Name: "run",
		Action: func(c *cli.Context) error {
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				return err
			}
			err := exec.CommandContext(c.Context, "sh", "-c", "kill -HUP $$; exit 0").Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGHUP {
				t.Errorf("a child that is hung up: %v", err)
			}
			return nil
		},
	}}})}}
	if err := app.RunContext(t.Context(), []string{"multipaas", "serve", "run"}); err != nil {
		t.Error(err)
	}
}
