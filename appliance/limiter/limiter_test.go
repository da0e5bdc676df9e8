package limiter

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRate[string](10, 20)
		for range 10 {
			if wait := r.Take("a", 2); wait != 0 {
				t.Fatalf("a waits %v for what he may have at once", wait)
			}
		}
		if wait := r.Take("a", 2); wait != 200*time.Millisecond {
			t.Errorf("a is told to wait %v, want 200ms", wait)
		}
		for range 30 {
			if mine, others := r.Due("a", 1), r.Due("b", 20); mine != 100*time.Millisecond || others != 0 {
				t.Fatalf("a would wait %v and b %v, want 100ms and 0: nothing is taken by asking", mine, others)
			}
		}
		if wait := r.Take("b", 20); wait != 0 {
			t.Errorf("b waits %v because of a", wait)
		}
		if wait := r.Take("c", 1000); wait != 0 {
			t.Errorf("who asks for more than there can be waits %v for ever", wait)
		}
		time.Sleep(200 * time.Millisecond)
		if wait := r.Take("a", 2); wait != 0 {
			t.Errorf("a waits %v after he has waited", wait)
		}
		if wait := r.Take("a", 1); wait == 0 {
			t.Error("a has more than his share")
		}
		time.Sleep(time.Hour)
		for range 20 {
			if wait := r.Take("a", 1); wait != 0 {
				t.Fatalf("a waits %v after an hour", wait)
			}
		}
		if wait := r.Take("a", 1); wait == 0 {
			t.Error("an hour has given a more than his burst")
		}
	})
}

func TestNetwork(t *testing.T) {
	for _, same := range [][2]string{
		{"192.0.2.1:1", "192.0.2.1"}, {"[::ffff:192.0.2.1]:5", "192.0.2.1:1"},
		{"[2001:db8::1]:1", "[2001:db8::ffff:2]:2"}, {"fe80::1%eth0", "fe80::2"},
	} {
		if a, b := Network(same[0]), Network(same[1]); a != b || a == "?" {
			t.Errorf("%s is %s, and %s is %s", same[0], a, same[1], b)
		}
	}
	if a, b := Network("192.0.2.1:1"), Network("192.0.2.2:1"); a == b {
		t.Errorf("two hosts are both %s", a)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, row := range []struct {
			status int
			after  string
			again  bool
			took   time.Duration
		}{
			{429, "2", true, 2 * time.Second},
			{429, "0", true, 0},
			{429, "-5", true, 0},
			{429, "31", false, 0},
			{429, "", false, 0},
			{429, "soon", false, 0},
			{503, "2", false, 0},
			{200, "2", false, 0},
		} {
			began := time.Now()
			again := Wait(t.Context(), &http.Response{StatusCode: row.status, Header: http.Header{"Retry-After": {row.after}}})
			if again != row.again || time.Since(began) != row.took {
				t.Errorf("%d, Retry-After %q: again %v after %v", row.status, row.after, again, time.Since(began))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if Wait(ctx, &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {"20"}}}) {
			t.Error("again although its time is over")
		}
	})
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns[string](2, 3)
		var mu sync.Mutex
		var got []string
		take := func(who string, long time.Duration) {
			go func() {
				leave, err := turns.Take(t.Context(), who)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				got = append(got, who)
				mu.Unlock()
				time.Sleep(long)
				leave()
				leave()
			}()
			synctest.Wait()
		}
		for range 20 {
			take("a", time.Minute)
		}
		take("b", time.Second) // a has all that he may have, and there is one more
		take("c", time.Second)
		take("d", time.Second)
		time.Sleep(3 * time.Second)
		mu.Lock()
		if want := []string{"a", "a", "b", "c", "d"}; !slices.Equal(got, want) {
			t.Errorf("%v had a place, want %v", got, want)
		}
		mu.Unlock()
		// Who doesn't wait any more takes nobody's place.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := turns.Take(ctx, "a"); err == nil {
			t.Error("a has more places than he may have")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(got) != 23 || turns.in.Len() != 0 || len(turns.order) != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d had a place, want 23; %d have one, %v wait", len(got), turns.in.Len(), turns.order)
		}
	})
}
