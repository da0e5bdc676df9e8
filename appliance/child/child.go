// Package child runs another executable as a part of the appliance: started
// again when it dies, stopped within bounds, its output in our log and in a
// file of bounded size. It never outlives us; what it started itself might, if we
// are killed: give it a cgroup, and the next start ends that first.
//
// Parties: the composition root and parts that consist of an upstream server's
// process. Any package may import it; it knows no part by name.
package child

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/thread"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	// A process that ran for a minute was well: its next death starts over with
	// the shortest wait. Shorter, and one that dies of its own slow start would
	// be tried ten times a second.
	ranWell = time.Minute
	// defaultStopTimeout leaves the lifecycle graph's 30 s enough room for the kill.
	defaultStopTimeout = 20 * time.Second
)

// Config says what to run.
type Config struct {
	Name string // for the log
	Path string // the executable
	Args []string
	Env  []string // the whole environment, not added to ours; nil: ours
	Dir  string   // where it starts; there must be one if it has a Root

	Netns string // path of a network namespace; "": ours
	// Cgroup is the name of a cgroup as appliance/cgroup takes it; "": ours. It
	// is made if need be; whatever is in it is killed before each start and after
	// the end, so nothing that the child started survives it.
	Cgroup string
	// MemoryMax bounds the memory of what is in Cgroup, in bytes; 0: no bound.
	// A host that can't is told in the log, once per start.
	MemoryMax int64

	// TasksMax bounds the tasks in Cgroup; 0: no bound.
	TasksMax int
	// UID is the user and group that the child runs as, of no other group and without
	// capabilities, which nothing that it runs can give it; 0: as we do.
	UID int
	// Root is all that the child sees of the file system; nil: what we see.
	Root *Root

	LogFile string // also gets the output, if set
	Log     *slog.Logger

	// Ready is asked with backoff until it returns nil; nil: ready once started.
	// It is asked for the first start only; later ones are the part's business.
	Ready func(ctx context.Context) error
	// OnStart is called each time the process has been started, with its id.
	OnStart func(pid int)

	StopTimeout time.Duration // from SIGTERM to SIGKILL; 0: 20 s
}

// Process is a child process as a part of the appliance. Its methods are safe
// for concurrent use; Run is called once.
type Process struct {
	cfg      Config
	pid      atomic.Int64
	starts   atomic.Int64
	lastExit atomic.Pointer[exit]
}

type exit struct {
	at  time.Time
	err error
}

// New makes a Process; Run starts it.
func New(cfg Config) *Process {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("child", cfg.Name)
	cfg.StopTimeout = cmp.Or(cfg.StopTimeout, defaultStopTimeout)
	return &Process{cfg: cfg}
}

// PID is the id of the running process, 0 if none runs now.
func (p *Process) PID() int { return int(p.pid.Load()) }

// Restarts counts how often it was started again.
func (p *Process) Restarts() int { return max(0, int(p.starts.Load())-1) }

// LastExit is how and when it last died by itself; nil if it never did.
func (p *Process) LastExit() (at time.Time, err error) {
	if e := p.lastExit.Load(); e != nil {
		return e.at, e.err
	}
	return time.Time{}, nil
}

// ErrUnneeded as the cause of a context's end says that nothing the child keeps is needed
// any more: it is killed, and not asked to stop, which may take it seconds.
var ErrUnneeded = errors.New("nothing that it keeps is needed any more")

