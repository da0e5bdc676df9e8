package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
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
	err := onThread(func() (clean bool, err error) {
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
