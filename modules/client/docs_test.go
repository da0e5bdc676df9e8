package client

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write docs/cli.md anew, and fail")

const docsFile = "../../docs/cli.md"

const docsHead = `# The command line

Every command's help, as ` + "`--help`" + ` prints it. This file is made from the commands:
` + "`go test ./modules/client -run TestDocs -update`" + ` writes it, and a test compares the two.
`

// TestDocs keeps docs/cli.md true.
func TestDocs(t *testing.T) {
	p := newProgram("mp", nil, nil, nil)
	var want bytes.Buffer
	want.WriteString(docsHead)
	p.writeDocs(&want, "mp", p.commands())
	p.writeDocs(&want, "multipaas token", p.tokenCommands())
	got, err := os.ReadFile(docsFile)
	if err == nil && bytes.Equal(got, want.Bytes()) {
		return
	}
	if *update {
		if err := os.WriteFile(docsFile, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s is written anew: look at it and run the test again", docsFile)
	}
	t.Errorf("%s is not what the commands say (%v): run go test ./modules/client -run TestDocs -update", docsFile, err)
}

// TestEveryCommandIsDocumented wants a usage line for all and an example for
// each that runs.
func TestEveryCommandIsDocumented(t *testing.T) {
	p := newProgram("mp", nil, nil, nil)
	var check func(path string, c *command)
	check = func(path string, c *command) {
		if c.usage == "" || strings.HasSuffix(c.usage, ".") {
			t.Errorf("%s: usage %q: want one line without a full stop", path, c.usage)
		}
		if c.run != nil && len(c.examples) == 0 {
			t.Errorf("%s: no example", path)
		}
		for _, e := range c.examples {
			words := strings.Fields(e)
			for i, w := range words { // examples may stand in a pipe or in $(...)
				if w == "mp" || strings.HasSuffix(w, "(mp") || w == "multipaas" {
					words = words[i+1:]
					break
				}
			}
			root := p.commands()
			if strings.HasPrefix(path, "multipaas token") {
				root, words = p.tokenCommands(), words[1:]
			}
			var args []string
			for _, w := range words {
				if w == ">" || w == "|" {
					break
				}
				args = append(args, strings.TrimSuffix(strings.TrimSuffix(w, `"`), ")"))
			}
			if r, err := resolve(root, args); err != nil {
				t.Errorf("%s: example %q: %v", path, e, err)
			} else if c.run != nil && r.cmd.name != c.name {
				t.Errorf("%s: example %q calls %s", path, e, strings.Join(r.path, " "))
			}
		}
		seen := map[string]bool{}
		for _, f := range c.flags {
			for _, n := range f.Names() {
				if seen[n] {
					t.Errorf("%s: flag %s twice", path, n)
				}
				seen[n] = true
			}
		}
		names := map[string]bool{}
		for _, s := range c.sub {
			for _, n := range s.called() {
				if names[n] {
					t.Errorf("%s: command %s twice", path, n)
				}
				names[n] = true
			}
		}
		for _, s := range c.sub {
			check(path+" "+s.called()[0], s)
		}
	}
	check("mp", p.commands())
	check("multipaas token", p.tokenCommands())
}

// TestFlagsAreAlike: a flag may stand before the verb, where only its name is
// known, so one name takes a value everywhere or nowhere.
func TestFlagsAreAlike(t *testing.T) {
	p := newProgram("mp", nil, nil, nil)
	for _, root := range []*command{p.commands(), p.tokenCommands()} {
		bools := map[string]bool{}
		var check func(c *command)
		check = func(c *command) {
			for _, f := range c.flags {
				_, b := f.(*cli.BoolFlag)
				for _, n := range f.Names() {
					if was, seen := bools[n]; seen && was != b {
						t.Errorf("%s: flag %s takes a value here but not elsewhere, or the other way round", c.name, n)
					}
					bools[n] = b
				}
			}
			for _, s := range c.sub {
				check(s)
			}
		}
		check(root)
	}
}

// writeDocs writes the help of every command below c as Markdown.
func (p *program) writeDocs(w io.Writer, path string, c *command) {
	fmt.Fprintf(w, "\n## %s\n\n```text\n", path)
	p.writeHelp(w, path, c)
	fmt.Fprintf(w, "```\n")
	for _, s := range c.sub {
		p.writeDocs(w, path+" "+s.called()[0], s)
	}
}
