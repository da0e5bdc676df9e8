package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// DialContext connects from inside the namespace. The address must be an IP
// literal with a port: names would be resolved outside. A socket belongs to the
// namespace in which it was made, so the connection works for anybody.
//
// The dial holds one OS thread until the connection stands or ctx is done; a
// ctx without a deadline is given 30 seconds.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s in network namespace %s: not an IP address and port", address, n.name)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	var (
		conn net.Conn
		// No keep-alive setting here: the dialer's default is what users of
		// net.Dialer get elsewhere. No fallback: one literal is one attempt, so the
		// dialer makes its socket on this very goroutine.
		d = net.Dialer{FallbackDelay: -1}
	)
	err := n.Do(func() (err error) {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial in network namespace %s: %w", n.name, err)
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
