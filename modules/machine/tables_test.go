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
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/runc"
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
	if strings.HasPrefix(how, "FUSE") {
		return holdFUSE(t, how)
	}
	if strings.HasPrefix(how, "very many files") {
		const want = 1200
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 2 * want, Max: 2 * want}); err != nil {
			return err
		}
		socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		for i := 0; i < want && err == nil; i++ {
			_, err = unix.Dup(socket)
		}
		return err
	}
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
		if how == "connections" {
			from, to := net.IPv4(10, 0, 0, 1).To4(), net.IPv4(10, 0, 0, 2).To4()
			err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 600,
				Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: from, DstIP: to, SrcPort: uint16(1 + i), DstPort: 53},
				Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: to, DstIP: from, SrcPort: 53, DstPort: uint16(1 + i)},
			})
			if err != nil {
				return err
			}
			continue
		}
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: br.Index, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(10, 0, byte(i/250), byte(1+i%250)), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}})
		if err != nil {
			return err
		}
	}
	switch how {
	case "lives there", "few", "connections":
		return nil
	case "open file":
		f, err := os.Open("/proc/thread-self/ns/net")
		runtime.KeepAlive(f)
		t.Cleanup(func() { f.Close() })
		return errors.Join(err, leave())
	case "socket", "socket again":
		_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		return errors.Join(err, leave())
	case "mount", "pipe over a mount", "terminal over a mount":
		path := filepath.Join(t.TempDir(), "with a\tspace")
		err := cmp.Or(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			os.WriteFile(path, nil, 0o600),
			unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""),
			leave())
		over := filepath.Join(t.TempDir(), "over")
		switch strings.Fields(how)[0] {
		case "mount":
			return err
		case "pipe":
			err = cmp.Or(err, unix.Mkfifo(over, 0o600))
		case "terminal":
			over = terminal(t)
		}
		return cmp.Or(err, unix.Mount(over, path, "", unix.MS_BIND, ""))
	}
	return fmt.Errorf("how is %q?", how)
}

// holder is a machine with one process, which holds something.
func holder(t *testing.T, s *Sandbox, how string, memory int64, first uint32) (uid string) {
	t.Helper()
	uid = fmt.Sprintf("mptest-%d-%s", os.Getpid(), strings.ReplaceAll(how, " ", "-"))
	m := s.home(uid)
	var rec record
	rec.Machine.UID, rec.Machine.Name, rec.Machine.Spec.Size.MemoryBytes, rec.Machine.Spec.FirstUID = uid, how, memory, first
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
	return uid
}

