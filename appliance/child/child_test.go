package child

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/testing/wait"
)

// start runs p until the test ends, or stop is called, which returns what Run did.
func start(t *testing.T, p *Process) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	return startIn(t, ctx, cancel, p)
}

// startIn is start in a context that cancel ends.
func startIn(t *testing.T, ctx context.Context, cancel func(), p *Process) (stop func() error) {
	t.Helper()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- p.Run(ctx, sync.OnceFunc(func() { close(ready) }), nil) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { stop() })
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("returned before it was ready: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready after 10 s")
	}
	return stop
}

func sh(script string) Config {
	return Config{Name: "test", Path: "/bin/sh", Args: []string{"-c", script}, StopTimeout: 5 * time.Second}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z"))
}

func readPID(t *testing.T, file string) (pid int) {
	t.Helper()
	wait.True(t, wait.Patience, file+" holds a process id", func() bool {
		data, _ := os.ReadFile(file)
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		pid = n
		return err == nil
	})
	return pid
}

func TestStopsWhenAsked(t *testing.T) {
	dir := t.TempDir()
	cfg := sh(`trap 'echo asked > asked; exit 0' TERM; sleep 1000 & echo $! > grandchild; wait`)
	cfg.Dir = dir
	p := New(cfg)
	stop := start(t, p)
	grandchild := readPID(t, filepath.Join(dir, "grandchild"))
	pid := p.PID()
	if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
		t.Errorf("process group: got %d, %v, want its own, %d", pgid, err, pid)
	}
	if err := stop(); err != nil {
		t.Errorf("got %v, want none", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "asked")); err != nil {
		t.Errorf("was not asked by SIGTERM: %v", err)
	}
	wait.True(t, wait.Patience, "what the child started is gone", func() bool { return !alive(grandchild) })
	if p.PID() != 0 {
		t.Errorf("PID is %d after the end", p.PID())
	}
}

// TestUnneededIsNotAskedToStop has a child that would go on when it is asked, and for longer
// than the test may take.
func TestUnneededIsNotAskedToStop(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	cfg := sh(fmt.Sprintf(`trap 'touch %s' TERM; while :; do sleep 0.01; done`, asked))
	cfg.StopTimeout = time.Hour
	p := New(cfg)
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := startIn(t, ctx, func() { cancel(ErrUnneeded) }, p)
	pid := p.PID()
	if err := stop(); err != nil {
		t.Errorf("got %v, want none", err)
	}
	if alive(pid) {
		t.Error("is still alive")
	}
	if _, err := os.Stat(asked); err == nil {
		t.Error("was asked to stop")
	}
}

