package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ownMounts is set in the process that has them.
const ownMounts = "MULTIPAAS_TEST_OWN_MOUNTS"

// lookEnv is set in a process that looks at machines.
const lookEnv = "MULTIPAAS_TEST_LOOK"

func testLook(args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env, cmd.Stderr = []string{lookEnv + "=1"}, os.Stderr
	return cmd
}

// TestMain runs the tests where nobody else copies their mounts: tests of other
// packages run at the same time, and some make mount namespaces, which then hold a
// machine's disk for as long as they last. On a host with an init system mounts are
// shared, and taking one away reaches the copies.
func TestMain(m *testing.M) {
	if os.Getenv(lookEnv) != "" {
		if err := Look(context.Background(), os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(ownMounts) != "" {
		// Of what others take away meanwhile nothing is held here.
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			fmt.Fprintln(os.Stderr, "own mounts:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the child dies with this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// As an agent is: it leads a session, and has no terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "own mounts:", err)
		os.Exit(1)
	}
}
