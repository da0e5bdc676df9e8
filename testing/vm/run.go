package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Result is how a command in a machine went.
type Result struct {
	Args     []string
	Code     int // its exit status, or 128 and its signal
	Out, Err string
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.Args, " "), r.Code, r.Out, r.Err)
}

// Run runs a command in the machine, as root and without a shell, with input on
// its standard input. It waits for the machine to come up first, until ctx is
// done. The error says that we don't know how the command went; one that failed
// is a Result.
func (v *VM) Run(ctx context.Context, input string, args ...string) (Result, error) {
	r := Result{Args: args}
	agent, err := v.reach(ctx)
	if err != nil {
		return r, err
	}
	request := map[string]any{"path": args[0], "arg": args[1:], "capture-output": true,
		"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}}
	if input != "" {
		request["input-data"] = []byte(input)
	}
	var started struct {
		PID int `json:"pid"`
	}
	if err := v.ask(agent, "guest-exec", request, &started); err != nil {
		return r, fmt.Errorf("%s in %s: %w", strings.Join(args, " "), v.cfg.Name, err)
	}
	for wait := 20 * time.Millisecond; ; wait = min(wait*3/2, time.Second) {
		var s struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Signal int    `json:"signal"`
			Out    []byte `json:"out-data"`
			Err    []byte `json:"err-data"`
		}
		if err := v.ask(agent, "guest-exec-status", map[string]any{"pid": started.PID}, &s); err != nil {
			return r, fmt.Errorf("%s in %s: %w", strings.Join(args, " "), v.cfg.Name, err)
		}
		if s.Exited {
			r.Code, r.Out, r.Err = s.Code, string(s.Out), string(s.Err)
			if s.Signal != 0 {
				r.Code = 128 + s.Signal
			}
			return r, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return r, fmt.Errorf("%s in %s: %w", strings.Join(args, " "), v.cfg.Name, ctx.Err())
		}
	}
}

// answerTime is for one answer of the agent, which only starts commands and
// says how they are. An emulated machine that is busy has been seen to take
// ten seconds for it.
const answerTime = 3 * time.Minute

func (v *VM) ask(agent *wire, command string, arguments, out any) error {
	err := agent.call(answerTime, command, arguments, out)
	var no *refused
	if err != nil && !errors.As(err, &no) { // the wire is of no more use
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.agent == agent {
			v.hangUp()
		}
	}
	return err
}

// reach returns a wire to the agent, once that answers.
func (v *VM) reach(ctx context.Context) (*wire, error) {
	began := time.Now()
	for {
		// A machine that is slow to come up is slow to answer, too.
		agent, err := v.knock(2*time.Second + time.Since(began)/10)
		if err == nil {
			return agent, nil
		}
		if errors.Is(err, errEnded) {
			return nil, fmt.Errorf("%s: %w\n%s", v.cfg.Name, err, v.lastWords())
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not answer: %w: %w\n%s", v.cfg.Name, ctx.Err(), err, v.lastWords())
		}
	}
}

// errEnded is returned when there is no QEMU any more: the machine has crashed,
// or shut down by itself.
var errEnded = errors.New("QEMU has ended")

// knock returns the wire that is there, or dials one and tries it.
func (v *VM) knock(patience time.Duration) (*wire, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return nil, errors.New("it is off")
	}
	select {
	case <-v.qemu.ended:
		return nil, fmt.Errorf("%w: %s", errEnded, v.qemu.said())
	default:
	}
	if v.agent != nil {
		return v.agent, nil
	}
	agent, err := dial(v.file("agent"))
	if err != nil {
		return nil, err
	}
	// One that was asked by a former wire may still answer to that.
	token := time.Now().UnixNano() >> 16
	for range 100 {
		var back int64
		if err = agent.call(patience, "guest-sync", map[string]any{"id": token}, &back); err != nil || back == token {
			break
		}
	}
	if err != nil {
		agent.close()
		return nil, err
	}
	v.agent = agent
	return agent, nil
}

// Must runs a command that has to do well, and returns its output without the
// last newline.
func (v *VM) Must(ctx context.Context, args ...string) (string, error) {
	r, err := v.Run(ctx, "", args...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", v.cfg.Name, err)
	}
	return strings.TrimSuffix(r.Out, "\n"), nil
}

// Write puts a file into the machine, for root alone.
func (v *VM) Write(ctx context.Context, file, text string) error {
	r, err := v.Run(ctx, text, "install", "-D", "-m", "600", "/dev/stdin", file)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	return err
}

// Settled waits until systemd has done all of the boot, and all of it well.
func (v *VM) Settled(ctx context.Context) error {
	r, err := v.Run(ctx, "", "systemctl", "is-system-running", "--wait")
	if err != nil {
		return err
	}
	if state := strings.TrimSpace(r.Out); state != "running" {
		failed, _ := v.Must(ctx, "systemctl", "--failed", "--plain", "--no-legend")
		return fmt.Errorf("%s: systemd says %s, want running; failed: %s", v.cfg.Name, state, failed)
	}
	return nil
}

// Reboot has the machine shut itself down and boot again, and returns when it
// answers. QEMU ends when the machine resets itself and is started anew, so
// nothing is asked of an agent that is about to go.
func (v *VM) Reboot(ctx context.Context) error {
	v.mu.Lock()
	q := v.qemu
	v.mu.Unlock()
	if q == nil {
		return fmt.Errorf("%s is off", v.cfg.Name)
	}
	if _, err := v.Must(ctx, "systemctl", "reboot", "--no-block"); err != nil {
		// It may go before it has told how the command went: the connection breaks
		// off a moment before QEMU's process is over.
		select {
		case <-q.ended:
		case <-time.After(10 * time.Second):
			return err
		case <-ctx.Done():
			return err
		}
	}
	select {
	case <-q.ended:
	case <-ctx.Done():
		return fmt.Errorf("%s does not shut down: %w\n%s", v.cfg.Name, ctx.Err(), v.lastWords())
	}
	if code := q.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s: QEMU ended with %d when the machine shut down: %s", v.cfg.Name, code, q.said())
	}
	v.Cut()
	if err := v.Power(); err != nil {
		return err
	}
	_, err := v.Must(ctx, "true")
	return err
}

// Processor is how long the processors of this machine have worked for v: it
// says more than time where others work too.
func (v *VM) Processor() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return v.spent
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.qemu.cmd.Process.Pid))
	if err != nil {
		return v.spent
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the name may have spaces in it
	f := strings.Fields(after)
	if len(f) < 13 {
		return v.spent
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return v.spent + time.Duration(user+system)*10*time.Millisecond // USER_HZ is 100 for everybody
}

// lastWords is the end of the console, for errors.
func (v *VM) lastWords() string {
	f, err := os.Open(v.Console())
	if err != nil {
		return ""
	}
	defer f.Close()
	const end = 3000
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	text := make([]byte, min(end, info.Size()))
	n, _ := f.ReadAt(text, info.Size()-int64(len(text)))
	return "the end of its console:\n" + string(text[:n])
}
