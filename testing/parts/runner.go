package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// runner runs parts.
type runner struct {
	dir     string // has logs and counts
	command func(target string) *exec.Cmd
	family  *family
	budgets bool // a part fails by its budget

	mu      sync.Mutex // of the fields below
	out     io.Writer
	results []result
}

// result is how a part went.
type result struct {
	part
	failed bool
	note   string
	took   time.Duration
	cpu    time.Duration
	others float64
}

func (r result) word() string {
	if r.failed {
		return "FAILED"
	}
	return "ok"
}

func newRunner(dir string, out io.Writer, f *family, command func(target string) *exec.Cmd) (*runner, error) {
	r := &runner{dir: dir, out: out, family: f, command: command, budgets: true}
	for _, name := range []string{"logs", "counts"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return r, os.MkdirAll(filepath.Join(dir, "logs"), 0o755)
}

// all runs the parts, reports, and says whether all were good.
func (r *runner) all(ctx context.Context, parts []part) bool {
	began := time.Now()
	stages := split(parts, func(p part) string { return p.stage })
	for i, stage := range stages {
		lanes := split(stage, func(p part) string { return p.lane })
		var wg sync.WaitGroup
		for _, lane := range lanes {
			wg.Go(func() {
				for _, p := range lane {
					if ctx.Err() == nil {
						r.keep(r.run(ctx, p, i > 0, len(lanes) == 1))
					}
				}
			})
		}
		wg.Wait()
		if i == 0 && len(stages) > 1 && r.failed() {
			break // nothing to try was built
		}
	}
	if ctx.Err() != nil {
		return false
	}
	at := func(one result) int { return slices.Index(parts, one.part) }
	slices.SortFunc(r.results, func(a, b result) int { return at(a) - at(b) })
	r.report(time.Since(began))
	return !r.failed()
}

func (r *runner) keep(one result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, one)
}

func (r *runner) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.results {
		if one.failed {
			return true
		}
	}
	return false
}

func (r *runner) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format, args...)
}

func (r *runner) log(name string) string { return filepath.Join(r.dir, "logs", name) }

// run runs one part. What it prints goes to its log, and to the terminal if it
// is alone; else its last lines do when it has ended.
func (r *runner) run(ctx context.Context, p part, built, alone bool) result {
	r.say("\n=== %s\n", p.name)
	one := result{part: p}
	before, err := r.family.usage()
	if err == nil {
		one.cpu, err = r.make(ctx, p.name, built, alone)
	}
	after, uerr := r.family.usage()
	if uerr == nil {
		one.took = after.at.Sub(before.at)
		one.others = after.othersSince(before, runtime.NumCPU())
	}
	if r.budgets {
		one.failed, one.note = verdict(one.took, p.budget, one.others)
	}
	switch {
	case ctx.Err() != nil:
		return one
	case err != nil || uerr != nil:
		one.failed = true
	}
	if !alone {
		r.say("%s", tail(r.log(p.name), 3))
	}
	r.say("=== %s %s after %.0f s\n", p.name, one.word(), one.took.Seconds())
	return one
}

// make runs a target, and returns what it took of the processors.
func (r *runner) make(ctx context.Context, target string, built, alone bool) (time.Duration, error) {
	log, err := os.Create(r.log(target))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := r.command(target)
	cmd.Stdout = log
	if alone {
		cmd.Stdout = io.MultiWriter(log, r.out)
		// What outlives the part may hold its output open.
		cmd.WaitDelay = 10 * time.Second
	}
	cmd.Stderr = cmd.Stdout
	cmd.Env = cmd.Environ()
	if built {
		cmd.Env = append(cmd.Env, "MULTIPAAS_BUILT=1")
	}
	if err := r.family.start(cmd); err != nil {
		fmt.Fprintln(log, err)
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) })
	defer stop()
	err = r.family.wait(cmd)
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// report prints why parts failed, the times and the counts.
func (r *runner) report(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed []string
	for _, one := range r.results {
		if !one.failed {
			continue
		}
		failed = append(failed, one.name)
		fmt.Fprintf(r.out, "\n=== why %s failed\n", one.name)
		if one.note != "" {
			fmt.Fprintln(r.out, one.note)
		}
		fmt.Fprint(r.out, rows(r.log(one.name), 40), tail(r.log(one.name), 20))
	}
	fmt.Fprintf(r.out, "\n=== how long each part took, in seconds; others is their part of the processors\n")
	fmt.Fprintf(r.out, "%-12s %-5s %-7s %6s %7s %6s %8s\n", "part", "lane", "", "time", "budget", "cpu", "others")
	for _, one := range r.results {
		line := fmt.Sprintf("%-12s %-5s %-7s %6.0f %7.0f %6.0f %6.0f %%  %s", one.name, one.stage+one.lane, one.word(),
			one.took.Seconds(), one.budget.Seconds(), one.cpu.Seconds(), 100*one.others, one.note)
		fmt.Fprintln(r.out, strings.TrimRight(line, " "))
	}
	fmt.Fprintf(r.out, "%-26s %6.0f\n", "all", took.Seconds())
	if counts := r.counts(); counts != "" {
		fmt.Fprintf(r.out, "\n%s\n", counts)
	}
	if len(failed) > 0 {
		fmt.Fprintf(r.out, "\nFAILED: %s\n", strings.Join(failed, " "))
	}
}

// counts are the lines that suites have left, in one.
func (r *runner) counts() string {
	files, _ := filepath.Glob(filepath.Join(r.dir, "counts", "*"))
	var all []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			all = append(all, strings.TrimSpace(string(data)))
		}
	}
	return strings.Join(all, "; ")
}

// A line that tells what failed of Go's tests.
var telling = regexp.MustCompile(`^ *--- FAIL|^ *[A-Za-z0-9_]+_test\.go:[0-9]+: |^panic: |DATA RACE|^FAIL\s`)

// rows are the last lines of a log that tell what failed.
func rows(file string, n int) string {
	var found []string
	for _, line := range lines(file) {
		if telling.MatchString(line) {
			found = append(found, line)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return last(found, n) + "    ...\n"
}

// tail is the end of a log.
func tail(file string, n int) string { return last(lines(file), n) }

func lines(file string) []string {
	data, err := os.ReadFile(file)
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(data), "\n"), "\n")
}

// last is the end of a text; lines that are too long are cut.
func last(all []string, n int) string {
	var b strings.Builder
	for _, line := range all[max(0, len(all)-n):] {
		fmt.Fprintf(&b, "    %.400s\n", line)
	}
	return b.String()
}
