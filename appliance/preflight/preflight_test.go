package preflight

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

func TestAllAreReportedAtOnce(t *testing.T) {
	ran := 0
	check := func(name string, warn bool, err error) Check {
		return Check{Name: name, Warn: warn, Remedy: "mend " + name, Run: func(context.Context) error { ran++; return err }}
	}
	results := Run(t.Context(), []Check{
		check("one", false, errors.New("is broken")), check("two", false, nil), check("three", true, errors.New("could be better")),
		check("four", false, &Skipped{"no way to tell"}), check("five", false, errors.New("is broken too")),
	})
	if ran != 5 {
		t.Errorf("made %d checks, want 5", ran)
	}
	const want = "failed   one: is broken: mend one\nok       two\nwarning  three: could be better: mend three\nskipped  four: no way to tell\nfailed   five: is broken too: mend five\n"
	var b bytes.Buffer
	if err := Render(&b, results); err != nil || b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
	err := errors.Join(Failures(results)...)
	if err == nil || !strings.Contains(err.Error(), "preflight: one: is broken: mend one\npreflight: five") || strings.Contains(err.Error(), "three") {
		t.Errorf("got %v, want both failures and no warning", err)
	}
	if errs := Failures(results[1:3]); errs != nil {
		t.Errorf("got %v, want none", errs)
	}
}

// On a machine that builds this project every check that may stop the appliance
// goes well, but for the size of its disk and memory.
func TestThisMachine(t *testing.T) {
	for _, r := range Run(t.Context(), append(Server(t.TempDir(), []string{"127.0.0.1:0"}), Node(t.TempDir())...)) {
		if r.State == Failed && r.Name != "disk" {
			t.Errorf("%s", r)
		}
		t.Logf("%s %s", r.State, r)
	}
}

func TestChecksFail(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	past := func() time.Time { return time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC) }
	far := func() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		check Check
		want  string
	}{
		{Ports(ln.Addr().String(), "192.0.2.1:1"), "is taken, 192.0.2.1:1 is no address of this machine"},
		{Disk(filepath.Join(t.TempDir(), "not", "there", "yet"), 1<<62), "GiB free, needs"},
		{Kernel(99, 0), "Linux "},
		{capabilities(map[int]string{unix.CAP_LAST_CAP + 1: "CAP_NONE"}), "lacks CAP_NONE"},
		{Filesystems("overlay", "nosuchfs"), "the kernel has no nosuchfs"},
		{KernelModules(Module{"nosuchmodule", "/no/such/file"}), "the kernel has no nosuchmodule"},
		{clock(stamp(), past), "before this program was made"},
		{clock(stamp(), far), "can't be"},
		{OpenFiles(1 << 62), "the limit is"},
		{Memory(1 << 62), "GiB, needs"},
		{Inotify(1 << 62), "fs.inotify.max_user_instances is"},
	} {
		err := c.check.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.check.Name, err, c.want)
		}
		if c.check.Remedy == "" {
			t.Errorf("%s: no remedy", c.check.Name)
		}
	}
}

func TestOlderKernels(t *testing.T) {
	for release, want := range map[string]bool{
		"4.18.0-553.el8_10.x86_64": true, "5.7.19": true, "5.8.0": false, "5.10.0-23-amd64": false, "6.1.0-49-cloud-amd64": false, "6.18": false,
		"new": false,
	} {
		if got := older(release, 5, 8); got != want {
			t.Errorf("%s is older than 5.8: got %t, want %t", release, got, want)
		}
	}
}

// A unit that can't reach the host's mounts is told before anything is mounted.
func TestHostMountsOutOfReach(t *testing.T) {
	t.Setenv(hostmount.Variable, "/nonexistent")
	if err := hostMounts.Run(t.Context()); err == nil {
		t.Error("mounts by a file that is not there are taken for the host's")
	}
}
