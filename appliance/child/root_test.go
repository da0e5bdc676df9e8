package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestRoot has a child look around that sees two folders of the host's.
func TestRoot(t *testing.T) {
	const uid = 0x0fff_1003
	top := t.TempDir()
	program := filepath.Join(top, "bin", "look")
	build := exec.Command("go", "build", "-o", program, "./testdata/look")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build what looks: %v\n%s", err, out)
	}
	dir, secret, below := filepath.Join(top, "own"), filepath.Join(top, "secret"), filepath.Join(top, "own", "data")
	for _, d := range []string{dir, secret, below} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copied, err := os.ReadFile(program)
	if err := errors.Join(err, os.Chmod(top, 0o711), os.Chmod(filepath.Dir(top), 0o711), os.Chown(below, uid, uid),
		os.WriteFile(filepath.Join(secret, "key"), []byte("s"), 0o644), os.WriteFile(filepath.Join(dir, "config"), []byte("c"), 0o644),
		os.WriteFile(filepath.Join(below, "run"), copied, 0o755), os.WriteFile(filepath.Join(dir, "run"), copied, 0o755)); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("mptest-child-root-%d", os.Getpid())
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	t.Cleanup(func() {
		if err := cgroup.Kill(context.Background(), name); err != nil {
			t.Error(err)
		}
	})

	rows := []struct{ try, want string }{ // "error": any
		{"list:/", "dev etc proc " + strings.Split(top, "/")[1]},
		{"list:" + top, "bin own"},
		{"list:/dev", "null urandom"},
		{"list:/etc", "hosts"},
		{"processes:/proc", "1"},
		{"read:" + dir + "/config", "c"},
		{"read:" + secret + "/key", "error"},
		{"read:/proc/self/root" + secret + "/key", "error"},
		{"read:/proc/1/root" + secret + "/key", "error"},
		{"read:/proc/self/cwd/../secret/key", "error"},
		{fmt.Sprintf("read:/proc/%d/status", os.Getpid()), "error"},
		{"read:/dev/null", ""},
		{"write:/dev/null", ""},
		{"write:" + below + "/new", ""},
		{"write:" + dir + "/config", "error"},
		{"write:" + dir + "/new", "error"},
		{"write:/new", "error"},
		{"write:/dev/new", "error"},
		{"write:" + program, "error"},
		{"write:/proc/sys/kernel/core_pattern", "error"},
		{"write:/proc/self/oom_score_adj", "error"}, // read-only
		{"run:" + below + "/run", "error"},
		{"run:" + dir + "/run", "error"},
		{"run:/bin/sh", "error"},
		{fmt.Sprintf("kill:%d", os.Getpid()), "error"},
		{fmt.Sprintf("kill:%d", os.Getppid()), "error"},
	}
	told := filepath.Join(below, "told")
	cfg := Config{Name: "test", Path: program, Args: []string{told}, Dir: dir, UID: uid, Netns: ns.Path(), Cgroup: name,
		Root: &Root{Read: []string{dir, "/etc/hosts", "/nonexistent"}, Write: []string{below}}}
	for _, row := range rows {
		cfg.Args = append(cfg.Args, row.try)
	}
	p := New(cfg)
	stop := start(t, p)
	var got map[string]string
	wait.True(t, wait.Patience, "it has told what it sees", func() bool {
		data, err := os.ReadFile(told)
		got = map[string]string{}
		for line := range strings.Lines(string(data)) {
			try, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			got[try] = what
		}
		return err == nil
	})
	for _, row := range rows {
		have, tried := got[row.try]
		ok := have == row.want || row.want == "error" && strings.HasPrefix(have, "error: ")
		if !tried || !ok {
			t.Errorf("%s: got %q, want %q", row.try, have, row.want)
		}
	}
	if pids, err := cgroup.Procs(name); err != nil || len(pids) != 1 || pids[0] != p.PID() {
		t.Errorf("in its control group are %v, %v; want %d alone", pids, err, p.PID())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	// We see what we saw, and no mount of the child's.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), top) {
		t.Errorf("our own mounts: %v\n%s", err, mounts)
	}
	if _, err := os.Stat(filepath.Join(secret, "key")); err != nil {
		t.Error(err)
	}
}

func TestRootThatCannotBe(t *testing.T) {
	p := New(Config{Name: "test", Path: "/bin/sh", Dir: "/nonexistent", Root: &Root{}})
	err := p.Run(t.Context(), func() { t.Error("ready") }, nil)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "a file system of its own") {
		t.Errorf("got %v, want what was being made and that the folder is not there", err)
	}
}
