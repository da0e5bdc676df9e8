package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests.
const patience = 15 * time.Second

// asInit makes the test binary be init: `MULTIPAAS_TEST_INIT=1 TESTBINARY --config F`.
const asInit = "MULTIPAAS_TEST_INIT"

func TestMain(m *testing.M) {
	if os.Getenv(asInit) != "" {
		os.Unsetenv(asInit)
		os.Exit(run(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

// machine is a running init.
type machine struct {
	t      *testing.T
	dir    string
	state  string
	cmd    *exec.Cmd
	stderr strings.Builder
	ended  chan error
}

// start runs init with services as a process of its own; wrap goes before its
// command line.
func start(t *testing.T, cfg Config, wrap ...string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), ended: make(chan error, 1)}
	m.state = filepath.Join(m.dir, "state.json")
	text := map[string]any{"services": cfg.Services, "state_file": m.state, "log_dir": m.dir, "stop_timeout": "10s"}
	if cfg.LogBytes > 0 {
		text["log_bytes"] = cfg.LogBytes
	}
	if cfg.StopTimeout > 0 {
		text["stop_timeout"] = time.Duration(cfg.StopTimeout).String()
	}
	data, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.dir, "init.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrap, self, "--config", file)
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Env = append(os.Environ(), asInit+"=1")
	m.cmd.Stderr = &m.stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		if t.Failed() {
			for _, s := range m.read().Services {
				if s.PID > 0 && len(wrap) == 0 {
					syscall.Kill(-s.PID, syscall.SIGKILL)
				}
			}
			t.Logf("init said: %s", m.stderr.String())
		}
	})
	return m
}

// MarshalJSON writes what UnmarshalJSON reads.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

func (m *machine) read() State {
	var data []byte
	var err error
	for range 50 { // it may have been in the midst of being written
		var state State
		if data, err = os.ReadFile(m.state); err != nil || len(data) == 0 {
			return state
		}
		if err = json.Unmarshal(data, &state); err == nil {
			if len(data) != stateBytes {
				m.t.Errorf("the state file has %d bytes, want %d", len(data), stateBytes)
			}
			return state
		}
		time.Sleep(time.Millisecond)
	}
	m.t.Errorf("state file is not whole: %v\n%s", err, data)
	return State{}
}

func (m *machine) service(name string) ServiceState {
	for _, s := range m.read().Services {
		if s.Name == name {
			return s
		}
	}
	return ServiceState{}
}

func (m *machine) await(what string, done func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("%s: not within %s; state %+v; init said %s", what, patience, m.read(), m.stderr.String())
		}
	}
}

func (m *machine) awaitState(name, state string) {
	m.t.Helper()
	m.await(name+" is "+state, func() bool { return m.service(name).State == state })
}

// stop sends SIGTERM to pid and waits for init to end well.
func (m *machine) stop(pid int) {
	m.t.Helper()
	syscall.Kill(pid, syscall.SIGTERM)
	select {
	case err := <-m.ended:
		if err != nil {
			m.t.Errorf("init ended with %v: %s", err, m.stderr.String())
		}
	case <-time.After(patience):
		m.t.Fatalf("init does not end; state %+v", m.read())
	}
}

func sh(name, script string, more ...func(*ServiceConfig)) ServiceConfig {
	s := ServiceConfig{Name: name, Argv: []string{"/bin/sh", "-c", script}, StopTimeout: Duration(5 * time.Second)}
	for _, change := range more {
		change(&s)
	}
	return s
}

func after(names ...string) func(*ServiceConfig) { return func(s *ServiceConfig) { s.After = names } }
func ready(text string) func(*ServiceConfig)     { return func(s *ServiceConfig) { s.Ready = text } }

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// TestOrder starts three services, each of which notes when it starts and
// stops, and looks at the order of the notes.
func TestOrder(t *testing.T) {
	dir := t.TempDir()
	notes := filepath.Join(dir, "notes")
	note := func(name, then string) string {
		return fmt.Sprintf(`echo start %[1]s >>%[2]s; trap 'echo stop %[1]s >>%[2]s; exit 0' TERM; %[3]s
			while :; do sleep 0.01; done`, name, notes, then)
	}
	m := start(t, Config{Services: []ServiceConfig{
		sh("first", note("first", "until [ -e "+dir+"/go ]; do sleep 0.01; done; touch "+dir+"/up"), ready("file:"+dir+"/up")),
		// Ready by a file too: a shell that was started has not said so yet.
		sh("second", note("second", "touch "+dir+"/up2"), ready("file:"+dir+"/up2"), after("first")),
		sh("third", note("third", "touch "+dir+"/up3"), ready("file:"+dir+"/up3"), after("first", "second")),
	}})
	m.await("second waits for first", func() bool {
		s := m.service("second")
		return s.State == stateWaiting && len(s.WaitingFor) == 1 && s.WaitingFor[0] == "first"
	})
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second", "third"} {
		m.awaitState(name, stateReady)
	}
	m.stop(m.cmd.Process.Pid)
	got, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	want := "start first\nstart second\nstart third\nstop third\nstop second\nstop first\n"
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	state := m.read()
	if !state.Stopping {
		t.Error("the state does not say that it stops")
	}
	for _, s := range state.Services {
		if s.State != stateStopped || s.PID != 0 {
			t.Errorf("%s: %s, pid %d after the stop", s.Name, s.State, s.PID)
		}
	}
}

