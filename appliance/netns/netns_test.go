package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testNS makes a namespace that goes with the test.
func testNS(t *testing.T, suffix string) *NS {
	t.Helper()
	name := fmt.Sprintf("mptest-%d-%s", os.Getpid(), suffix)
	n, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), Remove(name)); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestCreateOpenListRemove(t *testing.T) {
	n := testNS(t, "life")
	again, err := Create(n.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var first, second unix.Stat_t
	if err := errors.Join(unix.Fstat(int(n.file.Fd()), &first), unix.Fstat(int(again.file.Fd()), &second)); err != nil {
		t.Fatal(err)
	}
	if first.Ino != second.Ino {
		t.Errorf("creating twice made two namespaces: %d and %d", first.Ino, second.Ino)
	}
	if names, err := List(n.Name()); err != nil || len(names) != 1 || names[0] != n.Name() {
		t.Errorf("got %v, %v, want only %s", names, err, n.Name())
	}
	for range 2 { // none there is no error
		if err := Remove(n.Name()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(n.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if names, _ := List(n.Name()); len(names) != 0 {
		t.Errorf("got %v, want none", names)
	}
}

func TestHalfMadeIsReplaced(t *testing.T) {
	name := fmt.Sprintf("mptest-%d-half", os.Getpid())
	t.Cleanup(func() { Remove(name) })
	unlock, err := lockRoot()
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(Root+"/"+name, nil, 0o444) // as a crash leaves it
	unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	n, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".hidden", strings.Repeat("a", 300)} {
		if n, err := Create(name); err == nil {
			n.Close()
			t.Errorf("Create(%q) went through", name)
		}
		if err := Remove(name); err == nil {
			t.Errorf("Remove(%q) went through", name)
		}
	}
}

func TestConcurrentCreate(t *testing.T) {
	name := fmt.Sprintf("mptest-%d-many", os.Getpid())
	t.Cleanup(func() {
		if err := Remove(name); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n, err := Create(name)
			if err != nil {
				t.Error(err)
				return
			}
			n.Close()
		})
	}
	wg.Wait()
}

func TestSocketsAreInside(t *testing.T) {
	n := testNS(t, "sockets")
	ln, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "inside")
			c.Close()
		}
	}()
	addr := ln.Addr().String()
	if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		c.Close()
		t.Errorf("a listener in the namespace is reachable from outside")
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := n.DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if got, err := io.ReadAll(c); string(got) != "inside" {
				t.Errorf("got %q, %v, want %q", got, err, "inside")
			}
		})
	}
	wg.Wait()

	pc, err := n.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c, err := n.DialContext(t.Context(), "udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "datagram"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if k, _, err := pc.ReadFrom(buf); err != nil || string(buf[:k]) != "datagram" {
		t.Errorf("got %q, %v, want %q", buf[:k], err, "datagram")
	}
}

func TestDialTakesNoNamesAndEnds(t *testing.T) {
	n := testNS(t, "dial")
	if _, err := n.DialContext(t.Context(), "tcp", "localhost:1"); err == nil {
		t.Error("a name was resolved outside of the namespace")
	}
	// A peer that never answers: its ARP entry is there, but nobody is. lo drops
	// nothing, so a route to a blackhole serves.
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil || len(links) != 1 {
		t.Fatalf("got %d links, %v, want only lo", len(links), err)
	}
	ln, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := n.DialContext(ctx, "tcp", ln.Addr().String()); !errors.Is(err, context.Canceled) {
		if c != nil {
			c.Close()
		}
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestDoRestoresAndPassesErrors(t *testing.T) {
	n := testNS(t, "do")
	outside := inode(t, "/proc/self/ns/net")
	want := errors.New("from inside")
	var inside uint64
	err := n.Do(func() error {
		inside = inode(t, fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if inside == outside {
		t.Error("fn ran outside of the namespace")
	}
	// The thread that made the namespace ends a moment after Create returns.
	left := func() (threads []string) {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if got := inode(t, "/proc/self/task/"+e.Name()+"/ns/net"); got != 0 && got != outside {
				threads = append(threads, e.Name())
			}
		}
		return threads
	}
	for deadline := time.Now().Add(5 * time.Second); len(left()) > 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("threads were left in other namespaces: %v", left())
		}
	}
	n.Close()
	if err := n.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0 // a thread that has ended meanwhile
	}
	return st.Ino
}

// TestDialsHoldNoThread has many connections hang, as a far end can whose queue is
// full: they must not take a thread each.
func TestDialsHoldNoThread(t *testing.T) {
	const dials = 300
	n := testNS(t, "threads")
	ln, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Nobody accepts, and one may wait.
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	// calling counts the connections that have asked and not been answered (TCP_SYN_SENT).
	calling := func() (calling int) {
		err := n.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/tcp")
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) > 3 && f[3] == "02" {
					calling++
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return calling
	}
	before := threads()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var hung, ended atomic.Int32
	// One after the other, each until it hangs: many that begin at once take a thread
	// each for a moment, more of them the busier the machine is.
	for i := range dials {
		wg.Go(func() {
			defer ended.Add(1)
			c, err := n.DialContext(ctx, "tcp", ln.Addr().String())
			if err == nil {
				t.Cleanup(func() { c.Close() })
			} else if errors.Is(err, context.Canceled) {
				hung.Add(1)
			}
		})
		for calling()+int(ended.Load()) <= i && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	more := threads() - before
	cancel()
	wg.Wait()
	if hung.Load() < dials/2 {
		t.Errorf("%d of %d dials hung: this shows nothing", hung.Load(), dials)
	}
	if more > dials/10 {
		t.Errorf("%d dials took %d threads", dials, more)
	}
}

func TestOwned(t *testing.T) {
	const first, count = 0x0ffe_0000, 1000
	name := fmt.Sprintf("mptest-%d-owned", os.Getpid())
	ns, err := CreateOwned(name, first, count)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	t.Cleanup(func() { Remove(name) })
	owner, ours, err := ns.Owner()
	if err != nil || ours {
		t.Fatalf("ours: %v, %v", ours, err)
	}
	defer owner.Close()
	uid, err := unix.IoctlGetUint32(int(owner.Fd()), unix.NS_GET_OWNER_UID)
	if err != nil || uid != first {
		t.Errorf("made by user %d, %v, want %d: what is counted there would be counted for it", uid, err, first)
	}
	// What it needs is there as in any other.
	if err := ns.Do(func() error {
		lo, err := net.InterfaceByName("lo")
		if err == nil && lo.Flags&net.FlagUp == 0 {
			err = errors.New("lo is down")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	again, err := CreateOwned(name, first, count)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	same, _, err := again.Owner()
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	a, _ := owner.Stat()
	b, _ := same.Stat()
	if !os.SameFile(a, b) {
		t.Error("the second call made another")
	}
	if os.Geteuid() != 0 {
		t.Error("a thread of ours is another user now")
	}
	plain := testNS(t, "plain")
	host, ours, err := plain.Owner()
	if err != nil || !ours {
		t.Errorf("a plain one is not ours: %v", err)
	}
	host.Close()
}
