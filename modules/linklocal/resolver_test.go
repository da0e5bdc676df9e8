package linklocal

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestServersThatAreQuietAreAskedLast(t *testing.T) {
	t.Parallel()
	a, b, c := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")
	all := []netip.AddrPort{a, b, c}
	var s silent
	now := time.Now()
	want := func(what string, servers ...netip.AddrPort) {
		t.Helper()
		if got := s.order(all, now); !slices.Equal(got, servers) {
			t.Errorf("%s: %v, want %v", what, got, servers)
		}
	}
	want("at first", a, b, c)
	s.note(a, false, now)
	want("the first is quiet", b, c, a)
	s.note(b, false, now)
	s.note(c, false, now)
	want("all are", a, b, c)
	s.note(b, true, now)
	want("one answers again", b, a, c)
	now = now.Add(serverRest)
	want("after a while one question tries the first", a, b, c)
	want("and no other before that has an answer", b, c, a)
	s.note(a, true, now)
	want("it has", a, b, c)
	for i := range 100 {
		s.note(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53), false, now)
	}
	if len(s.until) > 16 {
		t.Errorf("%d servers are remembered", len(s.until))
	}
}
