package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Render writes a report: table, json or yaml.
func Render(w io.Writer, r Report, format string, now time.Time) error {
	if r.Orphans == nil {
		r.Orphans = []Orphan{}
	}
	if format != "table" {
		return encode(w, r, format)
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
		name := o.Name
		if o.Namespace != "" {
			name = o.Namespace + " " + name
		}
		why := o.Why
		switch {
		case o.Error != "":
			why += "; could not be removed: " + o.Error
		case o.Removed:
			why += "; removed"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", o.Kind, printable(name), dash(string(o.Owner)), size(o.Bytes), dash(o.Age(now)), printable(why))
	}
	return t.Flush()
}

// Told is one line about a removal that happened, or could not.
func (o Orphan) Told() string {
	name := strings.TrimSpace(o.Namespace + " " + o.Name)
	if o.Error != "" {
		return printable(fmt.Sprintf("not removed: %s %s: %s", o.Kind, name, o.Error))
	}
	return printable(fmt.Sprintf("removed: %s %s", o.Kind, name))
}

// RenderInventory writes all that was found.
func RenderInventory(w io.Writer, inv inventory.Inventory, format string) error {
	if format != "table" {
		return encode(w, inv, format)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tNAME\tOF\tSIZE\tAGE\tDETAIL")
	for _, i := range inv.Items {
		name := i.Name
		if i.Namespace != "" {
			name = i.Namespace + " " + name
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Kind, printable(name), dash(string(i.Owner)), size(i.Bytes), dash(Orphan{Item: i}.Age(inv.Taken)), printable(i.Detail))
	}
	return t.Flush()
}

func encode(w io.Writer, v any, format string) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil && format == "yaml" {
		data, err = yaml.JSONToYAML(data)
	} else if format != "json" && format != "yaml" {
		return fmt.Errorf("output %q: unknown: use table, json or yaml", format)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, strings.TrimRight(string(data), "\n"))
	return err
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

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
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
