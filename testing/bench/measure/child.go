package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/multipaas/multipaas/appliance/netns"
)

// Net is a network namespace with nothing but a loopback device: what is
// measured in it meets nobody else's traffic and takes nobody's ports.
type Net struct {
	*netns.NS
	dir string
}

const netPrefix = "mpbench-"

// NewNet makes a namespace with addresses, "10.42.0.2/32" say, on its loopback.
// It removes those that runs which were killed have left.
func NewNet(ctx context.Context, env *Env, addresses ...string) (*Net, error) {
	old, err := netns.List(netPrefix)
	if err != nil {
		return nil, err
	}
	for _, name := range old {
		pid, _ := strconv.Atoi(strings.TrimPrefix(name, netPrefix))
		if syscall.Kill(pid, 0) != nil {
			if err := netns.Remove(name); err != nil {
				return nil, err
			}
		}
	}
	ns, err := netns.Create(netPrefix + strconv.Itoa(os.Getpid()))
	if err != nil {
		return nil, err
	}
	n := &Net{NS: ns, dir: env.Dir}
	for _, a := range append([]string{""}, addresses...) {
		args := []string{"ip", "link", "set", "lo", "up"}
		if a != "" {
			args = []string{"ip", "address", "add", a, "dev", "lo"}
		}
		if out, err := n.Command(ctx, nil, args...).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("exists")) {
			return nil, errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out)), n.Remove())
		}
	}
	return n, nil
}

// Remove ends the namespace.
func (n *Net) Remove() error { return errors.Join(n.Close(), netns.Remove(n.Name())) }

// Command is a command inside the namespace, on the given cores; none is all.
// It becomes the program itself, so that its process is the program's.
func (n *Net) Command(ctx context.Context, cores []int, args ...string) *exec.Cmd {
	full := []string{"nsenter", "--net=" + n.Path()}
	if len(cores) > 0 {
		var list []string
		for _, c := range cores {
			list = append(list, strconv.Itoa(c))
		}
		full = append(full, "taskset", "-c", strings.Join(list, ","))
	}
	full = append(full, args...)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	// It must not outlive us, whatever becomes of us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Halves are the cores of what is measured and those of the rest, load and
// apps. With one core they are the same.
func Halves() (measured, rest []int) {
	n := runtime.NumCPU()
	for i := range n {
		if i < max(1, n/2) {
			measured = append(measured, i)
		} else {
			rest = append(rest, i)
		}
	}
	if len(rest) == 0 {
		rest = measured
	}
	return measured, rest
}

// Child is a program that runs while something is measured.
type Child struct {
	Name string
	PID  int
	log  string
	done chan struct{}
	err  error // after done
}

// Start starts a command; what it prints goes to a file of the run.
func Start(env *Env, name string, cmd *exec.Cmd) (*Child, error) {
	c := &Child{Name: name, log: filepath.Join(env.Dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread that started the
		// child ends, so that one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c.PID = cmd.Process.Pid
	return c, nil
}

// Await asks until ask returns nil, the child has ended or patience is over.
func (c *Child) Await(ctx context.Context, patience time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s has ended: %w\n%s", c.Name, errors.Join(c.err, err), c.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready within %s: %w\n%s", c.Name, patience, err, c.Tail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Tail is the end of what it has printed.
func (c *Child) Tail() string {
	data, _ := os.ReadFile(c.log)
	return string(data[max(0, len(data)-2000):])
}

// Stop asks it to end, and makes it after a while.
func (c *Child) Stop() error {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		// Gone already is what we want.
		if err := syscall.Kill(c.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s: %w", c.Name, err)
		}
		select {
		case <-c.done:
			return nil
		case <-time.After(10 * time.Second):
		}
	}
	return fmt.Errorf("stop %s: process %d does not end", c.Name, c.PID)
}
