package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// family is this process and all that descends from it, also what outlived its
// own parent: hosts of labs, for one. We are the kernel's "subreaper" for those, so
// that they can be counted, and ended.
type family struct {
	mu      sync.Mutex
	started map[int]bool // children that somebody waits for
}

func newFamily() (*family, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the parent of orphans: %w", err)
	}
	f := &family{started: map[int]bool{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			f.reap()
		}
	}()
	return f, nil
}

// start starts a command in a process group of its own.
func (f *family) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	f.started[cmd.Process.Pid] = true
	return nil
}

func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.started, cmd.Process.Pid)
	return err
}

// reap buries the orphans that have ended.
func (f *family) reap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := processes()
	if err != nil {
		return
	}
	for _, p := range all {
		if p.parent == os.Getpid() && p.state == "Z" && !f.started[p.pid] {
			_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		}
	}
}

// end kills all descendants.
func (f *family) end() error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		f.reap()
		all, err := processes()
		if err != nil {
			return err
		}
		left := 0
		for _, p := range descendants(all, os.Getpid()) {
			if p.pid != os.Getpid() && p.state != "Z" {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes of ours don't end", left)
		}
	}
}

// process is a line of /proc.
type process struct {
	pid, parent int
	state       string
	used        time.Duration // of the processors: by itself and by children that were waited for
}

func processes() ([]process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may hold anything: count from its end.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 15 {
			continue
		}
		p := process{state: fields[0]}
		p.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(file)))
		p.parent, _ = strconv.Atoi(fields[1])
		for _, f := range fields[11:15] {
			p.used += ticks(f)
		}
		all = append(all, p)
	}
	return all, nil
}

// ticks is a time of /proc. They are hundredths of a second everywhere.
func ticks(field string) time.Duration {
	n, _ := strconv.ParseInt(field, 10, 64)
	return time.Duration(n) * 10 * time.Millisecond
}

// descendants are a process and those below it.
func descendants(all []process, root int) []process {
	children := map[int][]process{}
	for _, p := range all {
		if p.pid == root {
			children[-1] = []process{p}
		}
		children[p.parent] = append(children[p.parent], p)
	}
	found := children[-1]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// outside are the processes that don't descend from the roots.
func outside(all []process, roots ...int) []process {
	inside := map[int]bool{}
	for _, root := range roots {
		for _, p := range descendants(all, root) {
			inside[p.pid] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p process) bool { return inside[p.pid] })
}

// usage is what the processors have done for others up to a moment: for programs
// that are not of our family, and what a hypervisor took away.
//
// Others are counted, and not what is left without us: a process of ours that is killed
// with its PID namespace, as a lab's are, is in nobody's account.
type usage struct {
	at     time.Time
	others time.Duration
}

// kernelThreads is the process that all threads of the kernel descend from. They work
// for whoever.
const kernelThreads = 2

func (f *family) usage() (usage, error) {
	u := usage{at: time.Now()}
	all, err := processes()
	if err != nil {
		return u, err
	}
	for _, p := range outside(all, os.Getpid(), kernelThreads) {
		u.others += p.used
	}
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return u, errors.New("/proc/stat: no processors in it")
	}
	u.others += ticks(fields[8]) // stolen
	return u, nil
}

// othersSince is which part of the processors others used from then to now.
func (u usage) othersSince(then usage, processors int) float64 {
	took := u.at.Sub(then.at)
	if took <= 0 {
		return 0
	}
	return max(0, (u.others-then.others).Seconds()/(took.Seconds()*float64(processors)))
}
