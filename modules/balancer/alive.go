package balancer

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A peer that is gone without a word, since its host has lost its power, say, must be
// told from one that reads slowly or not at all for an hour: that one acknowledges
// what is sent, and answers when asked whether it has room now (RFC 9293, 3.8.6.1).
// TCP_USER_TIMEOUT cuts both, since Linux 5.11; keepalives ask only while nothing is
// under way; and what TCP itself does takes a quarter of an hour. So a goroutine
// looks at what the kernel knows of each connection.

const (
	// podSilence is how long a pod's host may leave what was sent without an answer by TCP.
	podSilence = 10 * time.Second
	// clientSilence is that of clients: a phone is in a tunnel for a minute.
	clientSilence = 2 * time.Minute
	// leastTries are retransmissions, or questions whether there is room, that were in
	// vain: one or two may be lost.
	leastTries = 3
)

// vigil watches connections. Its zero value is ready; its methods are safe for
// concurrent use.
type vigil struct {
	mu  sync.Mutex
	all map[*watched]struct{}
}

// watched is one connection.
type watched struct {
	conn    *net.TCPConn
	raw     syscall.RawConn
	silence time.Duration
	since   time.Time // an answer is owed and none has come; zero: none is
}

// watchedConn is a connection that ends the watch over it when it is closed.
type watchedConn struct {
	*net.TCPConn
	leave func()
}

func (c *watchedConn) Close() error {
	c.leave()
	return c.TCPConn.Close()
}

// watch closes a connection when its peer has left what was sent to it without an
// answer for longer than silence, or no longer answers keepalives. Call leave when it
// ends. Connections that aren't TCP's, in tests, are not watched.
func (v *vigil) watch(conn net.Conn, silence time.Duration) (leave func()) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return func() {}
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: max(silence/2, 15*time.Second), Interval: max(silence/8, 5*time.Second), Count: 4,
	})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return func() {}
	}
	w := &watched{conn: tcp, raw: raw, silence: silence}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all == nil {
		v.all = map[*watched]struct{}{}
	}
	v.all[w] = struct{}{}
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.all, w)
	}
}

// run looks at all connections until ctx is done.
func (v *vigil) run(ctx context.Context) {
	tick := time.NewTicker(podSilence / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			v.look(now)
		}
	}
}

// look closes connections whose peers are gone. A thousand take about a millisecond.
func (v *vigil) look(now time.Time) {
	v.mu.Lock()
	all := make([]*watched, 0, len(v.all))
	for w := range v.all {
		all = append(all, w)
	}
	v.mu.Unlock()
	for _, w := range all {
		var info *unix.TCPInfo
		err := w.raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		if err == nil && info != nil && w.gone(info, now) {
			w.conn.Close()
		}
	}
}

// gone says whether the peer owes an answer for too long.
func (w *watched) gone(info *unix.TCPInfo, now time.Time) bool {
	owed := info.Unacked > 0 || info.Probes > 0
	heard := time.Duration(info.Last_ack_recv) * time.Millisecond // ago
	switch {
	case !owed:
		w.since = time.Time{}
	case w.since.IsZero() || heard < now.Sub(w.since):
		w.since = now
	}
	return owed && now.Sub(w.since) >= w.silence && max(info.Retransmits, info.Probes) >= leastTries
}
