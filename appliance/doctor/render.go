package doctor

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/status"
)

// Render writes a report: table, json or yaml.
func Render(w io.Writer, r Report, format string, now time.Time) error {
	if r.Orphans == nil {
		r.Orphans = []Orphan{}
	}
	if format != "table" {
		return status.Encode(w, r, format)
	}
	var kinds []string
	for kind, n := range r.Looked {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, plural(kind, n)))
	}
	slices.Sort(kinds)
	fmt.Fprintf(w, "Compared with what should be here, according to %s.\nFound: %s.\n", r.Source, strings.Join(kinds, ", "))
	for _, n := range r.NotJudged {
		fmt.Fprintf(w, "Not checked: %s.\n", n)
	}
	if len(r.Orphans) == 0 {
		_, err := fmt.Fprintln(w, "No orphans.")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tNAME\tOF\tSIZE\tAGE\tWHY")
	for _, o := range r.Orphans {
		why := o.Why
		switch {
		case o.Error != "":
			why += "; could not be removed: " + o.Error
		case o.Removed:
			why += "; removed"
		}
		row(t, o, now, why)
	}
	return t.Flush()
}

func row(w io.Writer, o Orphan, now time.Time, last string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n",
		o.Kind, printable(o.fullName()), cmp.Or(string(o.Owner), "-"), size(o.Bytes), cmp.Or(o.Age(now), "-"), printable(last))
}

func (o Orphan) fullName() string { return strings.TrimSpace(o.Namespace + " " + o.Name) }

// Told is one line about a removal that happened, or could not.
func (o Orphan) Told() string {
	if o.Error != "" {
		return printable(fmt.Sprintf("not removed: %s %s: %s", o.Kind, o.fullName(), o.Error))
	}
	return printable(fmt.Sprintf("removed: %s %s", o.Kind, o.fullName()))
}

// RenderInventory writes all that was found.
func RenderInventory(w io.Writer, inv inventory.Inventory, format string) error {
	if format != "table" {
		return status.Encode(w, inv, format)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tNAME\tOF\tSIZE\tAGE\tDETAIL")
	for _, i := range inv.Items {
		row(t, Orphan{Item: i}, inv.Taken, i.Detail)
	}
	return t.Flush()
}

func plural(kind string, n int64) string {
	if n == 1 || strings.HasSuffix(kind, "s") && !strings.HasSuffix(kind, "ss") {
		return kind
	}
	if strings.HasSuffix(kind, "ss") {
		return kind + "es"
	}
	return kind + "s"
}

func size(bytes int64) string {
	switch {
	case bytes == 0:
		return "-"
	case bytes < 1<<20:
		return fmt.Sprintf("%d KiB", (bytes+1023)>>10)
	case bytes < 10<<30:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d GiB", bytes>>30)
}

// printable takes out what a terminal would act on: names of processes are the
// tenants' to choose.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
