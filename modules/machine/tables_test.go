package machine

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
)

const (
	holderEnv = "MULTIPAAS_TEST_HOLDER"
	heldEach  = 300
)

// TestHolder is no test: it is a process that holds neighbours in a network namespace.
func TestHolder(t *testing.T) {
	how := os.Getenv(holderEnv)
	if how == "" {
		t.Skip("run by others")
	}
	if err := hold(t, how); err != nil {
		t.Fatal(err)
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func hold(t *testing.T, how string) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	leave := func() error { return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) }
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = "many"
	if err := cmp.Or(netlink.LinkAdd(br), netlink.LinkSetUp(br)); err != nil {
		return err
	}
	for i := range heldEach {
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: br.Index, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(10, 0, byte(i/250), byte(1+i%250)), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}})
		if err != nil {
			return err
		}
	}
	switch how {
	case "lives there", "few":
		return nil
	case "open file":
		f, err := os.Open("/proc/thread-self/ns/net")
		runtime.KeepAlive(f)
		t.Cleanup(func() { f.Close() })
		return errors.Join(err, leave())
	case "socket":
		_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		return errors.Join(err, leave())
	case "mount":
		path := filepath.Join(t.TempDir(), "with a\tspace")
		return cmp.Or(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			os.WriteFile(path, nil, 0o600),
			unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""),
			leave())
	}
	return fmt.Errorf("how is %q?", how)
}

// TestTables: a machine that holds too much of a table is ended, wherever it holds it;
// one with less than its share isn't.
func TestTables(t *testing.T) {
	var log strings.Builder
	s := NewSandbox(Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	// machine is a process in the control group of one.
	machine := func(how string, memory int64) (ended func()) {
		uid := fmt.Sprintf("mptest-%d-%s", os.Getpid(), strings.ReplaceAll(how, " ", "-"))
		m := s.home(uid)
		var rec record
		rec.Machine.UID, rec.Machine.Name, rec.Machine.Spec.Size.MemoryBytes = uid, how, memory
		g, err := cgroup.Create(cgroupName(uid))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(g.Close(), cgroup.Kill(context.WithoutCancel(t.Context()), cgroupName(uid))); err != nil {
				t.Error(err)
			}
		})
		if err := cmp.Or(os.MkdirAll(m.at("disk"), 0o700), atomicfile.WriteJSON(m.at(recordName), rec), os.WriteFile(m.at(consoleName), []byte("hello"), 0o600)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHolder$")
		cmd.Env = append(os.Environ(), holderEnv+"="+how, "TMPDIR="+t.TempDir())
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		runtime.LockOSThread()
		leave, err := g.EnterThread()
		if err == nil {
			err = cmd.Start()
			err = errors.Join(err, leave())
		}
		runtime.UnlockOSThread()
		if err := errors.Join(err1, err2, err); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
			rest, _ := io.ReadAll(out)
			t.Fatalf("%s: %v: %s%s", how, err, line, rest)
		}
		return func() {
			if pids, err := cgroup.Procs(cgroupName(uid)); err != nil || len(pids) > 0 {
				t.Errorf("%s: processes %v are left: %v", how, pids, err)
			}
			text, _ := os.ReadFile(m.at(consoleName))
			if said := lastLine(string(text)); !strings.HasPrefix(said, "ended because it held 3") {
				t.Errorf("%s: its last words are %q", how, said)
			}
		}
	}
	neighbours := tables(1 << 30)[0]
	neighbours.most = heldEach / 2
	neighbours.share = func(memory int64) int { return int(memory) }
	machine("few", heldEach+50) // less than its share; an interface has some by itself
	for _, how := range []string{"lives there", "open file", "socket", "mount"} {
		ended := machine(how, heldEach-1)
		if n, err := allNeighbours(); err != nil || n < 2*heldEach {
			t.Errorf("%s: %d neighbours: %v", how, n, err)
		}
		if err := s.relieve(t.Context(), neighbours); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		ended()
	}
	// Nobody is left who could be ended.
	if err := s.relieve(t.Context(), neighbours); err == nil || !strings.Contains(err.Error(), "of which machines show 3") {
		t.Errorf("with one machine that holds its share: %v", err)
	}
	neighbours.most = 1 << 30
	if err := s.relieve(t.Context(), neighbours); err != nil {
		t.Errorf("below the bound: %v", err)
	}
	if n := strings.Count(log.String(), "ended because"); n != 4 {
		t.Errorf("the log tells of %d:\n%s", n, log.String())
	}
	for _, table := range tables(1 << 34) {
		if n, err := table.all(); err != nil || n < 0 || n > 1<<24 {
			t.Errorf("%d %s: %v", n, table.name, err)
		}
	}
}
