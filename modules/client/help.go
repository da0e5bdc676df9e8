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
	fmt.Fprintf(w, "%s\n\nUsage:\n  %s\n", sentence(c.usage), synopsis(path, c))
	if c.about != "" {
		fmt.Fprintf(w, "\n%s\n", c.about)
	}
	if len(c.sub) > 0 {
		fmt.Fprintf(w, "\nCommands:\n")
		var rows [][]string
		for _, s := range c.sub {
			if !s.hidden {
				rows = append(rows, []string{"  " + strings.Join(append([]string{s.name}, s.aliases...), ", "), s.usage})
			}
		}
		writeRows(w, rows, 0, style{})
	}
	if len(c.flags) > 0 {
		fmt.Fprintf(w, "\nFlags:\n")
		var rows [][]string
		for _, f := range c.flags {
			rows = append(rows, flagRow(f))
		}
		writeRows(w, rows, 0, style{})
	}
	if len(c.examples) > 0 {
		fmt.Fprintf(w, "\nExamples:\n")
		for _, e := range c.examples {
			fmt.Fprintf(w, "  %s\n", e)
		}
	}
	if len(c.sub) > 0 {
		fmt.Fprintf(w, "\nMore on a command: %s COMMAND --help\n", path)
	}
}

// sentence makes one of a usage line.
func sentence(usage string) string {
	if usage == "" {
		return ""
	}
	return strings.ToUpper(usage[:1]) + usage[1:] + "."
}

// flagRow is "--timeout DURATION" and what it does.
func flagRow(f cli.Flag) []string {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return []string{f.Names()[0], ""}
	}
	names := make([]string, 0, 2)
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

// writeDocs writes the help of every command below c as Markdown.
func (p *program) writeDocs(w io.Writer, path string, c *command) {
	if c.hidden {
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n```text\n", path)
	p.writeHelp(w, path, c)
	fmt.Fprintf(w, "```\n")
	for _, s := range c.sub {
		p.writeDocs(w, path+" "+s.name, s)
	}
}
