package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/netns"
)

// Bounds of a look through one machine, which may have made very much to look at, or things
// that never answer.
const (
	lookLived = 5 * time.Second  // at where its tasks are
	lookWork  = 10 * time.Second // of CPU, at the rest: a host that is busy makes nobody suspect
	lookQuiet = 3 * time.Second  // without a word of who looks
	lookEnd   = time.Second      // until who looks has ended, once killed: a file system keeps him

	// tooQuiet is how many looks in a row that are not heard of make a machine suspect: a host that
	// is busy, or stood still, makes one or two so.
	tooQuiet = 3
)

// filesOf is how many open files of a machine are looked at. One for each 16 KiB of its memory,
// 262,144 at least, are more than any has that isn't made to hide something.
func filesOf(memory int64) int { return int(max(memory>>14, 1<<18)) }

// holding is what was found that a machine holds of a table.
type holding struct {
	record
	count int
	hides string // how it keeps from being counted; "": it doesn't
}

func (h *holding) share(t table) int { return t.share(h.Machine.Spec.Size.MemoryBytes) }

// countLived counts what machines hold where their tasks live. Nothing that it looks at is a
// tenant's to keep from answering.
func (s *Sandbox) countLived(ctx context.Context, t table, all []*holding) {
	for _, h := range all {
		ctx, cancel := context.WithTimeout(ctx, lookLived)
		err := counter{in: t.in, enough: t.most, found: func(count int) { h.count = count }}.lived(ctx, h.Machine.UID)
		cancel()
		if err != nil && h.count <= t.most {
			s.cfg.Log.Warn("look for the namespaces of a machine", "machine", h.Machine.Name, "err", err)
		}
	}
}

// countAll counts what machines hold anywhere. That is done by a process of its own, Look: what a
// machine has mounted is a file system of its own making, maybe, which never answers who looks, and no
// signal ends him then. Such a file system is aborted, and who still waits is left to wait: no other looks
// at that machine meanwhile.
func (s *Sandbox) countAll(ctx context.Context, t table, all []*holding) {
	all = slices.DeleteFunc(slices.Clone(all), func(h *holding) bool {
		_, busy := s.looking.Load(h.Machine.UID)
		if busy {
			h.hides = "what it has made keeps an earlier look waiting"
		}
		return busy
	})
	// Who was not heard of keeps nobody else waiting.
	slices.SortStableFunc(all, func(a, b *holding) int { return s.quietLooks(a) - s.quietLooks(b) })
	for len(all) > 0 && ctx.Err() == nil {
		done, err := s.lookAt(ctx, t, all)
		if err != nil {
			s.cfg.Log.Warn("look for the namespaces of machines", "machine", all[min(done, len(all)-1)].Machine.Name, "err", err)
		}
		all = all[min(done+1, len(all)):]
	}
}

// quietLooks is how many looks in a row at a machine were not heard of.
func (s *Sandbox) quietLooks(h *holding) int {
	n, _ := s.quiet.Load(h.Machine.UID)
	looks, _ := n.(int)
	return looks
}