// TestTables: a machine that holds too much of a table is ended, wherever it holds it;
// one with less than its share isn't.
func TestTables(t *testing.T) {
	var log strings.Builder
	s := NewSandbox(Config{Dir: t.TempDir(), Look: testLook, Log: slog.New(slog.NewTextHandler(&log, nil))})
	// machine is a process in the control group of one.
	machine := func(how string, memory int64) (ended func()) {
		uid := holder(t, s, how, memory, 0)
		return func() {
			if pids, err := cgroup.Procs(cgroupName(uid)); err != nil || len(pids) > 0 {
				t.Errorf("%s: processes %v are left: %v", how, pids, err)
			}
			text, _ := os.ReadFile(s.home(uid).at(consoleName))
			if said := runc.LastLine(string(text)); !strings.HasPrefix(said, "ended because it held 3") {
				t.Errorf("%s: its last words are %q", how, said)
			}
		}
	}
	neighbours := tables(1 << 30)[0]
	neighbours.most = heldEach / 2
	neighbours.share = func(memory int64) int { return int(memory) }
	neighbours.files = func(int64) int { return 1000 }
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
	// Nobody is left who could be ended. What others put over their mounts isn't opened.
	for _, how := range []string{"pipe over a mount", "terminal over a mount"} {
		machine(how, heldEach-1)
	}
	if err := s.relieve(t.Context(), neighbours); err == nil || !strings.Contains(err.Error(), "machines show 3") {
		t.Errorf("with one machine that holds its share: %v", err)
	}
	below := neighbours
	below.most = 1 << 30
	if err := s.relieve(t.Context(), below); err != nil {
		t.Errorf("below the bound: %v", err)
	}
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); !errors.Is(err, unix.ENXIO) {
		t.Errorf("the process has a terminal now: %v, %v", tty, err)
	}
	connections := tables(1 << 30)[1]
	connections.most, connections.share = heldEach/2, neighbours.share
	connections.all = func() (int, error) { return heldEach, nil } // the kernel's own number is of the whole host
	ended := machine("connections", heldEach-1)
	if err := s.relieve(t.Context(), connections); err != nil {
		t.Errorf("connections: %v", err)
	}
	ended()
	// Who keeps from being counted is ended when nobody shows why there are so many.
	for _, c := range []struct{ how, said string }{
		{"very many files", "(it has more than 1000 files open)"},
		{"FUSE over a namespace", "(what it has made keeps who looks waiting)"},
		{"FUSE over a namespace, unread", "(again and again nothing is heard of"},
	} {
		uid := holder(t, s, c.how, heldEach+50, 0)
		if strings.Contains(c.how, "unread") {
			s.quiet.Store(uid, tooQuiet-1)
		}
		began := time.Now()
		if err := s.relieve(t.Context(), neighbours); err != nil {
			t.Errorf("%s: %v", c.how, err)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("%s: it took %v", c.how, took)
		}
		text, _ := os.ReadFile(s.home(uid).at(consoleName))
		if said := runc.LastLine(string(text)); !strings.Contains(said, c.said) {
			t.Errorf("%s: its last words are %q", c.how, said)
		}
		if pids, err := cgroup.Procs(cgroupName(uid)); err != nil || len(pids) > 0 {
			t.Errorf("%s: processes %v are left: %v", c.how, pids, err)
		}
		if _, busy := s.looking.Load(uid); busy {
			t.Errorf("%s: who looked waits still", c.how)
		}
	}
	// One that holds more is ended, and not who only hides.
	hides := holder(t, s, "very many files again", heldEach+50, 0)
	ended = machine("socket again", heldEach-1)
	if err := s.relieve(t.Context(), neighbours); err != nil {
		t.Error(err)
	}
	ended()
	if pids, err := cgroup.Procs(cgroupName(hides)); err != nil || len(pids) == 0 {
		t.Errorf("who has many files open was ended: %v", err)
	}
	// Nor does he answer for what others show, each less than its share.
	explained := neighbours
	explained.all = func() (int, error) { return heldEach + 40, nil }
	if err := s.relieve(t.Context(), explained); err == nil || !strings.Contains(err.Error(), "show") {
		t.Errorf("when the others show why: %v", err)
	}
	if pids, err := cgroup.Procs(cgroupName(hides)); err != nil || len(pids) == 0 {
		t.Errorf("who has many files open was ended for what others show: %v", err)
	}
	// What the kernel doesn't tell is said once.
	secret := connections
	secret.all = func() (int, error) { return 0, &os.PathError{Op: "open", Path: "/proc/slabinfo", Err: unix.EACCES} }
	for range 2 {
		if err := s.relieve(t.Context(), secret); err != nil {
			t.Errorf("what can't be counted: %v", err)
		}
	}
	if n := strings.Count(log.String(), "does not say how full"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if n := strings.Count(log.String(), "ended because"); n != 9 {
		t.Errorf("the log tells of %d:\n%s", n, log.String())
	}
	for _, table := range tables(1 << 34) {
		if n, err := table.all(); err != nil || n < 0 || n > 1<<24 {
			t.Errorf("%d %s: %v", n, table.name, err)
		}
	}
}

// terminal is the side of a new one that programs open.
func terminal(t *testing.T) (path string) {
	t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	number, err := unix.IoctlGetInt(int(host.Fd()), unix.TIOCGPTN)
	if err := cmp.Or(err, unix.IoctlSetPointerInt(int(host.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/dev/pts/%d", number)
}
