package logs

import (
	"context"
	"io"
	"log"
	"log/slog"
	"maps"
	"slices"

	"github.com/sirupsen/logrus"
	logrusslog "github.com/sirupsen/logrus/hooks/slog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// Redirect sends what klog, logrus, zap's global logger and the standard
// library's log say to l. It changes globals of the process: call it once, in
// main, before any part starts.
func Redirect(l *slog.Logger) {
	klog.SetSlogLogger(l.With("component", "klog"))

	logrus.SetOutput(io.Discard)
	level := logrus.ErrorLevel // as low as l has it: that spares the making of entries that l would drop
	for level < logrus.DebugLevel && l.Enabled(context.Background(), logrusslog.Level(level+1).Level()) {
		level++
	}
	logrus.SetLevel(level)
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(logrusslog.NewHook(l.With("component", "logrus"), nil))
	// It would end the process on Fatal. Nobody but main does: a library's Fatal is
	// logged, then panics, so defers run and the lifecycle graph names the part.
	logrus.StandardLogger().ExitFunc = func(int) { panic("a library called Fatal; its reason was logged before this") }

	zap.ReplaceGlobals(Zap(l.With("component", "zap")))

	// Libraries that use the standard log have no levels. It is what they
	// could not report otherwise, so a warning.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(l.With("component", "log").Handler(), slog.LevelWarn).Writer())
}

// Zap returns a zap logger that writes to l.
func Zap(l *slog.Logger) *zap.Logger {
	// As with logrus: no library ends the process.
	return zap.New(&zapCore{h: l.Handler()}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

type zapCore struct {
	h     slog.Handler
	attrs []slog.Attr
}

// zapLevel is l as slog has it, whose levels are four apart.
func zapLevel(l zapcore.Level) slog.Level {
	return 4 * slog.Level(min(max(l, zapcore.DebugLevel), zapcore.ErrorLevel))
}

func (c *zapCore) Enabled(level zapcore.Level) bool {
	return c.h.Enabled(context.Background(), zapLevel(level))
}

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{h: c.h, attrs: append(slices.Clip(c.attrs), zapAttrs(fields)...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, zapLevel(e.Level), e.Message, 0)
	if e.LoggerName != "" {
		r.AddAttrs(slog.String("logger", e.LoggerName))
	}
	r.AddAttrs(c.attrs...)
	r.AddAttrs(zapAttrs(fields)...)
	return c.h.Handle(context.Background(), r)
}

func (c *zapCore) Sync() error { return nil }

// zapAttrs encodes each field by zap's own map encoder: fields know how to write
// themselves, and nothing else about them is public.
func zapAttrs(fields []zapcore.Field) []slog.Attr {
	attrs := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		if f.Type == zapcore.SkipType {
			continue
		}
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for _, key := range slices.Sorted(maps.Keys(enc.Fields)) { // an error field may write two
			attrs = append(attrs, slog.Any(key, enc.Fields[key]))
		}
	}
	return attrs
}
