package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A process has one family.
var ours = sync.OnceValues(newFamily)

// scripts runs parts that are shell scripts, in a folder of their own, and returns
// what was printed.
func scripts(t *testing.T, ctx context.Context, parts []part, script map[string]string) (printed string, good bool) {
	t.Helper()
	dir := t.TempDir()
	f, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, err := newRunner(dir, &out, f, func(target string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", script[target])
		cmd.Dir = dir
		return cmd
	})
	if err != nil {
		t.Fatal(err)
	}
	good = r.all(ctx, parts)
	return out.String(), good
}

func TestReadBudget(t *testing.T) {
	for _, c := range []struct{ text, wanted, want, wantErr string }{
		{text: "# target lane seconds\nbuild 1 60\n\nlint 2 9 # why\nunit 3a 8\nvm 3b 7\n", want: "build 1 1m0s; lint 2 9s; unit 3a 8s; vm 3b 7s"},
		{text: "build 1 60\nlint 2 9\nunit 2 8\n", wanted: "unit build", want: "build 1 1m0s; unit 2 8s"},
		{text: "build 1 60\n", wanted: "built", wantErr: "does not list built"},
		{text: "build 1\n", wantErr: ":1: want target, lane and seconds"},
		{text: "build 1 x\n", wantErr: `:1: "x" is no number of seconds`},
		{text: "a 1 1\na 1 1\n", wantErr: ":2: a stands twice"},
		{text: "a 2 1\nb 1 1\n", wantErr: ":2: stage 1 comes after stage 2"},
	} {
		file := filepath.Join(t.TempDir(), "budget")
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		all, err := readBudget(file, strings.Fields(c.wanted))
		var got []string
		for _, p := range all {
			got = append(got, p.name+" "+p.stage+p.lane+" "+p.budget.String())
		}
		if g := strings.Join(got, "; "); g != c.want || (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
			t.Errorf("%q: got %s, %v; want %s %s", c.text, g, err, c.want, c.wantErr)
		}
	}
}

// Every part of the project's own budget is a target of the Makefile.
func TestBudgetOfTheProject(t *testing.T) {
	all, err := readBudget("../../.ci/budget", nil)
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if !regexp.MustCompile(`(?m)^\.PHONY: ` + p.name + `$`).Match(makefile) {
			t.Errorf("%s is no target of make", p.name)
		}
	}
}

func TestVerdict(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		took, budget time.Duration
		others       float64
		failed       bool
		say          string
	}{
		{9 * s, 10 * s, 0, false, ""},
		{20 * s, 10 * s, 0, false, ""},
		{21 * s, 10 * s, 0, true, "more than 2 times its budget"},
		{21 * s, 10 * s, 0.09, true, "more than 2 times its budget"},
		{21 * s, 10 * s, 0.5, false, "slow, but others used 50 % of the processors"},
	} {
		if failed, say := verdict(c.took, c.budget, c.others); failed != c.failed || say != c.say {
			t.Errorf("%+v: got %v %q", c, failed, say)
		}
	}
}

func TestOthersSince(t *testing.T) {
	begin := time.Now()
	then := usage{at: begin, others: 100 * time.Second}
	now := usage{at: begin.Add(10 * time.Second), others: 105 * time.Second}
	if got := now.othersSince(then, 2); got != 0.25 {
		t.Errorf("of 20 s others used 5, got %v, want 0.25", got)
	}
}

// Others are who doesn't descend from us, whatever namespace ours are in.
func TestOutside(t *testing.T) {
	f, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--fork", "--pid", "--kill-child", "sh", "-c", "(echo here; sleep 1000) & wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = f.wait(cmd)
		_ = f.end()
	}()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	others := outside(all, os.Getpid(), kernelThreads)
	has := func(pid int) bool { return slices.ContainsFunc(others, func(p process) bool { return p.pid == pid }) }
	family := descendants(all, cmd.Process.Pid)
	if len(family) < 3 {
		t.Errorf("unshare, its shell and what that started are not seen: %+v", family)
	}
	for _, p := range family {
		if has(p.pid) {
			t.Errorf("%+v counts as others", p)
		}
	}
	if !has(1) || has(os.Getpid()) || has(kernelThreads) {
		t.Errorf("of processes 1, us and the kernel's only the first is of others, got %v %v %v", has(1), has(os.Getpid()), has(kernelThreads))
	}
	u, err := f.usage()
	if err != nil || u.others <= 0 {
		t.Errorf("others have used %s of the processors since the machine started: %v", u.others, err)
	}
}

// Lanes of a stage meet; stages don't; a part that failed holds nobody up.
func TestLanes(t *testing.T) {
	t.Setenv("MULTIPAAS_BUILT", "") // it is set for the part that this test is in
	meet := func(mine, other string) string {
		return "touch " + mine + "; for i in $(seq 300); do [ -e " + other + " ] && exit 0; sleep 0.1; done; echo nobody came; exit 1"
	}
	parts := []part{
		{name: "build", stage: "1", budget: time.Hour},
		{name: "lint", stage: "2", budget: time.Hour},
		{name: "one", stage: "3", lane: "a", budget: time.Hour},
		{name: "two", stage: "3", lane: "b", budget: time.Hour},
		{name: "after", stage: "3", lane: "b", budget: time.Hour},
	}
	printed, good := scripts(t, t.Context(), parts, map[string]string{
		"build": `echo "built=$MULTIPAAS_BUILT."; [ ! -e one.here ]`,
		"lint":  `echo x_test.go:7: it is wrong; echo and more; exit 1`,
		"one":   meet("one.here", "two.here"),
		"two":   meet("two.here", "one.here") + "",
		"after": `mkdir counts; echo "points: 3 tried" >counts/points; echo "built=$MULTIPAAS_BUILT"; echo last words`,
	})
	if good {
		t.Error("all was good, though lint failed")
	}
	for _, want := range []string{
		"built=.\n", "    built=1\n    last words\n=== after ok", "=== lint FAILED", "=== one ok", "=== two ok",
		"=== why lint failed\n    x_test.go:7: it is wrong\n    ...\n    x_test.go:7: it is wrong\n    and more\n",
		"\npoints: 3 tried\n", "\nFAILED: lint\n",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("it does not say %q:\n%s", want, printed)
		}
	}
}

func TestNothingBuilt(t *testing.T) {
	parts := []part{{name: "build", stage: "1", budget: time.Hour}, {name: "unit", stage: "2", budget: time.Hour}}
	printed, good := scripts(t, t.Context(), parts, map[string]string{"build": "exit 1", "unit": "true"})
	if good || strings.Contains(printed, "=== unit") {
		t.Errorf("parts are run of what was not built:\n%s", printed)
	}
}

// A run that is ended takes everything with it, also what left its group.
func TestEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began := filepath.Join(t.TempDir(), "began")
	go func() {
		defer cancel()
		for range 600 {
			if _, err := os.Stat(began); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	parts := []part{
		{name: "long", stage: "1", lane: "a", budget: time.Hour},
		{name: "next", stage: "1", lane: "a", budget: time.Hour},
		{name: "other", stage: "1", lane: "b", budget: time.Hour},
	}
	printed, good := scripts(t, ctx, parts, map[string]string{
		"long":  "(setsid sleep 1000 &) ; touch " + began + "; sleep 1000",
		"next":  "true",
		"other": "true",
	})
	if good || strings.Contains(printed, "=== next") {
		t.Errorf("it went on:\n%s", printed)
	}
	f, err := ours()
	if err == nil {
		err = f.end()
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	if left := descendants(all, os.Getpid()); len(left) > 1 {
		t.Errorf("left: %+v", left[1:])
	}
}