// TestRestart kills a service and lets another one fail by itself.
func TestRestart(t *testing.T) {
	m := start(t, Config{Services: []ServiceConfig{
		sh("victim", "exec sleep 1000"),
		sh("fails", "echo attempt; exit 3"),
		{Name: "missing", Argv: []string{"/none/such"}},
	}})
	m.awaitState("victim", stateReady)
	pid := m.service("victim").PID
	syscall.Kill(pid, syscall.SIGKILL)
	m.await("victim runs again", func() bool {
		s := m.service("victim")
		return s.State == stateReady && s.PID != pid && s.Restarts == 1 && s.LastExit == "signal: killed"
	})
	m.await("fails was tried again", func() bool {
		s := m.service("fails")
		return s.Restarts >= 2 && s.LastExit == "exit status 3"
	})
	m.await("missing says why", func() bool {
		s := m.service("missing")
		return s.State == stateBackoff && strings.Contains(s.LastExit, "/none/such")
	})
	m.await("the log has the output of three", func() bool {
		log, _ := os.ReadFile(filepath.Join(m.dir, "fails.log"))
		return strings.Count(string(log), "attempt\n") >= 3
	})
	m.stop(m.cmd.Process.Pid)
}

// TestStopIsBounded has services that don't want to end, and children of theirs.
func TestStopIsBounded(t *testing.T) {
	dir := t.TempDir()
	m := start(t, Config{StopTimeout: Duration(time.Second), Services: []ServiceConfig{
		sh("stubborn", "trap '' TERM; (trap '' TERM; while :; do sleep 0.05; done) & echo $! >"+dir+"/child; touch "+dir+"/up; while :; do sleep 0.05; done",
			ready(dir+"/up"), func(s *ServiceConfig) { s.StopTimeout = Duration(time.Minute) }),
	}})
	m.awaitState("stubborn", stateReady)
	pid := m.service("stubborn").PID
	text, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m.stop(m.cmd.Process.Pid)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the stop took %s, the bound is 1 s", took)
	}
	m.await("all are gone", func() bool { return !alive(pid) && !alive(child) })
}

// TestOrphans leaves processes behind: init must collect them.
func TestOrphans(t *testing.T) {
	dir := t.TempDir()
	m := start(t, Config{Services: []ServiceConfig{
		sh("parent", "for i in 1 2 3 4 5; do (sh -c 'echo $$ >>"+dir+"/pids; exec sleep 0.1' &) ; done; exec sleep 1000"),
	}})
	var pids []string
	m.await("orphans were there", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "pids"))
		pids = strings.Fields(string(data))
		return len(pids) == 5
	})
	m.await("orphans are collected", func() bool {
		for _, text := range pids {
			// A zombie still takes signals.
			if pid, _ := strconv.Atoi(text); alive(pid) {
				return false
			}
		}
		return true
	})
	m.stop(m.cmd.Process.Pid)
}

