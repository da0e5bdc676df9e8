package limiter

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestEachAndAll(t *testing.T) {
	c := New[string](2, 3)
	for i, want := range []struct {
		who string
		in  bool
	}{{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"b", false}, {"c", false}} {
		if got := c.Enter(want.who); got != want.in {
			t.Errorf("%d: %s: %v, want %v", i, want.who, got, want.in)
		}
	}
	c.Leave("a")
	if !c.Enter("c") {
		t.Error("c: no room after one has left")
	}
	c.Leave("a")
	c.Leave("b")
	c.Leave("c")
	if len(c.by) != 0 || c.total != 0 {
		t.Errorf("still in: %v, %d", c.by, c.total)
	}
}

// TestListener opens one connection more than there is room for, and a further
// one after the first has gone.
func TestListener(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &listener{plain, New[netip.Prefix](2, 10)}
	defer ln.Close()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial()
	first := <-accepted
	dial()
	<-accepted
	// It may be over before dialing it is.
	if refused, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		defer refused.Close()
		_ = refused.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(refused); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the third connection is open, there is room for two")
		}
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	first.Close()
	first.Close() // servers do that; it leaves once
	dial()
	select {
	case <-accepted:
	case <-time.After(10 * time.Second):
		t.Error("no connection is accepted after one has gone")
	}
	select {
	case <-accepted:
		t.Error("one more was accepted than there is room for")
	default:
	}
}

func TestSourceOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "::ffff:192.0.2.7": "192.0.2.7/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::": "2001:db8:1:2::/64",
		"2001:db8:1:3::1": "2001:db8:1:3::/64", "fe80::1%eth0": "fe80::/64", "::1": "::/64",
	} {
		if got := SourceOf(netip.MustParseAddr(address)); got.String() != want {
			t.Errorf("%s is of %s, want %s", address, got, want)
		}
	}
	if got := SourceOf(netip.Addr{}); got.IsValid() {
		t.Errorf("no address is of %s", got)
	}
}

// TestNeighbours: all addresses of one IPv6 host have the room of one.
func TestNeighbours(t *testing.T) {
	c := New[netip.Prefix](2, 100)
	for i, address := range []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:0:ffff::", "2001:db8:0:1::1"} {
		if got, want := c.Enter(SourceOf(netip.MustParseAddr(address))), i < 2 || i == 4; got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}
