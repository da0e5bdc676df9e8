// Package limiter bounds how many of something are under way at once, in all and for
// each one who asks: connections by source, requests by workspace.
//
// It promises that who asks for too much is refused at once, while others still
// get theirs. Whoever has been let in must leave.
//
// Parties: whatever listens to the outside, since each connection is one of the
// files that a process may open, and etcd's and the planes' are among them. Any
// package may import it; it imports nothing of ours.
package limiter

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Limiter counts who is in. Its methods are safe for concurrent use.
type Limiter[K comparable] struct {
	each, all int

	mu    sync.Mutex
	by    map[K]int
	total int
}

// New returns a Limiter of at most all, and of each who asks at most each.
func New[K comparable](each, all int) *Limiter[K] {
	return &Limiter[K]{each: each, all: all, by: map[K]int{}}
}

// Enter lets one in, or says that there is no room.
func (l *Limiter[K]) Enter(who K) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.all || l.by[who] >= l.each {
		return false
	}
	l.total++
	l.by[who]++
	return true
}

// Leave is called once for each Enter that was true.
func (l *Limiter[K]) Leave(who K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.by[who]--; l.by[who] == 0 {
		delete(l.by, who)
	}
}

// Len is how many are in.
func (l *Limiter[K]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Files is how many files this process may have open.
func Files() int {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 1024 // what every Unix gives
	}
	return int(min(have.Cur, 1<<30))
}

// Listener accepts for a server what there is room for and closes the rest: its
// connections take one of share parts of this process's files, those from one
// source a quarter of that. modules/balancer has the sum of all shares.
func Listener(ln net.Listener, share int) net.Listener {
	all := Files() / share
	return &listener{ln, New[netip.Prefix](all/4, all)}
}

type listener struct {
	net.Listener
	sources *Limiter[netip.Prefix]
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := Source(conn)
		if l.sources.Enter(from) {
			return &inside{Conn: conn, leave: sync.OnceFunc(func() { l.sources.Leave(from) })}, nil
		}
		// A reset: the kernel keeps nothing of it, not even for a minute.
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// Source is where a connection comes from, see SourceOf.
func Source(conn net.Conn) netip.Prefix {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return SourceOf(tcp.AddrPort().Addr())
	}
	return netip.Prefix{}
}

// SourceOf is what counts as one source: an IPv4 address, or the /64 that one IPv6
// host has all to itself. Of what is no address it is the zero value.
func SourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

type inside struct {
	net.Conn
	leave func()
}

// NetConn is the connection itself.
func (c *inside) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the connection's own half.
func (c *inside) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *inside) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
