package client

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// synopsis is "mp ws create NAME [flags]".
func synopsis(path string, c *command) string {
	text := path
	if c.run == nil {
		return text + " COMMAND"
	}
	if c.args != "" {
		text += " " + c.args
	}
	if len(c.flags) > 0 {
		text += " [flags]"
	}
	return text
}

// writeHelp writes the help of c, which path leads to.
func (p *program) writeHelp(w io.Writer, path string, c *command) {
	fmt.Fprintf(w, "%s.\n\nUsage:\n  %s\n", capital(c.usage), synopsis(path, c))
	if c.about != "" {
		fmt.Fprintf(w, "\n%s\n", c.about)
	}
	list := func(title string, rows [][]string) {
		if len(rows) > 0 {
			fmt.Fprintf(w, "\n%s:\n", title)
			writeRows(w, rows, 0, style{})
		}
	}
	var commands, flags, examples [][]string
	for _, s := range c.sub {
		commands = append(commands, []string{"  " + s.name, s.usage})
	}
	for _, f := range c.flags {
		flags = append(flags, flagRow(f))
	}
	for _, e := range c.examples {
		examples = append(examples, []string{"  " + e})
	}
	list("Commands", commands)
	list("Flags", flags)
	list("Examples", examples)
	if len(c.sub) > 0 {
		fmt.Fprintf(w, "\nMore on a command: %s COMMAND --help\n", path)
	}
}

// capital makes the first letter one, to begin a sentence with.
func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// flagRow is "--timeout DURATION" and what it does.
func flagRow(f cli.Flag) []string {
	doc := f.(cli.DocGenerationFlag) // as all of urfave's are
	var names []string
	for _, n := range f.Names() {
		names = append(names, dashes(n))
	}
	usage, value := doc.GetUsage(), "VALUE"
	if before, rest, ok := strings.Cut(usage, "`"); ok {
		placeholder, after, _ := strings.Cut(rest, "`")
		value, usage = placeholder, before+placeholder+after
		if before == "" && strings.HasPrefix(after, ": ") {
			usage = after[2:] // "FORMAT: table or json" stands behind --output FORMAT
		}
	}
	text := "  " + strings.Join(names, ", ")
	if _, isBool := f.(*cli.BoolFlag); !isBool {
		text += " " + value
		if d := doc.GetDefaultText(); d != "" && d != `""` && doc.GetValue() != "" && doc.GetValue() != "0" && doc.GetValue() != "0s" && doc.GetValue() != "[]" {
			d = strings.Replace(strings.Trim(d, `"`), "m0s", "m", 1)
			usage += " (default " + strings.Replace(d, "h0m", "h", 1) + ")"
		}
	} else if b := f.(*cli.BoolFlag); b.Value {
		usage += " (default)"
	}
	return []string{text, usage}
}
