package client

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/multipaas/multipaas/modules/resource"
)

// progress shows the steps of a task on standard error: on a terminal as lines
// that are drawn over, with one that turns; else one plain line per change.
type progress struct {
	out      io.Writer
	terminal bool
	width    func() int
	style    style

	mu    sync.Mutex
	task  *resource.Task
	frame int
	drawn int               // lines on the screen that are ours
	said  map[string]string // plain: what was last written about a step
	trust bool              // the connection stands
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

func newProgress(p *program) *progress {
	g := &progress{
		out: p.err, terminal: isTerminal(p.err) && os.Getenv("TERM") != "dumb", style: p.styleFor(p.err),
		width: func() int { return terminalWidth(p.err) },
		said:  map[string]string{}, trust: true, done: make(chan struct{}),
	}
	if g.terminal {
		g.wg.Add(1)
		go g.turn()
	}
	return g
}

// turn redraws ten times a second, so that one sees it lives.
func (g *progress) turn() {
	defer g.wg.Done()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.mu.Lock()
			g.frame++
			g.draw()
			g.mu.Unlock()
		case <-g.done:
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
		fmt.Fprintln(g.out, stepLine(s, ".."))
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
	fmt.Fprintf(g.out, "..    the connection broke (%s), trying again\n", printable(err.Error()))
}

// stop leaves the last state standing. More than one call does no harm.
func (g *progress) stop() {
	g.once.Do(func() {
		close(g.done)
		g.wg.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.terminal {
			g.draw()
		}
	})
}

// draw writes over the lines drawn before. The caller holds mu.
func (g *progress) draw() {
	if g.task == nil {
		return
	}
	lines := taskLines(g.task, g.frame, g.width(), g.style)
	var b strings.Builder
	if g.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", g.drawn)
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[K" + l + "\n")
	}
	b.WriteString("\x1b[J")
	g.drawn = len(lines)
	io.WriteString(g.out, b.String())
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
	if len(lines) == 0 && !ended(t) {
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

// stepName makes "machines ready" of "MachinesReady", "HTTP route" of
// "HTTPRoute".
func stepName(t string) string {
	runes := []rune(printable(t))
	var words []string
	begin := 0
	for i := 1; i <= len(runes); i++ {
		inside := i < len(runes) && (!unicode.IsUpper(runes[i]) || unicode.IsUpper(runes[i-1]) && (i+1 == len(runes) || unicode.IsUpper(runes[i+1])))
		if inside {
			continue
		}
		word := string(runes[begin:i])
		if i-begin == 1 || strings.ToUpper(word) != word {
			word = strings.ToLower(word)
		}
		words, begin = append(words, word), i
	}
	return strings.Join(words, " ")
}
