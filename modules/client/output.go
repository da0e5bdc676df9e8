package client

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/multipaas/multipaas/modules/resource"
)

// column is one column of a table of V.
type column[V any] struct {
	head string
	wide bool // only with -o wide, and in what `show` prints
	cell func(*V) string
}

// table says how a kind is listed.
type table[V any] struct {
	columns []column[V]
	name    func(*V) string // for -o name and completion; the first column, if it is nil
	empty   string          // said instead of a table of nothing
}

func (t table[V]) nameOf(item *V) string {
	if t.name != nil {
		return t.name(item)
	}
	return t.columns[0].cell(item)
}

// The values of -o.
const (
	asTable = "table"
	asWide  = "wide"
	asJSON  = "json"
	asYAML  = "yaml"
	asName  = "name"
)

func outputs() []string { return []string{asTable, asWide, asJSON, asYAML, asName} }

// format is the wanted output: the flag, or what config.json says, or a table.
func (c *call) format() (string, error) {
	format := c.String("output")
	if format == "" {
		if conf, err := c.conf(); err == nil {
			format = conf.Output
		}
	}
	if format == "" {
		return asTable, nil
	}
	if slices.Contains(outputs(), format) {
		return format, nil
	}
	return "", usagef("use one of "+strings.Join(outputs(), ", "), "-o %q is not an output format", format)
}

// printList writes items as -o says.
func printList[V any](c *call, items []V, t table[V]) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	switch format {
	case asName:
		for i := range items {
			if err := printName(c, &items[i], t); err != nil {
				return err
			}
		}
		return nil
	case asJSON, asYAML:
		if items == nil {
			items = []V{}
		}
		return printData(c, format, resource.List[V]{Items: items})
	}
	if len(items) == 0 {
		c.note("%s", t.empty)
		return nil
	}
	var rows [][]string
	if !c.Bool("no-headers") {
		rows = append(rows, headings(t, format == asWide))
	}
	for i := range items {
		rows = append(rows, cells(&items[i], t, format == asWide))
	}
	return writeRows(c.out, rows, terminalWidth(c.out), c.styleFor(c.out))
}

// printOne writes one item as -o says: as a table, one line per column, wide
// ones included, and then what more has to say.
func printOne[V any](c *call, item *V, t table[V], more func(io.Writer)) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	switch format {
	case asName:
		return printName(c, item, t)
	case asJSON, asYAML:
		return printData(c, format, item)
	}
	heads, values := headings(t, true), cells(item, t, true)
	rows := make([][]string, len(heads))
	for i := range heads {
		rows[i] = []string{heads[i], values[i]}
	}
	if err := writeRows(c.out, rows, terminalWidth(c.out), c.styleFor(c.out)); err != nil {
		return err
	}
	if more != nil {
		more(c.out)
	}
	return nil
}

// printResult is for what a writing verb has made: a sentence for people, the
// item for -o json and its like.
func printResult[V any](c *call, item *V, t table[V], sentence string, args ...any) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	if format == asTable || format == asWide {
		_, err := fmt.Fprintf(c.out, sentence+"\n", args...)
		return err
	}
	return printOne(c, item, t, nil)
}

func printName[V any](c *call, item *V, t table[V]) error {
	_, err := fmt.Fprintln(c.out, printable(t.nameOf(item)))
	return err
}

// printData writes v as JSON or YAML, with the names the API uses.
func printData(c *call, format string, v any) error {
	var data []byte
	var err error
	if format == asYAML {
		data, err = yaml.Marshal(v)
	} else {
		data, err = json.MarshalIndent(v, "", "  ")
		data = append(data, '\n')
	}
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	_, err = c.out.Write(data)
	return err
}

func headings[V any](t table[V], wide bool) []string {
	var heads []string
	for _, col := range t.columns {
		if wide || !col.wide {
			heads = append(heads, col.head)
		}
	}
	return heads
}

func cells[V any](item *V, t table[V], wide bool) []string {
	var row []string
	for _, col := range t.columns {
		if wide || !col.wide {
			text := printable(col.cell(item))
			if text == "" {
				text = "-"
			}
			row = append(row, text)
		}
	}
	return row
}

// gap is the room between two columns.
const gap = 3

// narrowest is how far a column is cut to make room for others.
const narrowest = 8

// writeRows aligns rows and cuts the widest columns until a line has width
// characters; 0 is no limit.
func writeRows(w io.Writer, rows [][]string, width int, s style) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if width > 0 {
		shrink(widths, width)
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			cell = clip(cell, widths[i])
			if i < len(row)-1 {
				cell += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			}
			b.WriteString(s.phase(cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", gap))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// shrink takes from the widest column, one by one, until all fit into width or
// none can get narrower.
func shrink(widths []int, width int) {
	total := gap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= narrowest {
			return
		}
		widths[widest]--
	}
}

// printConditions lists what is so about a resource and what is not yet.
func printConditions(w io.Writer, cs resource.Conditions, now time.Time) {
	if len(cs) == 0 {
		return
	}
	fmt.Fprintln(w, "\nCONDITIONS")
	for _, c := range cs {
		fmt.Fprintf(w, "  %s (%s)\n", stepLine(c, ".."), age(c.Since, now))
	}
}

// age is how long ago t was: "42s", "17m", "5h", "12d".
func age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

func (p *program) age(t time.Time) string { return age(t, p.now()) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
