package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/child"
)

// runcTimeout bounds one call. A start takes 0.1 s, 2 s on a busy machine.
const runcTimeout = time.Minute

// runc starts and ends containers by the payload's runc command.
type runc struct {
	binary string
	root   string // where it keeps its state
}

// container is what runc knows of one.
type container struct {
	PID     int       `json:"pid"`
	Status  string    `json:"status"` // created, running, stopped, paused
	Created time.Time `json:"created"`
}

func (c container) running() bool { return c.Status == "running" || c.Status == "paused" }

func (r runc) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.binary, append([]string{"--root", r.root}, args...)...)
	// Nothing of the agent's environment, which holds secrets. XDG_RUNTIME_DIR
	// would move its state.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

func (r runc) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runcTimeout)
	defer cancel()
	cmd := r.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := child.Command(cmd); err != nil {
		return nil, fmt.Errorf("runc %s: %w: %s", args[0], err, lastLine(errOut.String()))
	}
	return out.Bytes(), nil
}

// state returns the container; ok is false if there is none.
func (r runc) state(ctx context.Context, id string) (c container, ok bool, err error) {
	if _, err := os.Stat(filepath.Join(r.root, id)); errors.Is(err, fs.ErrNotExist) {
		return c, false, nil
	}
	out, err := r.run(ctx, "state", id)
	if err != nil {
		if _, err2 := os.Stat(filepath.Join(r.root, id, "state.json")); errors.Is(err2, fs.ErrNotExist) {
			return c, false, nil // killed before it wrote anything, or gone meanwhile
		}
		return c, false, err
	}
	if err := json.Unmarshal(out, &c); err != nil {
		return c, false, fmt.Errorf("runc state %s: %w", id, err)
	}
	if c.running() && ending(c.PID) {
		c.Status = "stopped"
	}
	return c, true, nil
}

// ending says whether a process is on its way out. The first of a machine stays so until all
// others have ended, which may be never (Sandbox.kill), and is taken for one that runs by runc.
func ending(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // proc_pid_stat(5): the name may hold anything
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if err != nil || len(f) < 7 {
		return false
	}
	const exiting = 0x4 // PF_EXITING
	flags, err := strconv.ParseUint(f[6], 10, 64)
	return err == nil && flags&exiting != 0
}

// start runs the bundle's process and returns when it runs. Its output goes to
// the file console.
func (r runc) start(ctx context.Context, id, bundle, console string) error {
	ctx, cancel := context.WithTimeout(ctx, runcTimeout)
	defer cancel()
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(console, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := r.command(ctx, "--log", filepath.Join(bundle, "runc.log"), "run", "--detach", "--bundle", bundle, id)
	// The container inherits both. A pipe would break when we end.
	cmd.Stdout, cmd.Stderr = out, out
	if err := child.Command(cmd); err != nil {
		text, _ := readBounded(filepath.Join(bundle, "runc.log"), 1<<20)
		return fmt.Errorf("runc run: %w: %s", err, lastLine(string(text)))
	}
	return nil
}

// delete takes the container away, killing it first. None there is no error.
func (r runc) delete(ctx context.Context, id string) error {
	_, err := r.run(ctx, "delete", "--force", id)
	dir := filepath.Join(r.root, id)
	if _, err2 := os.Stat(filepath.Join(dir, "state.json")); errors.Is(err2, fs.ErrNotExist) {
		return os.RemoveAll(dir) // what a killed runc left
	}
	return err
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 500)]
}
