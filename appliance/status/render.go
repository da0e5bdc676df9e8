package status

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"
)

// Render writes the status as text, "json" or "yaml".
func Render(w io.Writer, s *Status, format string, now time.Time) error {
	switch format {
	case "", "text", "table":
		return renderText(w, s, now)
	}
	return Encode(w, s, format)
}

// Encode writes v as "json" or "yaml".
func Encode(w io.Writer, v any, format string) error {
	data, err := json.MarshalIndent(v, "", "  ")
	switch format {
	case "json":
		data = append(data, '\n')
	case "yaml":
		data, err = yaml.Marshal(v)
	default:
		return fmt.Errorf("output format %q: unknown; have text, json, yaml", format)
	}
	if err == nil {
		_, err = w.Write(data)
	}
	return err
}

func renderText(w io.Writer, s *Status, now time.Time) error {
	var b strings.Builder
	state := "ready"
	if missing := s.Ready(); len(missing) > 0 {
		state = fmt.Sprintf("%d of %d parts not ready", len(missing), len(s.Parts))
	}
	fmt.Fprintf(&b, "%s %s: %s\n", s.Role, s.Name, state)
	if s.Address != "" {
		fmt.Fprintf(&b, "address %s, ", s.Address)
	}
	fmt.Fprintf(&b, "version %s, process %d, up %s\n\n", s.Version, s.PID, age(now, s.Started))

	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PART\tSTATE\tSINCE\tNOTE")
	for _, p := range s.Parts {
		note := p.Error
		if note == "" && len(p.WaitingFor) > 0 {
			note = "waits for " + strings.Join(p.WaitingFor, ", ")
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", p.Name, p.State, age(now, p.Since), firstLine(note))
	}
	tw.Flush()

	if len(s.Items) > 0 {
		fmt.Fprintln(&b)
		fmt.Fprintln(tw, "KIND\tNAME\tSTATE\tDETAIL")
		for _, it := range s.Items {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", it.Kind, it.Name, it.State, firstLine(it.Detail))
		}
		tw.Flush()
	}

	if len(s.Problems) == 0 {
		fmt.Fprintln(&b, "\nno problems")
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "\nproblem %s (%s, for %s): %s\n", p.Code, p.Severity, age(now, p.Since), p.Title)
		for _, line := range []string{p.Object, p.Detail, p.Text, p.Remedy} {
			if line != "" {
				fmt.Fprintf(&b, "  %s\n", line)
			}
		}
	}
	_, err := io.WriteString(w, trimLines(b.String()))
	return err
}

func age(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case then.IsZero():
		return "-"
	case d < 0:
		return "0s"
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// trimLines takes away the blanks that columns leave at the ends of lines.
func trimLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimRight(line, " \n"))
		b.WriteByte('\n')
	}
	return b.String()
}
