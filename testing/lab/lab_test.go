package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/wait"
)

func TestMain(m *testing.M) {
	Hook()
	os.Exit(m.Run())
}

func hosts(t *testing.T, l *Lab, names ...string) (all []*Host) {
	t.Helper()
	for _, name := range names {
		h, err := l.AddHost(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	return all
}

// run runs a command that must go well and returns what it printed, trimmed.
func run(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// reaches says whether a host reaches an address: whether anything answers,
// were it that nobody listens.
func reaches(t *testing.T, from *Host, to netip.Addr) bool {
	t.Helper()
	ns, err := from.Netns()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	c, err := ns.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 1).String())
	if err == nil {
		c.Close()
	}
	return err == nil || errors.Is(err, syscall.ECONNREFUSED)
}

// datagrams sends n of them and says how many arrive.
func datagrams(t *testing.T, from, to *Host, n, bytes int) (arrived int) {
	t.Helper()
	src, err := from.Netns()
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := to.Netns()
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	pc, err := dst.ListenPacket("udp", to.Address().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c, err := src.DialContext(t.Context(), "udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range n {
		if _, err := c.Write(make([]byte, bytes)); err != nil {
			t.Fatal(err)
		}
	}
	pc.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	for {
		if _, _, err := pc.ReadFrom(make([]byte, 10)); err != nil {
			return arrived
		}
		arrived++
	}
}

func TestHostIsOfItsOwn(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "multipaas") // below /tmp, which the host covers
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho I am $0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := ForTest(t, Options{Binary: binary})
	h := hosts(t, l, "one")[0]
	for _, c := range []struct{ what, want, cmd string }{
		{"host name", "one", "hostname"},
		{"process 1", "1", "pgrep -o ."},
		{"its links", "eth0 lo", "ls /sys/class/net | xargs"},
		{"its routes", h.lab.Subnet().String(), "ip route | cut -d' ' -f1 | xargs"},
		{"its hosts file", h.Address().String(), "getent hosts one | cut -d' ' -f1"},
		{"no resolver", "0", "stat -c %s /etc/resolv.conf"},
		{"empty /tmp", "", "ls /tmp"},
		{"its binary", "I am /run/lab/bin/multipaas", "multipaas"},
		{"its home", "/run/lab/home", "echo $HOME"},
		{"root of its groups", "/", "sed -n 's/.*:memory:\\|^0:://p' /proc/self/cgroup | sort -u | head -1"},
		{"its groups can be used", "1", "mkdir -p $(ls -d /sys/fs/cgroup/memory /sys/fs/cgroup 2>/dev/null | head -1)/mine && echo 1"},
	} {
		if got := run(t, h, "sh", "-c", c.cmd); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	run(t, h, "sh", "-c", "echo changed >/etc/lab-test; echo kept >/var/lib/multipaas/file; mkdir -p /var/lib/lab-test; mount -t tmpfs none /mnt")
	for _, name := range []string{"/etc/lab-test", "/var/lib/lab-test"} {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s shows outside of the host", name)
		}
	}
	if got, err := os.ReadFile(h.Data("file")); err != nil || string(got) != "kept\n" {
		t.Errorf("its disk, seen from here: got %q, %v", got, err)
	}
	if err := h.WriteFile(t.Context(), "/etc/multipaas/config.yaml", []byte("a: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, h, "stat", "-c", "%a %s", "/etc/multipaas/config.yaml"); got != "600 5" {
		t.Errorf("a file written from here: got %q, want 600 5", got)
	}
}

func TestNetworkFaults(t *testing.T) {
	l := ForTest(t, Options{})
	h := hosts(t, l, "a", "b", "c")
	a, b, c := h[0], h[1], h[2]
	if !reaches(t, a, b.Address()) || !reaches(t, b, a.Address()) || !reaches(t, a, c.Address()) {
		t.Fatal("hosts do not reach each other")
	}
	if got, want := run(t, a, "getent", "hosts", "c"), c.Address().String()+"  "; !strings.HasPrefix(got, want) {
		t.Errorf("the name of a host that was added later: got %q, want %s", got, want)
	}
	d := net.Dialer{Timeout: time.Second}
	if _, err := d.DialContext(t.Context(), "tcp", a.Address().String()+":1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("we do not reach a host: %v", err)
	}
	if reaches(t, a, netip.MustParseAddr("192.0.2.1")) {
		t.Error("a host reaches the outside")
	}
	if err := l.Partition(t.Context(), []string{"a"}, []string{"b"}); err != nil {
		t.Fatal(err)
	}
	if reaches(t, a, b.Address()) || reaches(t, b, a.Address()) {
		t.Error("reach each other over a cut")
	}
	if !reaches(t, a, c.Address()) || !reaches(t, c, b.Address()) {
		t.Error("a cut between two hits a third")
	}
	if err := l.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, a, b.Address()) {
		t.Error("not healed")
	}
	if err := l.Isolate(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if reaches(t, c, a.Address()) || reaches(t, c, b.Address()) || !reaches(t, a, b.Address()) {
		t.Error("isolation of one: it reaches others, or others do not reach each other")
	}
	if err := errors.Join(l.Heal(t.Context()), l.Loss(t.Context(), "a", 100)); err != nil {
		t.Fatal(err)
	}
	if reaches(t, a, b.Address()) {
		t.Error("with 100 per cent loss packets arrive")
	}
	if err := l.Loss(t.Context(), "a", 50); err != nil {
		t.Fatal(err)
	}
	if got := datagrams(t, b, a, 200, 1); got < 50 || got > 150 {
		t.Errorf("with 50 per cent loss %d of 200 datagrams arrive", got)
	}
	if err := l.Loss(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, a, b.Address()) {
		t.Error("the loss did not end")
	}
	if err := l.Narrow(t.Context(), "a", 1400); err != nil {
		t.Fatal(err)
	}
	for bytes, want := range map[int]int{1372: 5, 1373: 0} { // behind 28 of IPv4 and UDP
		if in, out, aside := datagrams(t, b, a, 5, bytes), datagrams(t, a, b, 5, bytes), datagrams(t, b, c, 5, bytes); in != want || out != want || aside != 5 {
			t.Errorf("with 1400 bytes of room %d and %d of 5 datagrams of %d arrive, want %d; %d of 5 elsewhere", in, out, bytes, want, aside)
		}
	}
	if err := l.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := datagrams(t, b, a, 5, 1472); got != 5 {
		t.Errorf("after healing %d of 5 full datagrams arrive", got)
	}
	if err := l.Partition(t.Context(), []string{"a"}, []string{"nobody"}); err == nil {
		t.Error("a host that is not there was cut off")
	}
}

func TestPowerLossAndBoot(t *testing.T) {
	l := ForTest(t, Options{})
	h := hosts(t, l, "a", "b")
	a, b := h[0], h[1]
	run(t, a, "sh", "-c", "echo kept >/var/lib/multipaas/disk; echo lost >/run/ram; ip netns add inner; setsid sleep 1000 >/dev/null 2>&1 & :")
	sleeper := Service{Name: "sleeper", Args: []string{"sh", "-c", "echo started; exec sleep 1000"}}
	if err := a.Start(t.Context(), sleeper); err != nil {
		t.Fatal(err)
	}
	said := func(times int) func() bool {
		return func() bool {
			log, _ := os.ReadFile(a.LogFile("sleeper"))
			return strings.Count(string(log), "started") == times
		}
	}
	wait.True(t, time.Minute, "the service has started", said(1))
	if err := l.Partition(t.Context(), []string{"a"}, []string{"b"}); err != nil {
		t.Fatal(err)
	}
	before := a.PID()
	if err := a.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a.Running() || findProcess(before).Start != "" {
		t.Error("runs without power")
	}
	if _, err := a.Run(t.Context(), "true"); !errors.Is(err, ErrOff) {
		t.Errorf("got %v, want %v", err, ErrOff)
	}
	if tree, err := groupTree(l.slot.groupName("a")); err != nil || len(tree) > 0 {
		t.Errorf("groups are left: %v, %v", tree, err)
	}
	if err := a.Kill(t.Context()); err != nil {
		t.Errorf("killing it again: %v", err)
	}
	if err := a.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a.PID() == before {
		t.Error("the same process 1 as before")
	}
	if got := run(t, a, "cat", "/var/lib/multipaas/disk"); got != "kept" {
		t.Errorf("its disk: got %q", got)
	}
	if _, err := a.Run(t.Context(), "cat", "/run/ram"); err == nil {
		t.Error("its memory survived")
	}
	if reaches(t, a, b.Address()) {
		t.Error("a boot has healed the partition")
	}
	if err := l.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait.True(t, time.Minute, "the network is there after the boot", func() bool {
		return reaches(t, a, b.Address()) && reaches(t, b, a.Address())
	})
	wait.True(t, time.Minute, "the service has been started by the boot", said(2))
}

func TestServices(t *testing.T) {
	l := ForTest(t, Options{})
	h := hosts(t, l, "a")[0]
	status := func() ServiceStatus {
		all, err := h.Services(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Name == "svc" {
				return s
			}
		}
		return ServiceStatus{}
	}
	script := `trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done`
	if err := h.Start(t.Context(), Service{Name: "svc", Args: []string{"sh", "-c", script}, Env: []string{"A=b"}}); err != nil {
		t.Fatal(err)
	}
	said := func(times int) func() bool {
		return func() bool {
			log, _ := os.ReadFile(h.LogFile("svc"))
			return strings.Count(string(log), "up") == times
		}
	}
	wait.True(t, time.Minute, "it says it is up", said(1))
	first := status().PID
	if got := run(t, h, "sh", "-c", fmt.Sprintf("tr '\\0' '\\n' </proc/%d/environ | grep ^A=", first)); got != "A=b" {
		t.Errorf("its environment: got %q", got)
	}
	// A process that lost its parent is process 1's to reap.
	run(t, h, "sh", "-c", "(sleep 0.01 &) ; exit 0")
	if err := h.Signal(t.Context(), "svc", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait.True(t, time.Minute, "it has been started again", func() bool { s := status(); return s.Restarts == 1 && s.PID != 0 && s.PID != first })
	if got := status().Exit; got != "killed" {
		t.Errorf("its exit: got %q, want killed", got)
	}
	wait.True(t, time.Minute, "it says it is up again", said(2))
	if err := h.Stop(t.Context(), "svc"); err != nil {
		t.Fatal(err)
	}
	if log, _ := os.ReadFile(h.LogFile("svc")); !strings.Contains(string(log), "asked") {
		t.Errorf("was not asked to stop: %q", log)
	}
	if s := status(); s.PID != 0 {
		t.Errorf("runs on: %+v", s)
	}
	if err := errors.Join(h.Kill(t.Context()), h.Boot(t.Context())); err != nil {
		t.Fatal(err)
	}
	if s := status(); s.Name != "" {
		t.Errorf("was started by a boot after it was stopped: %+v", s)
	}
	if zombies := run(t, h, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"); zombies != "0" {
		t.Errorf("%s zombies", zombies)
	}
	if err := h.Start(t.Context(), Service{Args: []string{"no-such-command"}}); err == nil {
		t.Error("a command that is not there was started")
	}
}

// TestServicesMounts: a service is confined as the appliance's units are.
func TestServicesMounts(t *testing.T) {
	l := ForTest(t, Options{})
	h := hosts(t, l, "a")[0]
	script := `mkdir -p /run/own /run/host; mount -t tmpfs own /run/own
		echo "environment $MULTIPAAS_HOST_MOUNTS"
		for dir in /etc /usr /root; do touch $dir/escaped && echo "wrote to $dir"; done
		for dir in /run /tmp /var/lib /var/lib/multipaas; do touch $dir/written || echo "did not write to $dir"; done
		echo up; while ! mountpoint -q /run/host; do sleep 0.05; done; echo seen; exec sleep 1000`
	if err := h.Start(t.Context(), Service{Name: "svc", Args: []string{"sh", "-c", script}}); err != nil {
		t.Fatal(err)
	}
	said := func(word string) func() bool {
		return func() bool {
			log, _ := os.ReadFile(h.LogFile("svc"))
			return strings.Contains(string(log), word+"\n")
		}
	}
	wait.True(t, time.Minute, "it says it is up", said("up"))
	run(t, h, "mount", "-t", "tmpfs", "host", "/run/host")
	wait.True(t, time.Minute, "what is mounted on the host shows in the service", said("seen"))
	if _, err := h.Run(t.Context(), "mountpoint", "-q", "/run/own"); err == nil {
		t.Error("what a service mounts shows on the host")
	}
	log, _ := os.ReadFile(h.LogFile("svc"))
	if text := string(log); strings.Contains(text, "wrote to") || strings.Contains(text, "did not write") ||
		!strings.Contains(text, "environment /proc/1/ns/mnt\n") {
		t.Errorf("the service says\n%s", text)
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	one, two := ForTest(t, Options{}), ForTest(t, Options{})
	a, b := hosts(t, one, "a")[0], hosts(t, two, "a")[0]
	if one.Subnet() == two.Subnet() {
		t.Fatalf("both have %s", one.Subnet())
	}
	if reaches(t, a, b.Address()) {
		t.Error("a host of one lab reaches one of the other")
	}
	if err := two.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, a, one.Address()) {
		t.Error("the end of one lab has hit the other")
	}
}

func TestOpenedByAnother(t *testing.T) {
	l := ForTest(t, Options{})
	hosts(t, l, "a")
	other, err := Open(l.Dir(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Host("a").Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := other.AddHost(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddHost(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if l.Host("b") == nil || !reaches(t, l.Host("b"), l.Host("c").Address()) {
		t.Error("what one made, the other does not know")
	}
	if l.Host("a").Running() {
		t.Error("says that a host runs which the other has killed")
	}
	if _, err := Open(t.TempDir(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that there is none", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := ForTest(t, Options{})
	h := hosts(t, l, "a")[0]
	run(t, h, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & ip link add br9 type bridge; truncate -s 1M /var/lib/multipaas/img; losetup -f /var/lib/multipaas/img")
	if err := l.Partition(t.Context(), []string{"a"}, nil); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(h.Data(), "img")
	// By inode: once the host is gone, the name says nothing about the lab.
	var st unix.Stat_t
	if err := unix.Stat(img, &st); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait.True(t, time.Minute, "no loop device is left", func() bool { // its last user may be a process that lists them all
		out, _ := exec.Command("losetup", "-n", "-l", "-O", "BACK-INO").Output()
		return !slices.Contains(strings.Fields(string(out)), strconv.FormatUint(st.Ino, 10))
	})
	leftNothing(t, l.slot)
}

func leftNothing(t *testing.T, s slot) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if n := l.Attrs().Name; n == s.bridge() || strings.HasPrefix(n, s.prefix()+"h") {
			t.Errorf("link %s is left", n)
		}
	}
	if tree, err := groupTree("multipaas-" + s.prefix()); err != nil || len(tree) > 0 {
		t.Errorf("groups are left: %v, %v", tree, err)
	}
	if out, _ := exec.Command("nft", "list", "tables", "bridge").Output(); bytes.Contains(out, []byte(" "+s.prefix()+"\n")) {
		t.Errorf("a table is left: %s", out)
	}
	for _, name := range []string{s.file(), s.Dir} {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", name)
		}
	}
	if out, _ := exec.Command("losetup", "-l", "-O", "BACK-FILE").Output(); bytes.Contains(out, []byte(s.Dir)) {
		t.Errorf("a loop device is left: %s", out)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(s.Dir)) {
		t.Errorf("a mount is left, %v", err)
	}
}

// TestSweepAfterKill makes a lab in another process, kills that with SIGKILL,
// and sweeps.
func TestSweepAfterKill(t *testing.T) {
	if os.Getenv("LAB_TEST_OWNER") != "" {
		l, err := New(t.Context(), Options{Name: "killed"})
		if err == nil {
			_, err = l.AddHost(t.Context(), "a")
		}
		if err == nil {
			err = l.Host("a").Start(t.Context(), Service{Args: []string{"sleep", "1000"}})
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := json.Marshal(l.slot)
		fmt.Printf("slot=%s\n", data)
		select {}
	}
	owner := exec.Command(os.Args[0], "-test.run=^TestSweepAfterKill$")
	owner.Env = append(os.Environ(), "LAB_TEST_OWNER=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var s slot
	for sc := bufio.NewScanner(out); s.Dir == "" && sc.Scan(); {
		if text, ok := strings.CutPrefix(sc.Text(), "slot="); ok {
			if err := json.Unmarshal([]byte(text), &s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.Dir == "" {
		owner.Wait()
		t.Fatal("the other process made no lab")
	}
	if _, err := Sweep(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.file()); err != nil {
		t.Fatalf("a lab whose owner lives was swept: %v", err)
	}
	owner.Process.Kill()
	owner.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := Sweep(ctx, false); err != nil {
		t.Fatal(err)
	}
	leftNothing(t, s)
}
