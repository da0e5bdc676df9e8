package client

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// progress shows the steps of a task on standard error: on a terminal as lines
// that are drawn over, with one that turns; else one plain line per change.
type progress struct {
	*program
	terminal bool
	style    style
	stopTurn func() // returns when it doesn't turn any more

	mu    sync.Mutex
	task  *resource.Task
	frame int
	drawn int               // lines on the screen that are ours
	said  map[string]string // plain: what was last written about a step
	trust bool              // the connection stands
}

func newProgress(p *program) *progress {
	g := &progress{
		program: p, terminal: isTerminal(p.err) && os.Getenv("TERM") != "dumb", style: p.styleFor(p.err),
		said: map[string]string{}, trust: true,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var turning sync.WaitGroup
	if g.terminal {
		turning.Go(func() { g.turn(ctx) })
	}
	g.stopTurn = func() {
		cancel()
		turning.Wait()
	}
	return g
}

// turn redraws ten times a second, so that one sees it lives.
func (g *progress) turn(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.mu.Lock()
			g.frame++
			g.draw()
			g.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

func (g *progress) show(t *resource.Task) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.task, g.trust = t, true
	if g.terminal {
		g.draw()
		return
	}
	for _, s := range t.Status.Steps {
		text := string(s.Status) + s.Message
		if g.said[s.Type] == text {
			continue
		}
		g.said[s.Type] = text
		g.note("%s", stepLine(s, ".."))
	}
}

// lost tells, once, that the stream broke and is being opened again.
func (g *progress) lost(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.trust || g.terminal || err == nil {
		return
	}
	g.trust = false
	g.note("..    the connection broke (%s), trying again", printable(err.Error()))
}

// stop leaves the last state standing.
func (g *progress) stop() {
	g.stopTurn()
	if g.terminal {
		g.draw()
	}
}

// draw writes over the lines drawn before. The caller holds mu, if others draw.
func (g *progress) draw() {
	if g.task == nil {
		return
	}
	lines := taskLines(g.task, g.frame, terminalWidth(g.err), g.style)
	var b strings.Builder
	if g.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", g.drawn)
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[K" + l + "\n")
	}
	b.WriteString("\x1b[J")
	g.drawn = len(lines)
	io.WriteString(g.err, b.String())
}

// spinner is what turns.
const spinner = `|/-\`

// taskLines are the lines for a terminal of that width.
func taskLines(t *resource.Task, frame, width int, s style) []string {
	wait := string(spinner[frame%len(spinner)])
	lines := make([]string, 0, len(t.Status.Steps))
	for _, step := range t.Status.Steps {
		// The color codes take no room: cut the text, then color the sign.
		line := clip(stepLine(step, wait), width-1)
		lines = append(lines, s.colorFirst(line, step.Status, step.Final))
	}
	if len(lines) == 0 && !t.Ended() {
		lines = append(lines, clip(fmt.Sprintf("%-6s%s", wait, stepName(t.Spec.Operation)), width-1))
	}
	return lines
}

// stepLine is "ok    plane ready" or "..    machines ready: 1 of 2".
func stepLine(c resource.Condition, wait string) string {
	sign := wait
	switch {
	case c.Status == resource.True:
		sign = "ok"
	case c.Status == resource.False && c.Final:
		sign = "FAIL"
	}
	line := fmt.Sprintf("%-6s%s", sign, stepName(c.Type))
	if c.Message != "" {
		line += ": " + printable(c.Message)
	}
	return line
}

// Where a word of a step's name begins: behind a small letter, or at the last
// capital of several.
var wordBegins = regexp.MustCompile(`(\P{Lu})(\p{Lu})`)
var lastCapital = regexp.MustCompile(`(\p{Lu})(\p{Lu}\P{Lu})`)

// stepName makes "machines ready" of "MachinesReady", "HTTP route" of
// "HTTPRoute".
func stepName(t string) string {
	words := strings.Fields(lastCapital.ReplaceAllString(wordBegins.ReplaceAllString(printable(t), "$1 $2"), "$1 $2"))
	for i, word := range words {
		if len(word) == 1 || strings.ToUpper(word) != word {
			words[i] = strings.ToLower(word)
		}
	}
	return strings.Join(words, " ")
}
