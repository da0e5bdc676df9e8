// Package crowd bounds how many of something are under way at once, in all and for
// each one who asks: connections by address, requests by workspace.
//
// It promises that who asks for too much is refused at once, while others still
// get theirs. Whoever has been let in must leave.
//
// Parties: whatever listens to the outside, since each connection is one of the
// files that a process may open, and etcd's and the planes' are among them. Any
// package may import it; it imports nothing of ours.
package crowd

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Crowd counts who is in. Its methods are safe for concurrent use.
type Crowd[K comparable] struct {
	each, all int

	mu    sync.Mutex
	by    map[K]int
	total int
}

// New returns a Crowd of at most all, and of each who asks at most each.
func New[K comparable](each, all int) *Crowd[K] {
	return &Crowd[K]{each: each, all: all, by: map[K]int{}}
}

// Enter lets one in, or says that there is no room.
func (c *Crowd[K]) Enter(who K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= c.all || c.by[who] >= c.each {
		return false
	}
	c.total++
	c.by[who]++
	return true
}

// Leave is called once for each Enter that was true.
func (c *Crowd[K]) Leave(who K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.by[who]--; c.by[who] == 0 {
		delete(c.by, who)
	}
}

// Len is how many are in.
func (c *Crowd[K]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Files is how many files this process may have open.
func Files() int {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return 1024 // what every Unix gives
	}
	return int(min(have.Cur, 1<<30))
}

// Listener accepts for a server what there is room for and closes the rest.
func Listener(ln net.Listener, c *Crowd[netip.Addr]) net.Listener { return &listener{ln, c} }

type listener struct {
	net.Listener
	crowd *Crowd[netip.Addr]
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := Source(conn)
		if l.crowd.Enter(from) {
			return &inside{Conn: conn, leave: sync.OnceFunc(func() { l.crowd.Leave(from) })}, nil
		}
		// A reset: the kernel keeps nothing of it, not even for a minute.
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// Source is the address that a connection comes from.
func Source(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

type inside struct {
	net.Conn
	leave func()
}

func (c *inside) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
