package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/client"
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

// TestLines: each command takes its flags anywhere and as many arguments as it says; a line
// that it doesn't take is told so, and nothing is run.
func TestLines(t *testing.T) {
	for line, want := range map[string]string{
		"":                              "",
		"--version":                     "--version",
		"help node":                     "node --help",
		"node":                          "node",
		"status -h":                     "status --help",
		"server --address=192.0.2.1":    "server --address=192.0.2.1 --",
		"server extra --data-dir /d":    `server: "extra" is one argument too many`,
		"server -- --data-dir /d":       `server: "--data-dir" is one argument too many`,
		"preflight server --address X":  "preflight --address X -- server",
		"preflight":                     "server|node is missing",
		"config foo --nonsense":         "there is no flag --nonsense",
		"config foo":                    `config: "foo" is one argument too many`,
		"doctor foo --fix --data-dir X": `doctor: "foo" is one argument too many`,
		"--data-dir X doctor --fix":     "doctor --data-dir X --fix --",
		"status --data-dir":             "--data-dir needs a value",
		"node run extra":                `node run: "extra" is one argument too many`,
		"node join https://a:7443 --name n1 --no-run": "node join --name n1 --no-run -- https://a:7443",
		"node join":                       "node join --",
		"node join https://a https://b":   `node join: "https://b" is one argument too many`,
		"payload add a=b --key k c=d":     "payload add --key k -- a=b c=d",
		"payload key new":                 "FILE is missing",
		"foo":                             `there is no command "foo"`,
		"node foo":                        `there is no command "node foo"`,
		"node foo --name x":               "there are: join, run, leave",
		"nodes":                           `did you mean "node"?`,
		"mp ws list --account a -- b":     "mp ws list --account a -- b",
		"token create -- --role node":     "token create -- --role node",
		"kubectl get pods -A --":          "kubectl get pods -A --",
		"node look -x a --":               "node look -x a --",
		"node lok":                        "there are: join, run, leave",
		"--data-dir X kubectl get":        "kubectl: there is no flag --data-dir",
		"node --generate-bash-completion": "node --generate-bash-completion",
		"status --help --nope x":          "status --help",
	} {
		got, err := client.Arrange(table(), append([]string{"multipaas"}, strings.Fields(line)...))
		text := strings.Join(got[min(len(got), 1):], " ")
		exit, isExit := errors.AsType[cli.ExitCoder](err)
		switch {
		case err == nil && text != want:
			t.Errorf("%q: %q, want %q", line, text, want)
		case err != nil && (!strings.Contains(err.Error(), want) || want == "" || !isExit || exit.ExitCode() != 2):
			t.Errorf("%q: %v, want %q and exit code 2", line, err, want)
		}
	}
	var each func(path []string, commands []*cli.Command)
	each = func(path []string, commands []*cli.Command) {
		for _, c := range commands {
			words := append(slices.Clone(path), c.Name)
			each(words, c.Subcommands)
			if c.SkipFlagParsing || len(c.Subcommands) > 0 || strings.HasSuffix(c.ArgsUsage, "...") {
				continue
			}
			words = append(words, "x", "x") // none takes two
			if _, err := client.Arrange(table(), words); err == nil || !strings.Contains(err.Error(), "one argument too many") {
				t.Errorf("%s: %v", strings.Join(words, " "), err)
			}
		}
	}
	each([]string{"multipaas"}, table().Commands)
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