// lookAt has a process look at machines, one after the other, and returns how many it was done
// with. It ends with the first that it can't be done with.
func (s *Sandbox) lookAt(ctx context.Context, t table, all []*holding) (done int, err error) {
	args := []string{t.name, strconv.Itoa(t.most)}
	for _, h := range all {
		args = append(args, fmt.Sprintf("%s=%d", h.Machine.UID, t.files(h.Machine.Spec.Size.MemoryBytes)))
	}
	cmd := s.cfg.Look(args)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return len(all), err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, lines, ended, left := make(chan error), make(chan string), make(chan error, 1), make(chan struct{})
	leave := sync.OnceFunc(func() { close(left) }) // what he says then is nobody's business
	defer leave()
	go func() {
		runtime.LockOSThread() // whose end the child would follow
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for text := bufio.NewScanner(out); text.Scan(); {
			select {
			case lines <- text.Text():
			case <-left:
			}
		}
		ended <- cmd.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		return len(all), fmt.Errorf("start who looks: %w", err)
	}
	for quiet := time.NewTimer(lookQuiet); done < len(all); {
		h := all[done]
		select {
		case line := <-lines:
			quiet.Reset(lookQuiet)
			switch word, rest, _ := strings.Cut(line, " "); word {
			case "holds":
				count, _ := strconv.Atoi(rest)
				h.count = max(h.count, count)
			case "hides":
				h.hides = rest
			case "done":
				s.quiet.Delete(h.Machine.UID)
				done++
			}
			continue
		case err = <-ended:
			return done, errors.Join(errors.New("who looks has ended before he was done"), err)
		case <-quiet.C:
			err = fmt.Errorf("who looks is not heard of for %v", lookQuiet)
			// A request that a file system has not even read can be killed, and is so here.
			s.quiet.Store(h.Machine.UID, s.quietLooks(h)+1)
			if s.quietLooks(h) >= tooQuiet {
				h.hides = "again and again nothing is heard of who looks at what it has made"
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
		leave()
		_ = cmd.Process.Kill()
		if s.awaitLook(ctx, h.Machine.UID, cmd.Process.Pid, ended) {
			h.hides = "what it has made keeps who looks waiting"
		}
		return done, err
	}
	leave()
	<-ended
	return done, nil
}

// awaitLook waits until who looked at a machine, and was killed, has ended. stuck: it was the
// machine that kept him.
func (s *Sandbox) awaitLook(ctx context.Context, uid string, pid int, ended <-chan error) (stuck bool) {
	for wait := lookEnd; ; wait = 5 * lookEnd {
		select {
		case <-ended:
			return false
		case <-time.After(wait):
		}
		// One that doesn't sleep beyond signals ends when the host has time for it.
		if wait > lookEnd || sleepsForGood(pid) {
			break
		}
	}
	select { // after a pause of the host both were there
	case <-ended:
		return false
	default:
	}
	if err := s.abortFUSE(ctx, uid); err != nil {
		s.cfg.Log.Warn("abort the FUSE file systems of a machine that keeps who looks waiting", "uid", uid, "err", err)
	}
	select {
	case <-ended:
	case <-time.After(lookEnd):
		s.looking.Store(uid, true)
		go func() {
			<-ended
			s.looking.Delete(uid)
		}()
	}
	return true
}

// sleepsForGood says whether a thread of the process sleeps as no signal can end it (proc(5)).
func sleepsForGood(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(stats, func(stat string) bool {
		text, err := os.ReadFile(stat)
		end := strings.LastIndex(string(text), ") ") // the name before it may have anything
		return err == nil && end >= 0 && strings.HasPrefix(string(text[end+2:]), "D")
	})
}

// Look counts what machines hold of a table, as args say: its name, how many are enough, and
// for each machine UID=FILES, how many open files it looks at. For each it writes "holds COUNT", again
// as it finds more, "looks" while it does, "hides WHY", and last "done". It may never return, and no
// signal ends it then: it is run in a process of its own.
func Look(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("want TABLE, ENOUGH, and for each machine UID=FILES")
	}
	known := tables(0)
	i := slices.IndexFunc(known, func(t table) bool { return t.name == args[0] })
	enough, err := strconv.Atoi(args[1])
	if i < 0 || err != nil {
		return fmt.Errorf("table %q, %q", args[0], args[1])
	}
	for _, arg := range args[2:] {
		uid, most, _ := strings.Cut(arg, "=")
		files, err := strconv.Atoi(most)
		if err != nil {
			return fmt.Errorf("%q: want UID=FILES", arg)
		}
		said := time.Now()
		c := counter{in: known[i].in, enough: enough,
			found: func(count int) { fmt.Fprintln(out, "holds", count) },
			looks: func() {
				if time.Since(said) > lookQuiet/8 {
					said = time.Now()
					fmt.Fprintln(out, "looks")
				}
			}}
		why, err := c.everywhere(ctx, uid, files)
		if err != nil {
			return err
		}
		if why != "" {
			fmt.Fprintln(out, "hides", why)
		}
		fmt.Fprintln(out, "done")
	}
	return nil
}

// counter counts what a machine's network namespaces hold.
type counter struct {
	in     func(*netns.NS) (int, error)
	enough int           // and no more is counted
	found  func(sum int) // is told each time that there is more
	looks  func()        // is called now and then, and work counted; nil: neither

	sum, steps int
	seen       map[string]bool
	began      time.Duration // of CPU
	worked     bool          // as much as it may
}

func (c *counter) begin() error {
	own, err := os.Readlink("/proc/self/ns/net")
	c.seen = map[string]bool{own: true}
	return err
}

func (c *counter) over(ctx context.Context) bool {
	if c.steps++; c.steps%64 == 0 && c.looks != nil {
		c.looks()
		c.worked = c.worked || cpuTime()-c.began > lookWork
	}
	return c.worked || c.sum > c.enough || ctx.Err() != nil
}

// add counts what is called "net:[4026531840]". What is gone meanwhile holds nothing.
func (c *counter) add(ctx context.Context, name string, open func() (*netns.NS, error)) {
	if !strings.HasPrefix(name, "net:[") || c.seen[name] || c.over(ctx) {
		return
	}
	n, err := open()
	if err != nil {
		return
	}
	defer n.Close()
	c.seen[name] = true
	if count, err := c.in(n); err == nil && count > 0 {
		c.sum += count
		c.found(c.sum)
	}
}

func (c *counter) at(ctx context.Context, path string) {
	name, _ := os.Readlink(path)
	c.add(ctx, name, func() (*netns.NS, error) { return netns.OpenPath(path) })
}

// lived counts where the machine's tasks live.
func (c counter) lived(ctx context.Context, uid string) error {
	pids, err := cgroup.Procs(cgroupName(uid))
	if err := errors.Join(err, c.begin()); err != nil {
		return err
	}
	c.tasks(ctx, pids, func(task string) { c.at(ctx, task+"/ns/net") })
	return ctx.Err()
}

// tasks calls fn with the folder of each task of processes, in no order.
func (c *counter) tasks(ctx context.Context, pids []int, fn func(task string)) {
	rand.Shuffle(len(pids), func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
	for _, pid := range pids {
		if c.over(ctx) {
			return
		}
		dir := fmt.Sprintf("/proc/%d/task", pid)
		eachName(dir, func(name string) bool {
			fn(filepath.Join(dir, name))
			return !c.over(ctx)
		})
	}
}

// everywhere counts in each network namespace that a machine's processes live in, or keep: by a
// mount, an open file or a socket. One that is in a message only that nobody has received, or in a
// file of a thread that shares none with its process, or below another mount, isn't found. why is how
// it keeps from being counted.
func (c counter) everywhere(ctx context.Context, uid string, files int) (why string, err error) {
	pids, err := cgroup.Procs(cgroupName(uid))
	if err := errors.Join(err, c.begin()); err != nil {
		return "", err
	}
	c.began = cpuTime()
	c.tasks(ctx, pids, func(task string) { c.at(ctx, task+"/ns/net") })
	many := c.kept(ctx, pids, files)
	c.tasks(ctx, pids, func(task string) {
		if mounts, err := os.Readlink(task + "/ns/mnt"); err == nil && !c.seen[mounts] {
			c.seen[mounts] = true
			c.mounted(ctx, task)
		}
	})
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case c.sum > c.enough:
		return "", nil
	case many:
		return fmt.Sprintf("it has more than %d files open", files), nil
	case c.worked:
		return fmt.Sprintf("it has made more than can be looked through in %v", lookWork), nil
	}
	return "", nil
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// eachName calls fn with the names in a folder of /proc, in its order, until fn says no.
func eachName(dir string, fn func(name string) bool) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if !fn(name) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// kept counts in those that processes have open, or have sockets in: so many files at most, in
// no order, so that none is hidden behind others. many: there are more.
func (c *counter) kept(ctx context.Context, pids []int, files int) (many bool) {
	type file struct{ pid, fd int32 }
	var all []file
	for _, pid := range pids {
		if many || c.over(ctx) {
			break
		}
		eachName(fmt.Sprintf("/proc/%d/fd", pid), func(name string) bool {
			if fd, err := strconv.Atoi(name); err == nil {
				all = append(all, file{int32(pid), int32(fd)})
			}
			many = len(all) > files
			return !many && !c.over(ctx)
		})
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	// What its owner has closed meanwhile, a connection that lingers, may keep who closes it last.
	closing := make(chan int, 1024)
	defer close(closing)
	go func() {
		for socket := range closing {
			unix.Close(socket)
		}
	}()
	for _, f := range all {
		if c.over(ctx) {
			break
		}
		path := fmt.Sprintf("/proc/%d/fd/%d", f.pid, f.fd)
		kind, _ := os.Readlink(path)
		if !strings.HasPrefix(kind, "socket:[") {
			c.at(ctx, path)
			continue
		}
		if c.seen[kind] {
			continue
		}
		c.seen[kind] = true
		socket, err := getFile(f.pid, f.fd)
		if err != nil {
			continue
		}
		if ns, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS); err == nil {
			c.at(ctx, fmt.Sprintf("/proc/self/fd/%d", ns))
			unix.Close(ns)
		}
		select {
		case closing <- socket:
		default: // it stays open as long as this process
		}
	}
	return many
}

func getFile(pid, fd int32) (int, error) {
	process, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(process)
	return unix.PidfdGetfd(process, int(fd), 0)
}

// mounted counts in those that are mounted where a task looks. The paths are the tenant's.
func (c *counter) mounted(ctx context.Context, task string) {
	root, err := unix.Open(task+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	text, err := os.Open(task + "/mountinfo")
	if err != nil {
		return
	}
	defer text.Close()
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 4<<20) // an overlay of 500 layers has a line of 512 KB at most
	for !c.over(ctx) && lines.Scan() {
		f := strings.Fields(lines.Text()) // proc_pid_mountinfo(5)
		if len(f) < 5 {
			continue
		}
		c.add(ctx, f[3], func() (*netns.NS, error) {
			fd, err := findInside(root, escapes.Replace(f[4])) // another may be mounted over it
			if err != nil {
				return nil, err
			}
			defer unix.Close(fd)
			return netns.OpenPath(fmt.Sprintf("/proc/self/fd/%d", fd))
		})
	}
}

// findInside finds what stands at a path below root, a folder of a tenant's, without opening
// it (O_PATH): to open a pipe blocks for ever, and a terminal becomes the process's own, whose
// owner ends it by hanging up. No link on the path leads out. To find it may take for ever too. The
// caller closes it.
func findInside(root int, path string) (fd int, err error) {
	return unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
}

// escapes are how /proc writes what would part its fields.
var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
