package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
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
