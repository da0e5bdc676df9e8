package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Config is what init is told by the host's agent, as JSON.
type Config struct {
	// Services in the order of their start, as far as After leaves it open.
	Services []ServiceConfig `json:"services"`
	// Plain says that nothing but these services ever runs here: mounts are not shared and
	// control groups not passed on, for which it needs no rights then.
	Plain bool `json:"plain,omitempty"`
	// StateFile is where the state is written, in place; /run/multipaas-init.json.
	StateFile string `json:"state_file,omitempty"`
	// LogDir holds one NAME.log per service; /var/log.
	LogDir string `json:"log_dir,omitempty"`
	// LogBytes bounds each log file; there are at most two per service. 8 MiB.
	LogBytes int64 `json:"log_bytes,omitempty"`
	// StopTimeout bounds the whole stop; 25 s.
	StopTimeout Duration `json:"stop_timeout,omitempty"`
}

// ServiceConfig is one service.
type ServiceConfig struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	// Env is added to init's own environment.
	Env []string `json:"env,omitempty"`
	// After names services that must have been ready before this one starts,
	// and that are stopped after it.
	After []string `json:"after,omitempty"`
	// Ready says how to see that it serves, asked until it is true:
	//
	//	unix:/path             a connection to the socket is taken
	//	tcp:HOST:PORT          a connection is taken
	//	file:/path             the file is there
	//	http://... https://... answers 200 (the certificate is not checked:
	//	                       the service is this machine's own)
	//	/path                  unix: if it is a socket, else file:
	//	HOST:PORT              tcp:
	//
	// Empty is ready as soon as it runs.
	Ready string `json:"ready,omitempty"`
	// StopTimeout is what it gets between SIGTERM and SIGKILL; 10 s.
	StopTimeout Duration `json:"stop_timeout,omitempty"`
}

// Duration is a time.Duration, in JSON "10s".
type Duration time.Duration

// UnmarshalJSON takes what time.ParseDuration takes.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("duration %s: give a text like \"10s\"", data)
	}
	value, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	*d = Duration(value)
	return nil
}

// LoadConfig reads, completes and checks the configuration.
func LoadConfig(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	cfg, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return cfg, nil
}

func parseConfig(data []byte) (Config, error) {
	var cfg Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return Config{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Config{}, errors.New("more than one JSON value")
	}
	cfg.complete()
	return cfg, cfg.validate()
}

func (c *Config) complete() {
	c.StateFile = cmp.Or(c.StateFile, "/run/multipaas-init.json")
	c.LogDir = cmp.Or(c.LogDir, "/var/log")
	c.LogBytes = cmp.Or(c.LogBytes, 8<<20)
	c.StopTimeout = cmp.Or(c.StopTimeout, Duration(25*time.Second))
	for i := range c.Services {
		s := &c.Services[i]
		s.StopTimeout = cmp.Or(s.StopTimeout, Duration(10*time.Second))
	}
}

// serviceName is what a file name and a log line can hold.
var serviceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validate reports every mistake at once. A service may only name services
// that stand before it, so there are no cycles.
func (c *Config) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Services) == 0 {
		fail("services: none; name at least one")
	}
	if c.LogBytes < 4096 {
		fail("log_bytes: %d: give 4096 or more", c.LogBytes)
	}
	if c.StopTimeout < 0 {
		fail("stop_timeout: negative")
	}
	var before []string
	for i, s := range c.Services {
		field := fmt.Sprintf("services[%d]", i)
		if !serviceName.MatchString(s.Name) {
			fail("%s.name: %q: give lower-case letters, digits and dashes", field, s.Name)
		}
		if slices.Contains(before, s.Name) {
			fail("%s.name: %q: used twice", field, s.Name)
		}
		if len(s.Argv) == 0 || !filepath.IsAbs(s.Argv[0]) {
			fail("%s.argv: give the command's absolute path first", field)
		}
		for _, name := range s.After {
			if !slices.Contains(before, name) {
				fail("%s.after: %q: no service before this one has that name", field, name)
			}
		}
		if _, err := parseProbe(s.Ready); err != nil {
			fail("%s.ready: %q: %w", field, s.Ready, err)
		}
		if s.StopTimeout < 0 {
			fail("%s.stop_timeout: negative", field)
		}
		before = append(before, s.Name)
	}
	return errors.Join(errs...)
}

// parseProbe turns the text of a Ready field into a probe.
func parseProbe(text string) (probe, error) {
	kind, target, _ := strings.Cut(text, ":")
	switch {
	case text == "":
		return probe{}, nil
	case strings.HasPrefix(text, "/"):
		return probe{kind: "path", target: text}, nil
	case kind == "http" || kind == "https":
		return probe{kind: "http", target: text}, nil
	case kind == "unix" || kind == "file":
		if !filepath.IsAbs(target) {
			return probe{}, errors.New("give an absolute path")
		}
		return probe{kind: kind, target: target}, nil
	case kind != "tcp":
		target = text
	}
	if _, _, err := net.SplitHostPort(target); err != nil {
		return probe{}, errors.New("give unix:/path, tcp:HOST:PORT, file:/path or an http(s) URL")
	}
	return probe{kind: "tcp", target: target}, nil
}
