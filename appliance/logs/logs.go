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
	if !slices.Contains(levels, s) {
		return 0, fmt.Errorf("%q: unknown log level; have %s", s, strings.Join(levels, ", "))
	}
	var level slog.Level
	err := level.UnmarshalText([]byte(s))
	return level, err
}

var levels = []string{"debug", "info", "warn", "error"}

// replace writes durations as people do, also in JSON, where slog would write
// nanoseconds without a unit.
func replace(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}

// Settings are what an operator writes about the log.
type Settings struct {
	Level  string `yaml:"level" doc:"the least that is logged: debug, info, warn or error"`
	Format string `yaml:"format" doc:"text for people or json for programs"`
}

// DefaultSettings are the settings of an operator who says nothing.
func DefaultSettings() Settings { return Settings{Level: "info", Format: Text} }

// Check says what is wrong with s.
func (s Settings) Check(fail func(field, value, wrong, remedy string)) {
	if _, err := ParseLevel(s.Level); err != nil {
		fail("level", s.Level, "unknown", "use "+strings.Join(levels, ", "))
	}
	if s.Format != Text && s.Format != JSON {
		fail("format", s.Format, "unknown", "use "+Text+", "+JSON)
	}
}
