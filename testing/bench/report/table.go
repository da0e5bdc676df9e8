// Package report shows what the benchmarks have measured: as a table for a
// terminal, as JSON for programs, as a chart for people.
package report

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/multipaas/multipaas/testing/bench/measure"
)

// width is that of the table: it fits a terminal of 100 columns.
const width = 100

// Table prints one section. 100 columns:
//
//	name 30, ours 8, unit 7, min to max 14, peer and value 17, ratio 6, goal 15
func Table(w io.Writer, s measure.Section, results []measure.Result) {
	fmt.Fprintf(w, "\n%s: %s\n", s.Name, s.About)
	row := func(name, ours, unit, spread, peer, ratio, goal string) {
		line := pad(name, 30) + right(ours, 8) + " " + pad(unit, 7) + pad(spread, 14) + pad(peer, 17) + right(ratio, 6) + " " + goal
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	row("", "ours", "", "min-max", "peer", "ratio", "goal")
	fmt.Fprintln(w, strings.Repeat("─", width))
	last := ""
	var notes []string
	for _, r := range results {
		name, ours, unit, spread := strings.TrimPrefix(r.Name, s.Name+"/"), Number(r.Ours.Median), r.Unit, spreadText(r.Ours)
		if r.Note != "" {
			i := index(&notes, r.Note)
			name += fmt.Sprintf(" [%d]", i+1)
		}
		if r.Name == last { // the same number beside another peer
			name, ours, unit, spread = "", "", "", ""
		}
		last = r.Name
		peer, ratio := "", ""
		if r.Peer != "" {
			number := Number(r.PeerStat.Median)
			peer = pad(r.Peer, 15-utf8.RuneCountInString(number)) + number
			ratio = ratioText(r.Ratio())
		}
		goal := r.GoalText()
		if goal != "" {
			if r.Met() {
				goal += " met"
			} else {
				goal += " MISSED"
			}
		}
		row(name, ours, unit, spread, peer, ratio, goal)
	}
	for i, n := range notes {
		fmt.Fprintf(w, "[%d] %s\n", i+1, n)
	}
}

func index(list *[]string, s string) int {
	for i, have := range *list {
		if have == s {
			return i
		}
	}
	*list = append(*list, s)
	return len(*list) - 1
}

// Number is a number with three digits that mean something.
func Number(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 99_950:
		return thousands(fmt.Sprintf("%.0f", v/1000)) + "k"
	case a >= 1000:
		return thousands(fmt.Sprintf("%.0f", v))
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	case a >= 0.01:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

func thousands(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func ratioText(v float64) string {
	if v == 0 {
		return "-"
	}
	if v >= 100 {
		return fmt.Sprintf("%.0fx", v)
	}
	return fmt.Sprintf("%.2fx", v)
}

func spreadText(s measure.Stat) string {
	if s.Rounds < 2 {
		return ""
	}
	return Number(s.Min) + "-" + Number(s.Max)
}

// pad fills s up to n columns, or cuts it.
func pad(s string, n int) string {
	if have := utf8.RuneCountInString(s); have < n {
		return s + strings.Repeat(" ", n-have)
	}
	return string([]rune(s)[:n-1]) + " "
}

func right(s string, n int) string {
	if have := utf8.RuneCountInString(s); have < n {
		return strings.Repeat(" ", n-have) + s
	}
	return s
}
