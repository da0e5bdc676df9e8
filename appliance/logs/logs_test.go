package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"log"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

func TestFormats(t *testing.T) {
	var b bytes.Buffer
	New(&b, slog.LevelInfo, Text).Info("slow", "took", 1500*time.Millisecond)
	if want := "level=INFO msg=slow took=1.5s\n"; !strings.HasSuffix(b.String(), want) {
		t.Errorf("got %q, want it to end in %q", b.String(), want)
	}
	b.Reset()
	l := New(&b, slog.LevelWarn, JSON)
	l.Info("quiet")
	l.Warn("loud", "took", time.Minute)
	var r map[string]any
	if err := json.Unmarshal(b.Bytes(), &r); err != nil || r["msg"] != "loud" || r["took"] != "1m0s" {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestParseLevel(t *testing.T) {
	for s, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got, err := ParseLevel(s); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", s, got, err, want)
		}
	}
	if _, err := ParseLevel("loud"); err == nil || !strings.Contains(err.Error(), "debug, info, warn, error") {
		t.Errorf("got %v, want the names there are", err)
	}
}

// Each of the libraries' loggers arrives with its level, message and fields.
func TestRedirect(t *testing.T) {
	var b bytes.Buffer
	Redirect(New(&b, slog.LevelInfo, JSON))
	t.Cleanup(func() {
		klog.ClearLogger()
		log.SetOutput(&b)
	})
	zl := zap.L().Named("etcd").With(zap.Int("member", 1))
	for _, c := range []struct {
		what string
		say  func()
		want map[string]any
	}{
		{"klog", func() { klog.InfoS("hello", "pod", "a") }, map[string]any{"level": "INFO", "msg": "hello", "pod": "a", "component": "klog"}},
		{"klog error", func() { klog.Errorf("broken %d", 1) }, map[string]any{"level": "ERROR", "msg": "broken 1", "component": "klog"}},
		{"zap", func() { zl.Warn("slow", zap.Duration("took", time.Second), zap.Error(errors.New("why"))) },
			map[string]any{"level": "WARN", "msg": "slow", "logger": "etcd", "member": 1.0, "took": "1s", "error": "why", "component": "zap"}},
		{"logrus", func() { logrus.WithField("image", "x").Error("gone") }, map[string]any{"level": "ERROR", "msg": "gone", "image": "x", "component": "logrus"}},
		{"log", func() { log.Print("old") }, map[string]any{"level": "WARN", "msg": "old", "component": "log"}},
	} {
		b.Reset()
		c.say()
		got := map[string]any{}
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Errorf("%s: %q: %v", c.what, b.String(), err)
			continue
		}
		for k, v := range c.want {
			if got[k] != v {
				t.Errorf("%s: %s: got %v, want %v", c.what, k, got[k], v)
			}
		}
	}
	b.Reset()
	zap.L().Debug("quiet")
	logrus.Debug("quiet")
	klog.V(4).Info("quiet")
	if b.Len() > 0 {
		t.Errorf("got %q, want nothing below the level", b.String())
	}
}

func TestFatalEndsNoProcess(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, slog.LevelInfo, Text)
	Redirect(l)
	t.Cleanup(klog.ClearLogger)
	for what, fatal := range map[string]func(){
		"zap":    func() { Zap(l).Fatal("dies of zap") },
		"logrus": func() { logrus.Fatal("dies of logrus") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			fatal()
		}()
		if !strings.Contains(b.String(), "dies of "+what) {
			t.Errorf("%s: its reason was not logged: %q", what, b.String())
		}
	}
}
