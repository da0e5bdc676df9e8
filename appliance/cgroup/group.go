package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is an open control group, in every hierarchy there is.
type Group struct {
	name string
	dirs []string
	dir  *os.File // version 2 only
}

// Create makes a group, or opens the one that is there. On version 2 its
// parents pass on every controller they can.
func Create(name string) (*Group, error) {
	p, err := Path(name)
	if err != nil {
		return nil, err
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &Group{name: name}
	for _, h := range hs {
		dir, err := makeDir(h, p)
		if err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", name, err)
		}
		g.dirs = append(g.dirs, dir)
	}
	if len(hs) == 1 && hs[0].v2 { // and not a host with both, whose controllers are bound to version 1
		if g.dir, err = os.Open(g.dirs[0]); err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", name, err)
		}
	}
	return g, nil
}

// makeDir makes the group p of one hierarchy and everything above it.
func makeDir(h hierarchy, p string) (string, error) {
	dir := h.dir
	for part := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if h.v2 {
			passOn(dir)
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if slices.Contains(h.controllers, "cpuset") {
			// A new cpuset has no CPU, and takes no process until it has.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(filepath.Join(parent, file), filepath.Join(dir, file)); err != nil {
					return "", err
				}
			}
		}
	}
	return dir, nil
}

// passOn gives the children of a version 2 group all its controllers. What it
// can't give (the group holds processes, say) the children go without: the
// preflight checks have said so.
func passOn(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(data)) {
		// One by one: a write of several takes all or none.
		_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
	}
}

func inherit(from, to string) error {
	have, err := os.ReadFile(to)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(have)) != "" {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, strings.TrimSpace(string(data)))
}

// Close closes the handle; the group stays.
func (g *Group) Close() error {
	if g.dir == nil {
		return nil
	}
	return g.dir.Close()
}

// FD is a file descriptor to start a process in the group by, if the kernel can
// (version 2 only). It is good until Close.
func (g *Group) FD() (fd int, ok bool) {
	if g.dir == nil {
		return 0, false
	}
	return int(g.dir.Fd()), true
}

// LimitMemory bounds what the processes of the group take together; beyond it
// the kernel ends one of them.
func (g *Group) LimitMemory(bytes int64) error {
	return g.limit("memory", bytes, "memory.max", "memory.limit_in_bytes")
}

// LimitTasks bounds how many processes and threads the group has; beyond it none
// is made.
func (g *Group) LimitTasks(n int) error { return g.limit("pids", int64(n), "pids.max") }

// limit writes the controller's limit, whose file has another name in each version.
func (g *Group) limit(controller string, value int64, files ...string) error {
	none := fmt.Errorf("limit %s of cgroup %s: no such controller", controller, g.name)
	for _, dir := range g.dirs {
		for _, file := range files {
			err := writeFile(filepath.Join(dir, file), strconv.FormatInt(value, 10))
			switch {
			case err == nil:
				none = nil
			case !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("limit %s of cgroup %s: %w", controller, g.name, err)
			}
		}
	}
	return none
}

// Delegate lets a user of the host, root of a user namespace, make groups below
// this one and move processes there. The group's own limits stay ours.
func (g *Group) Delegate(uid int) error {
	for _, dir := range g.dirs {
		// What cgroups(7) names for both versions.
		for _, file := range []string{".", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"} {
			err := os.Chown(filepath.Join(dir, file), uid, uid)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("give cgroup %s to user %d: %w", g.name, uid, err)
			}
		}
	}
	return nil
}

