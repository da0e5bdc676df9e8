package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DialContext connects from inside the namespace. The address must be an IP
// literal with a port: names would be resolved outside. A socket belongs to the
// namespace in which it was made, so the connection works for anybody.
//
// No OS thread waits meanwhile: Go ends a process at 10,000 of them, and whoever
// owns the far end can let connections hang. Only the socket is made inside. A
// ctx without a deadline is given 30 seconds.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s in network namespace %s: not an IP address and port", address, n.name)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	var conn net.Conn
	if network == "tcp" && to.Addr().Unmap().Is4() {
		conn, err = n.dialTCP(ctx, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	} else {
		// No keep-alive setting here: the dialer's default is what users of
		// net.Dialer get elsewhere. No fallback: one literal is one attempt, so the
		// dialer makes its socket on this very goroutine.
		d := net.Dialer{FallbackDelay: -1}
		err = n.Do(func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("dial in network namespace %s: %w", n.name, err)
	}
	return conn, nil
}

// dialTCP makes a socket inside and connects it from here.
func (n *NS) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fail(os.NewSyscallError("socket", err))
	}
	// What does not block is waited for by the runtime's poller.
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // net.FileConn has one of its own
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fail(os.NewSyscallError("connect", err))
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return fail(err)
	}
	var failure error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			failure = os.NewSyscallError("connect", err)
			return true
		}
		// No error yet may be no answer yet.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	switch {
	case ctx.Err() != nil:
		return fail(ctx.Err())
	case failure != nil:
		return fail(failure)
	case err != nil:
		return fail(err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return fail(err)
	}
	return conn, nil
}

// Listen listens inside the namespace, on a TCP address.
func (n *NS) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", n.name, err)
	}
	return ln, nil
}

// ListenPacket listens inside the namespace, on a UDP address.
func (n *NS) ListenPacket(network, address string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := n.Do(func() (err error) {
		pc, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", n.name, err)
	}
	return pc, nil
}
