package client

import (
	"bytes"
	"cmp"
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

func (n noun[V]) nameOf(item *V) string {
	if n.name != nil {
		return n.name(item)
	}
	return n.columns[0].cell(item)
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
	return checkOutput("-o", cmp.Or(format, asTable))
}

// checkOutput returns format if it is one; flag gave it.
func checkOutput(flag, format string) (string, error) {
	if !slices.Contains(outputs(), format) {
		return "", usagef("use one of "+strings.Join(outputs(), ", "), "%s %q is not an output format", flag, format)
	}
	return format, nil
}

// printList writes items as -o says.
func (n noun[V]) printList(c *call, items []V) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	switch format {
	case asName:
		for i := range items {
			if err := n.printName(c, &items[i]); err != nil {
				return err
			}
		}
		return nil
	case asJSON, asYAML:
		return printData(c, format, resource.List[V]{Items: items})
	}
	if len(items) == 0 {
		c.note("%s", n.empty)
		return nil
	}
	var rows [][]string
	if !c.Bool("no-headers") {
		rows = append(rows, n.row(format == asWide, func(col column[V]) string { return col.head }))
	}
	for i := range items {
		rows = append(rows, n.row(format == asWide, func(col column[V]) string { return col.text(&items[i]) }))
	}
	return c.writeRows(rows)
}

// printOne writes one item as -o says: as a table, one line per column, wide
// ones included, and then what else there is to say of it.
func (n noun[V]) printOne(c *call, item *V) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	switch format {
	case asName:
		return n.printName(c, item)
	case asJSON, asYAML:
		return printData(c, format, item)
	}
	rows := make([][]string, len(n.columns))
	for i, col := range n.columns {
		rows[i] = []string{col.head, col.text(item)}
	}
	if err := c.writeRows(rows); err != nil {
		return err
	}
	if n.more != nil {
		n.more(c.out, item)
	} else if o, ok := any(item).(resource.Stateful); ok {
		printConditions(c.out, "CONDITIONS", o.State().Conditions)
	}
	return nil
}

// printResult is for what a writing verb has made: a sentence for people, the
// item for -o json and its like.
func (n noun[V]) printResult(c *call, item *V, sentence string, args ...any) error {
	if format, _ := c.format(); format == asTable || format == asWide {
		_, err := fmt.Fprintf(c.out, sentence+"\n", args...)
		return err
	}
	return n.printOne(c, item)
}

func (n noun[V]) printName(c *call, item *V) error {
	_, err := fmt.Fprintln(c.out, printable(n.nameOf(item)))
	return err
}

// printData writes v as JSON or YAML, with the names the API uses.
func printData(c *call, format string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if format == asYAML {
		data, err = yaml.Marshal(v)
	}
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	_, err = fmt.Fprintf(c.out, "%s\n", bytes.TrimSuffix(data, []byte("\n")))
	return err
}

// row has a cell for each column that is shown.
func (n noun[V]) row(wide bool, cell func(column[V]) string) (row []string) {
	for _, col := range n.columns {
		if wide || !col.wide {
			row = append(row, cell(col))
		}
	}
	return row
}

// text is what stands in a cell.
func (col column[V]) text(item *V) string { return cmp.Or(printable(col.cell(item)), "-") }

func (c *call) writeRows(rows [][]string) error {
	return writeRows(c.out, rows, terminalWidth(c.out), c.styleFor(c.out))
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
			b.WriteString(s.phase(cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
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
		widest := slices.Max(widths)
		if widest <= narrowest {
			return
		}
		widths[slices.Index(widths, widest)]--
	}
}

// printConditions lists what is so and what is not yet, below a title.
func printConditions(w io.Writer, title string, cs resource.Conditions) {
	for i, c := range cs {
		if i == 0 {
			fmt.Fprintf(w, "\n%s\n", title)
		}
		fmt.Fprintf(w, "  %s (%s)\n", stepLine(c, ".."), since(c.Since))
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

func since(t time.Time) string { return age(t, time.Now()) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