// Run keeps the process running until ctx is done. It calls ready each time the
// process has become able to serve, and died, which may be nil, each time it has
// died by itself: one after the other, so the last call tells how it is. Neither
// should block. Run fails only if the executable can't be started at all.
func (p *Process) Run(ctx context.Context, ready func(), died func(error)) error {
	out, err := newOutput(p.cfg.Log, p.cfg.LogFile)
	if err != nil {
		return fmt.Errorf("%s: %w", p.cfg.Name, err)
	}
	defer out.Close()

	backoff := minBackoff
	for {
		began := time.Now()
		started, err := p.live(ctx, out, ready)
		if ctx.Err() != nil {
			return nil
		}
		if !started && p.starts.Load() == 0 {
			return err // nothing that waiting would mend: a wrong path, say
		}
		p.lastExit.Store(&exit{time.Now(), err})
		if died != nil {
			died(err)
		}
		if time.Since(began) >= ranWell {
			backoff = minBackoff
		}
		p.cfg.Log.Warn("child process died", "err", err, "after", time.Since(began), "again", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return nil
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// live runs the process once and calls ready in between.
func (p *Process) live(ctx context.Context, out *output, ready func()) (started bool, err error) {
	life, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	wg.Go(func() {
		if p.awaitReady(life) {
			ready()
		}
	})
	return p.once(ctx, out)
}

// awaitReady waits for the start, then until cfg.Ready is content. It returns false
// if ctx is done before.
func (p *Process) awaitReady(ctx context.Context) bool {
	wait := 20 * time.Millisecond
	for began := time.Now(); ; {
		if p.PID() != 0 {
			if p.cfg.Ready == nil {
				return true
			}
			err := p.cfg.Ready(ctx)
			if err == nil {
				return true
			}
			p.cfg.Log.Debug("child process not ready", "reason", err, "after", time.Since(began))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
		wait = min(wait*5/4, time.Second)
	}
}

// once runs the process until it ends; ctx stops it.
func (p *Process) once(ctx context.Context, out *output) (started bool, err error) {
	if p.cfg.Cgroup != "" {
		if err := cgroup.KillAll(ctx, p.cfg.Cgroup); err != nil {
			return false, fmt.Errorf("%s: end what was left of it: %w", p.cfg.Name, err)
		}
	}
	cmd := exec.Command(p.cfg.Path, p.cfg.Args...)
	cmd.Env, cmd.Dir = p.cfg.Env, p.cfg.Dir
	stdout, stderr := out.stream("stdout"), out.stream("stderr")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// What the child started may hold our pipes open after it has died.
	cmd.WaitDelay = 2 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// An own process group: Ctrl-C on our terminal is not for the child, and
		// one signal reaches all that it started.
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
	}
	if p.cfg.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(p.cfg.UID), Gid: uint32(p.cfg.UID)}
	}

	exited := make(chan error, 1)
	startErr := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the *thread* that forked ends
		// (golang/go#27505), so this thread must live as long as the child: it is
		// locked, and waits.
		err := p.onThread(func() error {
			err := p.giveUpPrivileges()
			if err == nil {
				err = p.start(cmd)
			}
			startErr <- err
			if err == nil {
				// Elsewhere: this thread may see as little as the child.
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					p.awaitEnd(ctx, cmd.Process.Pid)
					err := cmd.Wait()
					stdout.flush()
					stderr.flush()
					exited <- err
				}()
				<-ended
			}
			return nil
		})
		if err != nil {
			startErr <- err // fn did not run
		}
	}()
	if err := <-startErr; err != nil {
		return false, fmt.Errorf("start %s: %w", p.cfg.Name, err)
	}
	pid := cmd.Process.Pid
	p.starts.Add(1)
	p.pid.Store(int64(pid))
	defer p.pid.Store(0)
	p.cfg.Log.Debug("child process started", "pid", pid)
	if p.cfg.OnStart != nil {
		p.cfg.OnStart(pid)
	}

	select {
	case err = <-exited:
		if err == nil {
			err = errors.New("exited with status 0")
		}
		return true, err
	case <-ctx.Done():
	}
	began := time.Now()
	if errors.Is(context.Cause(ctx), ErrUnneeded) {
		killGroup(pid, syscall.SIGKILL)
		err = <-exited
	} else {
		killGroup(pid, syscall.SIGTERM)
		select {
		case err = <-exited:
		case <-time.After(p.cfg.StopTimeout):
			p.cfg.Log.Warn("child process did not stop when asked; killed", "after", p.cfg.StopTimeout)
			killGroup(pid, syscall.SIGKILL)
			err = <-exited
		}
	}
	p.cfg.Log.Debug("child process stopped", "took", time.Since(began))
	return true, err
}

// onThread runs fn on a locked OS thread in the child's network namespace. That of a
// confined child gives up its privileges and must end, so it is never the process's first.
func (p *Process) onThread(fn func() error) error {
	if p.cfg.Netns == "" {
		return thread.Do(func() (clean bool, err error) { return true, fn() })
	}
	ns, err := netns.OpenPath(p.cfg.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// confined says whether the thread that starts the child has less than ours after.
func (p *Process) confined() bool { return p.cfg.UID != 0 || p.cfg.Root != nil }

// giveUpPrivileges keeps what a confined child runs from gaining any. The calling
// thread, which must be locked, passes that on, and ends with its goroutine.
func (p *Process) giveUpPrivileges() error {
	if !p.confined() {
		return nil
	}
	runtime.LockOSThread() // once more than it is unlocked
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// startHere starts cmd from the calling thread, with what the child sees.
func (p *Process) startHere(cmd *exec.Cmd) error {
	if p.cfg.Root != nil {
		if err := p.cfg.Root.enter(p.cfg.Path, p.cfg.Dir); err != nil {
			return err
		}
	}
	return cmd.Start()
}

// start starts cmd in its cgroup.
func (p *Process) start(cmd *exec.Cmd) error {
	if p.cfg.Cgroup == "" {
		return p.startHere(cmd)
	}
	group, err := cgroup.Create(p.cfg.Cgroup)
	if err != nil {
		return err
	}
	defer group.Close()
	if p.cfg.MemoryMax > 0 {
		if err := group.LimitMemory(p.cfg.MemoryMax); err != nil {
			p.cfg.Log.Warn("the child's memory has no bound", "err", err)
		}
	}
	if p.cfg.TasksMax > 0 {
		if err := group.LimitTasks(p.cfg.TasksMax); err != nil {
			p.cfg.Log.Warn("the child's tasks have no bound", "err", err)
		}
	}
	if fd, ok := group.FD(); ok {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
		return p.startHere(cmd)
	}
	// Version 1 has no way to start a process in a cgroup. Moving the forking
	// thread there first makes the child be born there: a child inherits its
	// parent thread's cgroups, so it can't get away by forking early.
	restore, err := group.EnterThread()
	if err != nil {
		return err
	}
	err = p.startHere(cmd)
	if rerr := restore(); rerr != nil {
		p.cfg.Log.Warn("thread stays in the child's cgroup", "err", rerr)
	}
	return err
}

// awaitEnd waits until the child has ended, then ends what it started. The child
// is not reaped yet, so that its id, and its group's, belong to nobody else; and
// nobody holds its output open, so that the Wait that follows is short.
func (p *Process) awaitEnd(ctx context.Context, pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		// A signal came: ask again.
	}
	killGroup(pid, syscall.SIGKILL)
	if p.cfg.Cgroup == "" {
		return
	}
	// Not ctx: it is done when the child is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := cgroup.KillAll(ctx, p.cfg.Cgroup); err != nil {
		p.cfg.Log.Warn("child process left something running", "cgroup", p.cfg.Cgroup, "err", err)
	}
}

// killGroup signals the process group of a child that was not reaped yet.
func killGroup(pid int, sig syscall.Signal) {
	_ = syscall.Kill(-pid, sig) // ESRCH: all have gone already
}
