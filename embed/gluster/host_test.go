package gluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestRefused: what can't be run changes nothing.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	h := NewHost(HostConfig{ID: "mptest", Dir: filepath.Join(dir, "data"), Images: filepath.Join(dir, "images"), Runc: filepath.Join(dir, "runc"),
		Payload: filepath.Join(dir, "payload"), Address: netip.MustParseAddr("10.77.0.1")})
	at := func(address string) *Host {
		cfg := h.cfg
		cfg.Address, _ = netip.ParseAddr(address)
		return NewHost(cfg)
	}
	ensure := func(h *Host) error { _, err := h.Ensure(t.Context(), true); return err }
	for what, err := range map[string]error{
		"without an identity":   ensure(h),
		"at no address":         ensure(at("")),
		"at 127.0.0.1":          ensure(at("127.0.0.1")),
		"at any address":        ensure(at("0.0.0.0")),
		"at an address of IPv6": ensure(at("fd00::1")),
		"a mount of no server":  h.Mount(t.Context(), Mount{"v1", "m"}, nil, nil),
		"a mount that leads up": h.Mount(t.Context(), Mount{"v1", ".."}, nil, []netip.Addr{h.cfg.Address}),
		"an end that leads up":  h.Unmount(t.Context(), Mount{"../x", "m"}),
		"nobody's identity":     h.Trust(Identity{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	if all, err := h.Mounted(); err != nil || len(all) > 0 {
		t.Errorf("mounts %v, %v", all, err)
	}
	if running, err := h.Running(t.Context()); err != nil || running {
		t.Errorf("it runs: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// testOutlives: what runs is adopted by the next of us, as it is; and glusterd comes back when it
// dies, and leaves the bricks alone.
func testOutlives(t *testing.T, a *node, m Mount, brick Brick, servers []netip.Addr) {
	pid := func(c container) int {
		t.Helper()
		now, ok, err := a.runc.State(t.Context(), c.id)
		if err != nil || !ok || !now.Running() {
			t.Fatalf("%s does not run: %v", c.id, err)
		}
		return now.PID
	}
	long := a.at("log", "bricks", "long.log")
	if err := os.WriteFile(long, append(make([]byte, 2*logBytes), "the end"...), 0o600); err != nil {
		t.Fatal(err)
	}
	server, client := pid(a.server()), pid(a.client(m))
	again := a.config(t)
	for _, memory := range []int64{0, 2 << 30} {
		again.Memory = memory
		next := NewHost(again)
		old, err := next.Ensure(t.Context(), false)
		if err != nil || old != (memory != 0) {
			t.Errorf("the next, with a bound of %d: old %v, %v", memory, old, err)
		}
		if err := next.Mount(t.Context(), m, nil, servers); err != nil {
			t.Error(err)
		}
	}
	if now := pid(a.server()); now != server {
		t.Errorf("glusterd's container was process %d, is %d", server, now)
	}
	if now := pid(a.client(m)); now != client {
		t.Errorf("the mount was process %d, is %d", client, now)
	}

	brickPID := func() int {
		all, err := a.Bricks(t.Context(), m.Volume)
		for _, b := range all {
			if b.Brick == brick && b.Online {
				return b.PID
			}
		}
		t.Logf("bricks: %+v, %v", all, err)
		return 0
	}
	was := brickPID()
	glusterd := strings.TrimSpace(a.must(t, "pgrep", "-x", "glusterd"))
	a.must(t, "kill", "-9", glusterd)
	wait.For(t, wait.Patience, "glusterd is back", func(ctx context.Context) error {
		out, err := a.command(ctx, "pgrep", "-x", "glusterd").Output()
		if now := strings.TrimSpace(string(out)); now == glusterd || now == "" {
			return fmt.Errorf("process %q: %v", now, err)
		}
		_, err = a.Peers(ctx)
		return err
	})
	wait.For(t, wait.Patience, "its brick is known", func(context.Context) error {
		if now := brickPID(); now != was || was == 0 {
			return fmt.Errorf("it was process %d, is %d", was, now)
		}
		return nil
	})

	// Started anew, by other settings.
	old, err := NewHost(again).Ensure(t.Context(), true)
	if err != nil || old {
		t.Errorf("started anew: old %v, %v", old, err)
	}
	if now := pid(a.server()); now == server {
		t.Error("it was not started anew")
	}
	if now := pid(a.client(m)); now != client {
		t.Errorf("the mount was process %d, is %d", client, now)
	}
	a.cfg.Memory = again.Memory
	wait.For(t, wait.Patience, "its brick is back", func(context.Context) error {
		if brickPID() == 0 {
			return errors.New("not online")
		}
		return nil
	})

	// Of whatever was left half made, one is started.
	a.off()
	if err := os.RemoveAll(filepath.Join(a.cfg.Runc, a.server().id)); err != nil {
		t.Fatal(err)
	}
	if running, err := a.Running(t.Context()); err != nil || running {
		t.Errorf("it runs: %v", err)
	}
	if old, err := a.Ensure(t.Context(), false); err != nil || old {
		t.Errorf("old %v, %v", old, err)
	}
	wait.For(t, wait.Patience, "a log is cut", func(context.Context) error {
		info, err := os.Stat(long)
		if err == nil && info.Size() > 0 {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	if text, err := os.ReadFile(long + ".1"); err != nil || len(text) != logBytes || !strings.HasSuffix(string(text), "the end") {
		t.Errorf("of a log %d bytes are kept: %v", len(text), err)
	}
	for _, want := range []string{a.at("etc", "glusterd.vol"), a.at("lib", "glusterd.info"), a.at("log", "init", "glusterd.log")} {
		if _, err := os.Stat(want); err != nil {
			t.Error(err)
		}
	}
	wait.For(t, wait.Patience, "it listens at its address, and at no other", func(context.Context) error {
		all := a.listening(t)
		for _, at := range all {
			if at.Addr() != a.address {
				t.Errorf("it listens at %v", at)
			}
		}
		if len(all) != 2 {
			return fmt.Errorf("%v, want glusterd's and one of all bricks", all)
		}
		return nil
	})
}

// testMounts: a client that died or hangs is seen, and a volume is mounted again.
func testMounts(t *testing.T, a *node, m Mount, servers []netip.Addr) {
	at := a.seen(m)
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != unix.ST_NOSUID|unix.ST_NODEV {
		t.Errorf("flags %#x: %v", st.Flags, err)
	}
	state := func(want error) error {
		all, err := a.Mounted()
		if err == nil && !slices.Equal(all, []Mount{m}) {
			err = fmt.Errorf("mounts %+v", all)
		}
		if is := a.Look(t.Context(), m); !errors.Is(is, want) {
			err = fmt.Errorf("%w, want %w", is, want)
		}
		return err
	}
	if err := state(nil); err != nil {
		t.Error(err)
	}
	nobody := netip.MustParseAddr("127.0.0.1") // where no glusterd listens
	mounted := func(from ...netip.Addr) {
		t.Helper()
		if err := a.Mount(t.Context(), m, nil, from); err != nil {
			t.Fatal(err)
		}
		a.show(t, m)
		if err := errors.Join(state(nil), has(filepath.Join(at, "first"))); err != nil {
			t.Error(err)
		}
	}
	signal := func(s syscall.Signal) {
		t.Helper()
		now, _, err := a.runc.State(t.Context(), a.client(m).id)
		if err == nil {
			err = syscall.Kill(now.PID, s)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGKILL)
	wait.For(t, wait.Patience, "its end is seen", func(context.Context) error { return state(ErrNotMounted) })
	if _, err := os.ReadDir(at); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("a mount without a client: %v", err)
	}
	mounted(servers...)

	a.patience = 100 * time.Millisecond
	signal(syscall.SIGSTOP)
	for range 2 {
		if err := state(ErrHung); err != nil {
			t.Error(err)
		}
	}
	a.found[m].answered = time.Time{}
	if err := a.Mount(t.Context(), m, nil, servers); !errors.Is(err, ErrHung) {
		t.Errorf("mount of one that hangs: %v", err)
	}
	signal(syscall.SIGCONT)
	a.patience = patience
	wait.For(t, wait.Patience, "it goes on", func(context.Context) error { return state(nil) })
	killed(t, job{Config: a.config(t), Mount: m, Servers: servers})
	mounted(servers...)
	signal(syscall.SIGSTOP)
	for range 2 {
		if err := a.Unmount(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := a.Mounted(); err != nil || len(all) > 0 {
		t.Errorf("left is %+v, %v", all, err)
	}
	if err := a.Mount(t.Context(), Mount{"none", "m0"}, nil, servers); err == nil {
		t.Error("a volume that there isn't was mounted")
	} else {
		t.Logf("a volume that there isn't: %v", err)
	}
	mounted(append([]netip.Addr{nobody}, servers...)...)
}

// testStrangers: who has no certificate of the authority gets no answer, neither from glusterd nor
// from a brick; who has one of another name gets no file. A new certificate counts at once.
func testStrangers(t *testing.T, c *cluster, m Mount, servers []netip.Addr) {
	a := c.nodes[0]
	ports := map[string]int{"glusterd": Port}
	for _, at := range a.listening(t) {
		if at.Port() >= FirstBrickPort && at.Port() <= LastBrickPort {
			ports["a brick"] = int(at.Port())
		}
	}
	if len(ports) != 2 {
		t.Fatalf("no port of a brick: %v", ports)
	}
	// serial is of the certificate that is shown to who shows this one.
	serial := func(port int, config *tls.Config) (number *big.Int, err error) {
		err = a.ns.Do(func() error {
			d := net.Dialer{Timeout: 10 * time.Second}
			conn, err := d.Dial("tcp", net.JoinHostPort(a.address.String(), strconv.Itoa(port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if config == nil { // a call of procedure 0, as any RPC has it
				if _, err = conn.Write(append([]byte{0x80, 0, 0, 40}, make([]byte, 40)...)); err != nil {
					return err
				}
				_, err = conn.Read(make([]byte, 1))
				return err
			}
			over := tls.Client(conn, config)
			if err := over.Handshake(); err != nil {
				return err
			}
			number = over.ConnectionState().PeerCertificates[0].SerialNumber
			// What the other side finds wrong is heard after the handshake.
			_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := over.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("cut off: %w", err)
			}
			return nil
		})
		return number, err
	}
	as := func(id Identity) *tls.Config {
		pair, err := tls.X509KeyPair(id.Cert, id.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	}
	must := func(id Identity, err error) Identity {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ours := must(identity(c.ca, "node9"))
	other := newCA(t)
	theirs := must(identity(other, "node1"))
	before := map[string]*big.Int{}
	for what, port := range ports {
		number, err := serial(port, as(ours))
		if err != nil {
			t.Errorf("%s refuses a certificate of the authority: %v", what, err)
		}
		before[what] = number
		for who, config := range map[string]*tls.Config{"without TLS": nil, "without a certificate": {InsecureSkipVerify: true}, "of another authority": as(theirs)} {
			if _, err := serial(port, config); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s takes who comes %s: %v", what, who, err)
			}
		}
	}

	// The same by the real client, on a host whose own glusterd was started and stopped by who was
	// killed all the time.
	foreign := c.newNode(t, 9)
	foreign.identify(t, other, "node1")
	killed(t, job{Config: foreign.config(t)})
	foreign.start(t)
	for what, id := range map[string]Identity{"of another authority": theirs, "that is in no list": ours} {
		if err := foreign.Trust(id); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		err := foreign.Mount(short, m, nil, servers)
		cancel()
		if err == nil {
			t.Errorf("a host %s mounts the volume", what)
		}
		t.Logf("a host %s: %v", what, err)
	}

	// A certificate is changed under what runs.
	if err := a.Trust(theirs); err != nil { // as such it is fine
		t.Error(err)
	}
	for what, bad := range map[string]Identity{"with another's key": {Cert: ours.Cert, Key: theirs.Key, CA: ours.CA}, "of an unknown authority": {Cert: ours.Cert, Key: ours.Key, CA: theirs.CA},
		"of nobody": {}} {
		if err := a.Trust(bad); err == nil {
			t.Errorf("an identity %s was taken", what)
		}
	}
	a.identify(t, c.ca, a.name)
	for what, port := range ports {
		number, err := serial(port, as(ours))
		if err != nil || number.Cmp(before[what]) == 0 {
			t.Errorf("%s shows the certificate that it had: %v", what, err)
		}
	}
	if err := has(filepath.Join(a.seen(m), "first")); err != nil {
		t.Errorf("after its host's certificate was changed: %v", err)
	}
}

// listening are the addresses that a node listens at.
func (n *node) listening(t *testing.T) (all []netip.AddrPort) {
	t.Helper()
	for line := range strings.Lines(n.must(t, "ss", "-Hltn")) {
		at, err := netip.ParseAddrPort(strings.Fields(line)[3])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, at)
	}
	return all
}
