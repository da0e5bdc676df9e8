package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func testGroup(t *testing.T, suffix string) (string, *Group) {
	t.Helper()
	name := fmt.Sprintf("mptest-%d/%s", os.Getpid(), suffix)
	g, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Close(), Kill(ctx, filepath.Dir(name))); err != nil {
			t.Error(err)
		}
	})
	return name, g
}

// sleeper is a process, and what waits for its end, by anybody and as often as it likes.
func sleeper(t *testing.T) (p *os.Process, wait func()) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait = sync.OnceFunc(func() { cmd.Wait() })
	t.Cleanup(func() { cmd.Process.Kill(); wait() })
	return cmd.Process, wait
}

func addPID(t *testing.T, g *Group, pid int) {
	t.Helper()
	for _, dir := range g.dirs {
		if err := writeFile(filepath.Join(dir, "cgroup.procs"), fmt.Sprint(pid)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGroupLife(t *testing.T) {
	name, g := testGroup(t, "life")
	again, err := Create(name) // what is there is opened
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	p, wait := sleeper(t)
	addPID(t, g, p.Pid)
	if pids, err := Procs(name); err != nil || !slices.Equal(pids, []int{p.Pid}) {
		t.Errorf("got %v, %v, want only %d", pids, err, p.Pid)
	}
	if pids, err := Procs(filepath.Dir(name)); err != nil || !slices.Equal(pids, []int{p.Pid}) {
		t.Errorf("from above: got %v, %v, want only %d", pids, err, p.Pid)
	}
	if names, err := List(filepath.Dir(name)); err != nil || !slices.Equal(names, []string{"life"}) {
		t.Errorf("got %v, %v, want life", names, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// The process is ours: it stays in the group, as a zombie, until waited for.
	go wait()
	if err := Kill(ctx, name); err != nil {
		t.Error(err)
	}
	for _, dir := range g.dirs {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", dir)
		}
	}
	if err := Kill(ctx, name); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestRemoveSparesProcesses(t *testing.T) {
	name, g := testGroup(t, "busy")
	p, wait := sleeper(t)
	addPID(t, g, p.Pid)
	if err := Remove(name); err == nil {
		t.Error("removed a group with a process in it")
	}
	p.Kill()
	wait()
}

func TestChildIsBornInGroup(t *testing.T) {
	name, g := testGroup(t, "born")
	if _, ok := g.FD(); ok {
		t.Skip("version 2 starts processes in a group by itself")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	restore, err := g.EnterThread()
	if err != nil {
		t.Fatal(err)
	}
	child, _ := sleeper(t)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil || string(after) != string(before) {
		t.Errorf("the thread is in\n%s\nwant\n%s", after, before)
	}
	inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", child.Pid))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Path(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"memory", "pids", "cpuset"} {
		if !strings.Contains(string(inside), ":"+c+":"+p+"\n") {
			t.Errorf("%s: the child is not in the group:\n%s", c, inside)
		}
	}
}

func TestLimitMemory(t *testing.T) {
	_, g := testGroup(t, "limit")
	if err := g.LimitMemory(64 << 20); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, dir := range g.dirs {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
			if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				got += strings.TrimSpace(string(data))
			}
		}
	}
	if got != "67108864" {
		t.Errorf("the limit is %q, want 64 MiB", got)
	}
}

func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "/x", "a/../b", "a//b", "a/"} {
		if _, err := Create(name); err == nil {
			t.Errorf("Create(%q) went through", name)
		}
	}
}

func TestControllers(t *testing.T) {
	have, err := Controllers()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, c) {
			t.Errorf("got %v, want %s among them", have, c)
		}
	}
}

func TestParseMounts(t *testing.T) {
	for _, c := range []struct{ what, text, want string }{
		{"version 2", "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup:v2"},
		{"version 1", "1 2 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n4 2 0:5 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
			"/sys/fs/cgroup/cpu,cpuacct:cpu+cpuacct /sys/fs/cgroup/systemd:"},
		{"elsewhere", "1 2 0:3 / /mnt/cgroup rw - cgroup2 cgroup rw\n", ""},
		{"below", "1 2 0:3 /a /sys/fs/cgroup/memory/a rw - cgroup cgroup rw,memory\n", ""},
		{"not a line", "x\n- - -\n", ""},
	} {
		var got []string
		for _, h := range parseMounts(c.text) {
			kind := strings.Join(h.controllers, "+")
			if h.v2 {
				kind = "v2"
			}
			got = append(got, h.dir+":"+kind)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}
