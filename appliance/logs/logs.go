// Package logs makes the appliance's logger, and owns the loggers of the
// libraries we carry: what they say arrives in ours.
//
// Parties: main makes the logger; the composition root calls Redirect once.
// Nobody else touches klog, logrus, zap's globals or the standard library's
// log: they are globals of the process and have one owner.
package logs

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// The formats of log records.
const (
	Text = "text" // key=value, for people
	JSON = "json" // one object a line, for programs
)

// New makes a logger that writes records of at least level to w. A format other
// than JSON is Text. level may be a *slog.LevelVar, to be changed later.
func New(w io.Writer, level slog.Leveler, format string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: replace}
	if format == JSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// ParseLevel reads "debug", "info", "warn" or "error".
func ParseLevel(s string) (slog.Level, error) {
	i := slices.Index(Levels(), s)
	if i < 0 {
		return 0, fmt.Errorf("%q: unknown log level; have %s", s, strings.Join(Levels(), ", "))
	}
	return []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i], nil
}

// Levels are the names ParseLevel takes.
func Levels() []string { return []string{"debug", "info", "warn", "error"} }

// Formats are the formats New takes.
func Formats() []string { return []string{Text, JSON} }

// replace writes durations as people do, also in JSON, where slog would write
// nanoseconds without a unit.
func replace(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}
