// Package runc starts and ends containers by the payload's runc command. What it has started
// is not our child, and stays when we go.
//
// Parties: parts that run programs in containers which outlive this process. Any package may
// import it; it imports leaves only. It keeps nothing; calls for one container follow one
// another.
package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/child"
)

// timeout bounds one call. A start takes 0.1 s, 2 s on a busy machine.
const timeout = time.Minute

// Runc is the command, and where it keeps its state.
type Runc struct {
	Binary string
	Root   string // does not survive a reboot
}

// Container is what runc knows of one.
type Container struct {
	PID     int       `json:"pid"`
	Status  string    `json:"status"` // created, running, stopped, paused
	Created time.Time `json:"created"`
}

// Running says whether its first process lives, and isn't about to end.
func (c Container) Running() bool { return c.Status == "running" || c.Status == "paused" }

// InNetwork says whether it is in the network namespace that stands at path.
func (c Container) InNetwork(path string) (bool, error) {
	want, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", c.PID))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // ended meanwhile
	}
	return err == nil && os.SameFile(want, have), err
}

// Command is a call of runc that is not made yet.
func (r Runc) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.Binary, append([]string{"--root", r.Root}, args...)...)
	// Nothing of the agent's environment, which holds secrets. XDG_RUNTIME_DIR
	// would move its state.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

func (r Runc) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := r.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := child.Command(cmd); err != nil {
		return nil, fmt.Errorf("runc %s: %w: %s", args[0], err, LastLine(errOut.String()))
	}
	return out.Bytes(), nil
}

// State returns the container; ok is false if there is none.
func (r Runc) State(ctx context.Context, id string) (c Container, ok bool, err error) {
	if _, err := os.Stat(filepath.Join(r.Root, id)); errors.Is(err, fs.ErrNotExist) {
		return c, false, nil
	}
	out, err := r.run(ctx, "state", id)
	if err != nil {
		if _, err2 := os.Stat(filepath.Join(r.Root, id, "state.json")); errors.Is(err2, fs.ErrNotExist) {
			return c, false, nil // killed before it wrote anything, or gone meanwhile
		}
		return c, false, err
	}
	if err := json.Unmarshal(out, &c); err != nil {
		return c, false, fmt.Errorf("runc state %s: %w", id, err)
	}
	if c.Running() && ending(c.PID) {
		c.Status = "stopped"
	}
	return c, true, nil
}

// ending says whether a process is on its way out. The first of a pid namespace stays so until
// all others have ended, which may be never (they wait for a FUSE that nobody serves), and is taken
// for one that runs by runc.
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

// Start runs the process of a bundle, a folder with its config.json, and returns when it runs.
// Its output goes to the file console.
func (r Runc) Start(ctx context.Context, id, bundle, console string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := os.MkdirAll(r.Root, 0o700); err != nil {
		return err
	}
	log := filepath.Join(bundle, "runc.log") // of this start alone
	if err := os.RemoveAll(log); err != nil {
		return err
	}
	out, err := os.OpenFile(console, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := r.Command(ctx, "--log", log, "run", "--detach", "--bundle", bundle, id)
	// The container inherits both. A pipe would break when we end.
	cmd.Stdout, cmd.Stderr = out, out
	if err := child.Command(cmd); err != nil {
		return fmt.Errorf("runc run: %w: %s", err, LastLine(readLog(log)))
	}
	return nil
}

// readLog reads what runc has written, 1 MiB at most.
func readLog(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(text)
}

// Delete takes the container away, killing it first. None there is no error.
func (r Runc) Delete(ctx context.Context, id string) error {
	_, err := r.run(ctx, "delete", "--force", id)
	dir := filepath.Join(r.Root, id)
	if _, err2 := os.Stat(filepath.Join(dir, "state.json")); errors.Is(err2, fs.ErrNotExist) {
		return os.RemoveAll(dir) // what a killed runc left
	}
	return err
}

// LastLine is the last line of what a program said, of which 500 bytes at most.
func LastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 500)]
}