func TestLogIsBounded(t *testing.T) {
	const bound = 8192
	m := start(t, Config{LogBytes: bound, Services: []ServiceConfig{
		sh("loud", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000"),
	}})
	file := filepath.Join(m.dir, "loud.log")
	m.await("the last line is there", func() bool {
		data, _ := os.ReadFile(file)
		return strings.HasSuffix(string(data), "line 4999\n")
	})
	m.stop(m.cmd.Process.Pid)
	for _, name := range []string{file, file + ".1"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > bound {
			t.Errorf("%s has %d bytes, the bound is %d", name, info.Size(), bound)
		}
	}
	if more, _ := filepath.Glob(file + ".*"); len(more) != 1 {
		t.Errorf("log files beside the current one: %v, want one", more)
	}
}

// TestFirst runs init as process 1 of a namespace: it must end what no
// service owns, and the namespace with it.
func TestFirst(t *testing.T) {
	m := start(t, Config{Services: []ServiceConfig{
		sh("leaves", "(setsid sh -c \"trap 'echo asked >&2; exit' TERM; echo waits >&2; while :; do sleep 0.01; done\" &); exec sleep 1000"),
	}}, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
		// Nothing of this machine's control groups is touched.
		`mount -t tmpfs none /sys/fs/cgroup && exec "$@"`, "sh")
	m.awaitState("leaves", stateReady)
	if pid := m.read().PID; pid != 1 {
		t.Fatalf("init is process %d, want 1", pid)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatalf("child of unshare: %q", children)
	}
	log := func() string {
		data, _ := os.ReadFile(filepath.Join(m.dir, "leaves.log"))
		return string(data)
	}
	m.await("it can be asked", func() bool { return strings.Contains(log(), "waits") })
	m.stop(pid)
	if log := log(); !strings.Contains(log, "asked") {
		t.Errorf("what no service owned was not asked to end: %q", log)
	}
}

func TestProbes(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	healthy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok")
	})
	plain, secure := httptest.NewServer(healthy), httptest.NewTLSServer(healthy)
	defer plain.Close()
	defer secure.Close()
	address := plain.Listener.Addr().String()
	stale := filepath.Join(dir, "stale")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	for _, test := range []struct {
		text string
		good bool
	}{
		{"", true}, {"unix:" + socket, true}, {socket, true}, {"file:" + dir, true}, {dir, true}, {"tcp:" + address, true},
		{address, true}, {plain.URL + "/healthz", true}, {secure.URL + "/healthz", true},
		{plain.URL + "/other", false}, {"unix:" + dir, false}, {dir + "/none", false}, {"tcp:127.0.0.1:1", false},
		// Left by a process that was killed: there, and nobody listens.
		{stale, false},
	} {
		p, err := parseProbe(test.text)
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		if err := p.ask(t.Context()); (err == nil) != test.good {
			t.Errorf("%q: %v, want good %v", test.text, err, test.good)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	_, err := parseConfig([]byte(`{"services":[
		{"name":"Bad Name","argv":["relative"]},
		{"name":"a","argv":["/bin/true"],"after":["later"],"ready":"unix:relative"},
		{"name":"a","argv":[],"ready":"nonsense","stop_timeout":"-1s"},
		{"name":"later","argv":["/bin/true"]}],"log_bytes":1}`))
	for _, want := range []string{"log_bytes", "services[0].name", "services[0].argv", "services[1].after", "services[1].ready",
		"services[2].name", "services[2].argv", "services[2].ready", "services[2].stop_timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
	for text, want := range map[string]string{
		`{`: "EOF", `{"services":[]}`: "none", `{"service":[]}`: "service", `{"services":[]} x`: "more than one", `{"stop_timeout":5}`: "10s",
	} {
		if _, err := parseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if code := run([]string{"--config", filepath.Join(t.TempDir(), "none")}, io.Discard); code != 2 {
		t.Errorf("without a configuration: exit %d, want 2", code)
	}
}

func TestShared(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	for want, lines := range map[bool]string{
		true:  "1 0 0:1 / / rw shared:5 - ext4 /dev/vda rw\n",
		false: "1 0 0:1 / / rw shared:5 - ext4 /dev/vda rw\n2 1 0:2 / / rw master:3 - overlay shared:1 rw\n3 1 0:3 / /mnt rw shared:4 - tmpfs x rw\n",
	} {
		if err := os.WriteFile(file, []byte(lines), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := isShared(file, "/"); err != nil || got != want {
			t.Errorf("%v, %v, want %v for\n%s", got, err, want, lines)
		}
	}
}

// TestDelegate needs a version 2 hierarchy, which hybrid machines have too.
func TestDelegate(t *testing.T) {
	root := ""
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err == nil {
			root = filepath.Join(mount, fmt.Sprintf("multipaas-init-test-%d", os.Getpid()))
		}
	}
	if root == "" {
		t.Skip("no cgroup v2 on this machine")
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sleep.Process.Kill()
		sleep.Wait()
		os.Remove(filepath.Join(root, "init"))
		if err := os.Remove(root); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a machine that restarts finds its groups
		if err := delegate(root, sleep.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if procs, _ := os.ReadFile(filepath.Join(root, "cgroup.procs")); len(procs) > 0 {
		t.Errorf("processes stay in the root of the groups: %s", procs)
	}
	have, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	given, _ := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if len(strings.Fields(string(have))) > 0 && len(strings.Fields(string(given))) == 0 {
		t.Errorf("of the controllers %q none is passed on", have)
	}
}