// EnterThread moves the calling OS thread, which must be locked, into the group
// on version 1, so that a process it forks is born there. restore takes it back
// and must be called at once after: KillAll counts what is in the group. It needs no
// path to do so.
func (g *Group) EnterThread() (restore func() error, err error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	tid := strconv.Itoa(unix.Gettid())
	data, err := os.ReadFile("/proc/self/task/" + tid + "/cgroup")
	if err != nil {
		return nil, err
	}
	var back []*os.File // the tasks files of where the thread was
	restore = func() error {
		var errs []error
		for _, file := range back {
			_, err := file.WriteString(tid)
			errs = append(errs, err, file.Close())
		}
		return errors.Join(errs...)
	}
	for i, h := range hs {
		if h.v2 {
			continue // in a hybrid: no controllers, and no single threads
		}
		was, ok := groupOf(string(data), h)
		if !ok {
			continue
		}
		home, err := os.OpenFile(filepath.Join(h.dir, was, "tasks"), os.O_WRONLY, 0)
		if err == nil {
			back = append(back, home)
			err = writeFile(filepath.Join(g.dirs[i], "tasks"), tid)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("enter cgroup %s: %w", g.name, err), restore())
		}
	}
	return restore, nil
}

// groupOf finds the group of a hierarchy in the text of a /proc/PID/cgroup file.
func groupOf(text string, h hierarchy) (string, bool) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		names := strings.Split(parts[1], ",")
		if len(h.controllers) > 0 && slices.Contains(names, h.controllers[0]) {
			return parts[2], true
		}
		if len(h.controllers) == 0 && !h.v2 && parts[1] == "name="+path.Base(h.dir) {
			return parts[2], true
		}
	}
	return "", false
}

// Procs are the processes in the group and below. None there: none.
func Procs(name string) ([]int, error) {
	dirs, err := existing(name)
	if err != nil {
		return nil, err
	}
	return procs(dirs)
}

// List are the names of the groups right below name.
func List(name string) ([]string, error) {
	dirs, err := existing(name)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range dirs {
		below, err := subdirs(dir)
		if err != nil {
			return nil, err
		}
		for _, b := range below {
			names = append(names, filepath.Base(b))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// KillAll ends every process in the group and below, and returns when none is
// left or ctx is done. The calling process is spared.
func KillAll(ctx context.Context, name string) error {
	dirs, err := existing(name)
	if err != nil {
		return err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		pids, err := procs(dirs)
		if err != nil {
			return fmt.Errorf("end cgroup %s: %w", name, err)
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
		if len(pids) == 0 {
			return nil
		}
		for _, dir := range dirs {
			// A frozen process takes no signal until it is thawed.
			_ = writeFile(filepath.Join(dir, "freezer.state"), "THAWED")
			_ = writeFile(filepath.Join(dir, "cgroup.freeze"), "0")
		}
		for _, pid := range pids {
			if pid == 0 {
				continue // a process of another pid namespace: not ours to end
			}
			_ = unix.Kill(pid, unix.SIGKILL) // ESRCH: gone meanwhile
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("end cgroup %s: processes %v live on: %w", name, pids, ctx.Err())
		}
	}
}

// Kill is KillAll and Remove.
func Kill(ctx context.Context, name string) error {
	if err := KillAll(ctx, name); err != nil {
		return err
	}
	return Remove(name)
}

// Remove removes the group and those below. It is no error if there is none; it
// is one if a process is in it.
func Remove(name string) error {
	dirs, err := existing(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeTree(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", name, err)
	}
	return nil
}

// existing are the folders of the group that are there.
func existing(name string) ([]string, error) {
	p, err := Path(name)
	if err != nil {
		return nil, err
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hs {
		dir := filepath.Join(h.dir, p)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return dirs, nil
}

func procs(dirs []string) ([]int, error) {
	var all []int
	for _, dir := range dirs {
		pids, err := readPIDs(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
		below, err := subdirs(dir)
		if err != nil {
			return nil, err
		}
		more, err := procs(below)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func subdirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	return dirs, nil
}

func removeTree(dir string) error {
	below, err := subdirs(dir)
	if err != nil {
		return err
	}
	for _, b := range below {
		if err := removeTree(b); err != nil {
			return err
		}
	}
	// A group is busy for a moment after its last process was waited for.
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		pids, _ := readPIDs(filepath.Join(dir, "cgroup.procs"))
		if !errors.Is(err, unix.EBUSY) || len(pids) > 0 || wait > 256*time.Millisecond {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
	}
}
