package gluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

const (
	// hostEnv is set in a process that does the same again and again until it is killed: what it
	// says.
	hostEnv = "MULTIPAAS_TEST_STORAGE"
	// mountsEnv is set in processes with mounts of their own: "host" or "unit".
	mountsEnv = "MULTIPAAS_TEST_MOUNTS"
)

type job struct {
	Config  HostConfig
	Mount   Mount // to mount and unmount; none: glusterd is started and stopped
	Servers []netip.Addr
}

// TestMain runs the tests as an agent runs: in a copy of the host's mounts, all of which are
// shared. And the host's are not this machine's: tests of other packages, which copy those, would hold
// what is mounted here for as long as they last.
func TestMain(m *testing.M) {
	if text := os.Getenv(hostEnv); text != "" {
		work(text)
	}
	if text := os.Getenv(stepEnv); text != "" {
		if err := takeStep(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	switch os.Getenv(mountsEnv) {
	case "":
		err = below("host")
	case "host":
		err = errors.Join(unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""), unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
		if err == nil {
			err = below("unit", fmt.Sprintf("%s=/proc/%d/ns/mnt", hostmount.Variable, os.Getpid()))
		}
	default:
		err = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
		if err == nil {
			os.Exit(m.Run())
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "own mounts:", err)
		os.Exit(1)
	}
}

// below runs the tests in a process with mounts of its own.
func below(as string, env ...string) error {
	runtime.LockOSThread() // the child dies with this thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), mountsEnv+"="+as), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	return cmd.Run()
}

// work does a job until it is killed.
func work(text string) {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		panic(err)
	}
	h, ctx := NewHost(j.Config), context.Background()
	for {
		var err error
		if j.Mount == (Mount{}) {
			_, err = h.Ensure(ctx, true)
			err = errors.Join(err, h.Stop(ctx))
		} else {
			err = errors.Join(h.Mount(ctx, j.Mount, nil, j.Servers), h.Unmount(ctx, j.Mount))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}
