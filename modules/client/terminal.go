package client

import (
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"

	"github.com/multipaas/multipaas/modules/resource"
)

// isTerminal says whether v, a stream of ours, is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is the width of the terminal that v is, or 0 if it is none: no
// limit.
func terminalWidth(v any) int {
	f, ok := v.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return 0 // no terminal, or one that does not know
	}
	return width
}

// style colors words, or does nothing.
type style struct{ on bool }

// styleFor colors on terminals, unless the user does not want it.
func (p *program) styleFor(stream any) style {
	return style{on: isTerminal(stream) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

const (
	green  = "\x1b[32m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// phase colors a cell that is a phase, a state or "yes"/"no" of readiness.
func (s style) phase(cell string) string {
	if !s.on {
		return cell
	}
	color := ""
	switch word := strings.TrimRight(cell, " "); word {
	case string(resource.Ready), string(resource.TaskDone), string(resource.TaskReplaced):
		color = green
	case string(resource.Failed), string(resource.TaskFailed):
		color = red
	case string(resource.Degraded), string(resource.Creating), string(resource.Pending), string(resource.Deleting), string(resource.TaskRunning):
		color = yellow
	default:
		return cell
	}
	return color + cell + plain
}

// colorFirst colors the sign at the beginning of a step's line.
func (s style) colorFirst(line string, status resource.ConditionStatus, final bool) string {
	if !s.on {
		return line
	}
	color := yellow
	if status == resource.True {
		color = green
	} else if final {
		color = red
	}
	sign, rest, _ := strings.Cut(line, " ")
	return color + sign + plain + " " + rest
}

// printable drops what could steer a terminal: names and messages come from
// other tenants, too.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
}

// printableLines is printable, line by line.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "\n")
}

// clip cuts s to width characters, the last one "…". Width <= 0 is no limit.
func clip(s string, width int) string {
	runes := []rune(s)
	if width <= 0 || len(runes) <= width {
		return s
	}
	return string(runes[:width-1]) + "…"
}
