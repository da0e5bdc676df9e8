package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/thread"
)

// inUnit says what a process that TestNamesOutliveUnit has started is for.
const inUnit = "MPTEST_IN_UNIT"

func TestMain(m *testing.M) {
	name := "mptest-unit"
	switch os.Getenv(inUnit) {
	case "":
		os.Exit(m.Run())
	case "make":
		plain, err := Create(name)
		owned, err2 := CreateOwned(name+"-owned", 0x0fff_0000, 65536)
		if err := errors.Join(err, err2); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(plain.Name(), owned.Name())
	case "look":
		fmt.Println(look(os.Args[1:]))
	case "remove":
		for _, name := range []string{name, name + "-owned"} {
			ns, err := Open(name)
			if err == nil {
				err = errors.Join(ns.Close(), Remove(name))
			}
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
	os.Exit(0)
}

// TestNamesOutliveUnit: what a process names whose mounts are its own, as those of
// our units are, the host sees, and so does the unit's next process.
func TestNamesOutliveUnit(t *testing.T) {
	err := thread.Do(func() (clean bool, err error) {
		// A host that has nothing to do with this machine's /run/netns.
		err = errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=1m"),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
		if err != nil {
			return false, err
		}
		host, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
		if err != nil {
			return false, err
		}
		defer host.Close()
		// unit runs a process in mounts of its own, and comes back.
		unit := func(what string) error {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), inUnit+"="+what, hostmount.Variable+"=/proc/self/fd/3")
			cmd.ExtraFiles = []*os.File{host}
			if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")); err != nil {
				return err
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s in a unit: %w: %s", what, err, out)
			}
			return errors.Join(err, unix.Setns(int(host.Fd()), unix.CLONE_NEWNS))
		}
		names := func() string {
			all, err := List("mptest-unit")
			for _, name := range all {
				ns, err2 := Open(name)
				if err2 == nil {
					err2 = ns.Close()
				}
				err = errors.Join(err, err2)
			}
			if err != nil {
				t.Error(err)
			}
			return strings.Join(all, " ")
		}
		if err := unit("make"); err != nil {
			return false, err
		}
		if got, want := names(), "mptest-unit mptest-unit-owned"; got != want {
			t.Errorf("a unit has made namespaces and ended: the host sees %q, want %q", got, want)
		}
		if err := unit("remove"); err != nil {
			return false, err
		}
		if got := names(); got != "" {
			t.Errorf("the next one has removed them: the host still sees %q", got)
		}
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// look opens each of paths as a namespace and says which isn't refused as none, and
// whether the process has a terminal now.
func look(paths []string) string {
	for _, path := range paths {
		ns, err := OpenPath(path)
		if err == nil {
			ns.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("%s: %v", path, err)
		}
	}
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); !errors.Is(err, unix.ENXIO) {
		return fmt.Sprintf("it has a terminal: %v, %v", tty, err)
	}
	return "fine"
}

// TestOpensNamespacesOnly: what a tenant puts in a namespace's place stops nobody who
// opens it, by a pipe that nobody writes to or a terminal that he hangs up.
func TestOpensNamespacesOnly(t *testing.T) {
	dir := t.TempDir()
	pipe, device := filepath.Join(dir, "pipe"), filepath.Join(dir, "device")
	host, slave, err := terminal()
	if err := errors.Join(err, unix.Mkfifo(pipe, 0o600), unix.Mknod(device, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))); err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// As a service is it leads a session and has no terminal.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", slave, pipe, device, dir, "/dev/null", "/proc/self/exe")
	cmd.Env = append(os.Environ(), inUnit+"=look")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "fine\n" {
		t.Errorf("%v: %s", err, out)
	}
	ns, err := OpenPath("/proc/self/ns/user")
	if err == nil {
		ns.Close()
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a namespace of users: %v", err)
	}
}

// terminal makes one: slave is the path of the side that programs open.
func terminal() (host *os.File, slave string, err error) {
	host, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, "", err
	}
	number, err := unix.IoctlGetInt(int(host.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(host.Fd()), unix.TIOCSPTLCK, 0)
	}
	return host, fmt.Sprintf("/dev/pts/%d", number), err
}
