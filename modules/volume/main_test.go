package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	ownMounts = "MULTIPAAS_TEST_OWN_MOUNTS" // is set in the process that has them
	stepEnv   = "MULTIPAAS_TEST_STEP"       // is set in one that takes a step
)

// TestMain runs the tests where nobody else copies their mounts: see modules/machine.
func TestMain(m *testing.M) {
	if text := os.Getenv(stepEnv); text != "" {
		if err := takeStep(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(ownMounts) != "" {
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			fmt.Fprintln(os.Stderr, "own mounts:", err)
			os.Exit(1)
		}
		code := m.Run()
		if unpackedTo != "" {
			_ = os.RemoveAll(unpackedTo)
		}
		os.Exit(code)
	}
	runtime.LockOSThread() // the child dies with this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "own mounts:", err)
		os.Exit(1)
	}
}

// step is what a process does, which may be killed on the way.
type step struct {
	Dir, Machines, Root string
	Do, Machine         string // what, and of which machine if it is of one
	SizeBytes           int64
}

func takeStep(text string) error {
	var s step
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	if err := failpoint.Arm(os.Getenv(failpoint.Variable), slices.Concat(Failpoints(), diskimage.Failpoints())); err != nil {
		return err
	}
	h := newHost(s.Dir, s.Machines, s.Root)
	v := testVolume(s.SizeBytes)
	if s.Do, v.Encrypted = strings.CutPrefix(s.Do, "encrypted "); v.Encrypted { // with a key that all steps have
		h.cfg.Encryption = Encryption{Tools: h.cfg.Tools,
			Key: func(context.Context, string, string) ([]byte, error) { return bytes.Repeat([]byte("k"), 64), nil }}
	}
	s.Do, v.Block = strings.CutPrefix(s.Do, "blocks: ")
	switch s.Do {
	case "unpack": // an image's layout: testing/vm has no other way
		root, err := (rootfs.Store{Dir: s.Dir}).Unpack(context.Background(), s.Root)
		if err == nil {
			err = os.Symlink(root, s.Machines)
		}
		return err
	case "ensure":
		return h.Ensure(context.Background(), v)
	case "snapshot":
		for {
			err := h.Ensure(context.Background(), testSnapshot)
			if err == nil || !strings.Contains(err.Error(), copyingText) {
				return err
			}
		}
	case "attach":
		return h.Attach(testUID, s.Machine)
	case "detach":
		return h.Detach(testUID, s.Machine)
	case "remove":
		return h.Remove(context.Background(), wire.Volume{UID: testUID})
	}
	return fmt.Errorf("step %q", s.Do)
}