func TestKilledIfItDoesNotStop(t *testing.T) {
	cfg := sh(`trap '' TERM; while :; do sleep 1; done`)
	cfg.StopTimeout = 200 * time.Millisecond
	p := New(cfg)
	stop := start(t, p)
	pid := p.PID()
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("got %v, want none", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if alive(pid) {
		t.Error("is still alive")
	}
}

func TestRespawns(t *testing.T) {
	started := make(chan int, 10)
	cfg := sh(`sleep 1000`)
	cfg.OnStart = func(pid int) { started <- pid }
	p := New(cfg)
	stop := start(t, p)
	first := <-started
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case second := <-started:
		if second == first {
			t.Error("the same process")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not started again")
	}
	if got := p.Restarts(); got != 1 {
		t.Errorf("got %d restarts, want 1", got)
	}
	if _, err := p.LastExit(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("last exit: got %v, want that it was killed", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestTellsOfEachLife hears ready and died in turns: who was told last that it
// serves must not go on believing so.
func TestTellsOfEachLife(t *testing.T) {
	heard := make(chan string, 10)
	p := New(sh(`sleep 1000`))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- p.Run(ctx, func() { heard <- "ready" }, func(err error) { heard <- "died: " + err.Error() })
	}()
	for i, want := range []string{"ready", "died: signal: killed", "ready", "died: signal: killed", "ready"} {
		select {
		case got := <-heard:
			if got != want {
				t.Fatalf("call %d: got %q, want %q", i, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("call %d: heard nothing, want %q", i, want)
		}
		if want == "ready" && i < 4 {
			if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(heard) > 0 {
		t.Errorf("heard %q after it was told to stop", <-heard)
	}
}

func TestWrongPathFails(t *testing.T) {
	p := New(Config{Name: "none", Path: "/nonexistent/program"})
	err := p.Run(t.Context(), func() { t.Error("ready") }, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that it is not there", err)
	}
}

func TestReadyIsAsked(t *testing.T) {
	asked := 0
	cfg := sh(`sleep 1000`)
	cfg.Ready = func(context.Context) error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	}
	start(t, New(cfg))
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestOutput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	var logged syncBuffer
	cfg := sh(`echo out; echo err >&2; printf 'no end'; trap 'exit 0' TERM; touch ` + file + `.done; while :; do sleep 0.1; done`)
	cfg.LogFile = file
	cfg.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	stop := start(t, New(cfg))
	wait.True(t, wait.Patience, "it has printed", func() bool { _, err := os.Stat(file + ".done"); return err == nil })
	if err := stop(); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"out\n", "err\n", "no end\n"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("file %q holds no %q", data, want)
		}
	}
	for _, want := range []string{"stream=stdout line=out", "stream=stderr line=err", `line="no end"`} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("log holds no %q:\n%s", want, &logged)
		}
	}
}

func TestOutputIsBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	o, err := newOutput(slog.New(slog.DiscardHandler), file)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	s := o.stream("stdout")
	w := bufio.NewWriterSize(s, 1<<16)
	for range 3 * maxLogFile / 1000 {
		w.WriteString(strings.Repeat("x", 999) + "\n")
	}
	w.WriteString(strings.Repeat("y", 10*maxLine))
	w.Flush()
	if len(s.part) > maxLine {
		t.Errorf("a line without an end takes %d bytes", len(s.part))
	}
	var total int64
	for _, name := range []string{file, file + ".1"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxLogFile {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
		total += info.Size()
	}
	if total < maxLogFile {
		t.Errorf("only %d bytes are kept", total)
	}
}

func TestNetns(t *testing.T) {
	name := fmt.Sprintf("mptest-child-%d", os.Getpid())
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	cfg := sh(`readlink /proc/self/ns/net > ns; exec sleep 1000`)
	cfg.Dir, cfg.Netns = t.TempDir(), ns.Path()
	stop := start(t, New(cfg))
	var inside string
	wait.True(t, wait.Patience, "it has said where it is", func() bool {
		data, _ := os.ReadFile(filepath.Join(cfg.Dir, "ns"))
		inside = strings.TrimSpace(string(data))
		return inside != ""
	})
	var want string
	if err := ns.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if inside != want {
		t.Errorf("runs in %s, want %s", inside, want)
	}
	if ours, _ := os.Readlink("/proc/self/ns/net"); ours == want {
		t.Errorf("we are in the namespace too")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestCgroupEndsWhatGotAway(t *testing.T) {
	name := fmt.Sprintf("mptest-child-%d", os.Getpid())
	t.Cleanup(func() {
		if err := cgroup.Kill(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	cfg := sh(`setsid sleep 1000 & echo $! > daemon; exec sleep 1000`)
	cfg.Dir, cfg.Cgroup = t.TempDir(), name
	p := New(cfg)
	stop := start(t, p)
	daemon := readPID(t, filepath.Join(cfg.Dir, "daemon"))
	pids, err := cgroup.Procs(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			t.Error("we are in the child's cgroup")
		}
	}
	if len(pids) < 2 {
		t.Errorf("got processes %v in the cgroup, want the child and its daemon", pids)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if alive(daemon) {
		t.Error("a process that left the group lives on")
	}
}

// TestDiesWithUs starts a process that starts a child, and kills it.
func TestDiesWithUs(t *testing.T) {
	if os.Getenv("CHILD_TEST_PARENT") != "" {
		p := New(sh(`exec sleep 1000`))
		p.cfg.OnStart = func(pid int) { fmt.Printf("child=%d\n", pid) }
		p.Run(t.Context(), func() {}, nil)
		return
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestDiesWithUs$", "-test.v")
	parent.Env = append(os.Environ(), "CHILD_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for sc := bufio.NewScanner(out); pid == 0 && sc.Scan(); {
		if s, ok := strings.CutPrefix(sc.Text(), "child="); ok {
			pid, _ = strconv.Atoi(s)
		}
	}
	if pid == 0 || !alive(pid) {
		t.Fatalf("no child: %d", pid)
	}
	parent.Process.Kill()
	parent.Wait()
	wait.True(t, wait.Patience, "the child has died too", func() bool { return !alive(pid) })
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestRunsAsAnother(t *testing.T) {
	const uid = 0x0fff_1001
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "status")
	if err := os.WriteFile(out, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(out, 0o666); err != nil {
		t.Fatal(err)
	}
	cfg := sh(`cat /proc/self/status > ` + out + `; exec sleep 1000`)
	cfg.UID = uid
	cfg.Cgroup, cfg.TasksMax = fmt.Sprintf("mptest-%d/another", os.Getpid()), 50
	t.Cleanup(func() {
		if err := cgroup.Kill(context.Background(), filepath.Dir(cfg.Cgroup)); err != nil {
			t.Error(err)
		}
	})
	start(t, New(cfg))
	var have map[string]string
	wait.True(t, wait.Patience, "it has told who it is", func() bool {
		data, _ := os.ReadFile(out)
		have = map[string]string{}
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(line, ":")
			have[name] = strings.Join(strings.Fields(value), " ")
		}
		return have["NoNewPrivs"] != "" && have["nonvoluntary_ctxt_switches"] != ""
	})
	for name, want := range map[string]string{
		"Uid": fmt.Sprint(uid, " ", uid, " ", uid, " ", uid), "Gid": fmt.Sprint(uid, " ", uid, " ", uid, " ", uid), "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		if have[name] != want {
			t.Errorf("%s is %q, want %q", name, have[name], want)
		}
	}
	var own string
	data, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for line := range strings.Lines(string(data)) {
			if v, ok := strings.CutPrefix(line, "NoNewPrivs:"); ok {
				own = strings.TrimSpace(v)
			}
		}
	}
	if err != nil || own != "0" {
		t.Errorf("we gave up privileges ourselves: %q, %v", own, err)
	}
}
