package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

func addresses(texts string) (all []netip.Addr) {
	for _, text := range strings.Fields(texts) {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// Other addresses of a host count once it has shown them, or a sysadmin says so: all
// tenants are kept from them.
func TestOtherAddressesAreShown(t *testing.T) {
	p := start(t)
	p.cfg.Named = addresses("10.0.0.53")
	p.cfg.Reached = func(a netip.Addr) bool { return !a.IsPrivate() || a == netip.MustParseAddr("10.0.0.53") }
	if err := p.join(t, "n2").call(t.Context(), wire.ReportPath, wire.Report{Address: netip.MustParseAddr("192.0.2.12")}, nil); err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "the other host is known", func() bool {
		n, ok := p.cfg.Nodes.Get("n2")
		return ok && n.Status.Address.IsValid()
	})
	many := ""
	for i := range 300 {
		many += fmt.Sprintf(" 203.0.113.%d", i%256)
	}
	for what, c := range map[string]struct {
		set, not, shown, claims string
		counts, show            string
		trouble                 string // words of it; "": none
	}{
		"none":                                 {},
		"a private one, which nobody reaches":  {claims: "10.9.0.7"},
		"a private one, shown when they did":   {shown: "10.9.0.7", claims: "10.9.0.7", counts: "10.9.0.7"},
		"a public one":                         {claims: "203.0.113.9", show: "203.0.113.9", trouble: "203.0.113.9"},
		"one that it has shown":                {shown: "203.0.113.9", claims: "203.0.113.9", counts: "203.0.113.9"},
		"shown, and moved away":                {shown: "203.0.113.9"},
		"shown, and another":                   {shown: "203.0.113.9", claims: "203.0.113.9 203.0.113.8", counts: "203.0.113.9", show: "203.0.113.8", trouble: "203.0.113.8"},
		"a sysadmin's":                         {set: "203.0.113.9", counts: "203.0.113.9"},
		"a sysadmin's, which it says too":      {set: "203.0.113.9", claims: "203.0.113.9", counts: "203.0.113.9"},
		"a resolver's":                         {claims: "10.0.0.53", trouble: "10.0.0.53"},
		"a resolver's, shown before":           {shown: "10.0.0.53", claims: "10.0.0.53", trouble: "10.0.0.53"},
		"a resolver's, which a sysadmin knows": {set: "10.0.0.53", claims: "10.0.0.53", counts: "10.0.0.53"},
		"somebody else's, as a sysadmin says":  {not: "203.0.113.9", claims: "203.0.113.9"},
		"somebody else's, which it has shown":  {not: "203.0.113.9", shown: "203.0.113.9 203.0.113.8", claims: "203.0.113.9 203.0.113.8", counts: "203.0.113.8"},
		"its own":                              {claims: "192.0.2.11"},
		"another host's":                       {claims: "192.0.2.12", shown: "192.0.2.12"},
		"the server's":                         {claims: "192.0.2.1"},
		"nobody's":                             {claims: "127.0.0.1 169.254.1.1 224.0.0.1 255.255.255.255 0.0.0.0 ::1 2001:db8::1 ::ffff:203.0.113.9"},
		"of a workspace's network":             {claims: "172.30.0.11 10.42.1.9 10.43.0.10", shown: "172.30.0.11"},
		"twice":                                {claims: "203.0.113.9 203.0.113.9", show: "203.0.113.9", trouble: "203.0.113.9"},
		"very many":                            {claims: many, show: "64", trouble: "and 240 more"},
	} {
		t.Run(what, func(t *testing.T) {
			n := &resource.Node{}
			n.Name, n.Spec.Addresses, n.Spec.NotAddresses, n.Status.Addresses = "n1", addresses(c.set), addresses(c.not), addresses(c.shown)
			for _, a := range n.Status.Addresses {
				n.Status.Shown = append(n.Status.Shown, resource.ShownAddress{Address: a, At: time.Now()})
			}
			show := p.note(n, wire.Report{Address: n1Address, Addresses: addresses(c.claims)}, n1Address)
			if c.show == "64" {
				if len(show) != wire.MaxAddresses {
					t.Errorf("it shall show %d", len(show))
				}
			} else if !slices.Equal(show, addresses(c.show)) {
				t.Errorf("it shall show %v, want %s", show, c.show)
			}
			if !slices.Equal(n.Status.Addresses, addresses(c.counts)) {
				t.Errorf("it has %v, want %s", n.Status.Addresses, c.counts)
			}
			trouble := ""
			if c := n.Status.Conditions.Get(resource.NodeAddressesShown); c != nil {
				trouble = c.Message
			}
			if (trouble == "") != (c.trouble == "") || !strings.Contains(trouble, c.trouble) {
				t.Errorf("said is %q, want %q", trouble, c.trouble)
			}
			if n.Status.Address != n1Address || n.Status.Phase != resource.Ready {
				t.Errorf("it is %s at %v", n.Status.Phase, n.Status.Address)
			}
		})
	}
}

// A host shows an address by asking from there; all hosts are told then.
func TestAnAddressIsShownAndMoves(t *testing.T) {
	p := start(t)
	virtual := netip.MustParseAddr("198.51.100.9")
	hosts := map[string]*host{}
	report := func(name string, others ...netip.Addr) (answer wire.ReportAnswer) {
		t.Helper()
		h := hosts[name]
		h.from = netip.Addr{}
		at := map[string]string{"n1": "192.0.2.11", "n2": "192.0.2.12"}[name]
		if err := h.call(t.Context(), wire.ReportPath, wire.Report{Address: netip.MustParseAddr(at), Addresses: others}, &answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	show := func(name, from string, claim netip.Addr) error {
		hosts[name].from = netip.MustParseAddr(from)
		return hosts[name].call(t.Context(), wire.AddressPath, wire.AddressShown{Address: claim}, nil)
	}
	has := func(name string, want ...netip.Addr) {
		t.Helper()
		n, err := store.Of[resource.Node](p.store).Get(t.Context(), name)
		if err != nil || !slices.Equal(n.Status.Addresses, want) {
			t.Fatalf("%s has %v, want %v; %v", name, n.Status.Addresses, want, err)
		}
		wait.True(t, wait.Patience, "the cache has it", func() bool {
			c, ok := p.cfg.Nodes.Get(name)
			return ok && slices.Equal(c.Status.Addresses, want)
		})
	}
	for _, name := range []string{"n1", "n2"} {
		hosts[name] = p.join(t, name)
		report(name)
		wait.True(t, wait.Patience, "the cache knows where it is", func() bool {
			c, ok := p.cfg.Nodes.Get(name)
			return ok && c.Status.Address.IsValid()
		})
	}
	if got := report("n1", virtual).Show; !slices.Equal(got, []netip.Addr{virtual}) {
		t.Fatalf("it shall show %v", got)
	}
	has("n1")
	for from, claim := range map[string]netip.Addr{
		"192.0.2.11":     virtual,                            // from elsewhere
		virtual.String(): netip.MustParseAddr("203.0.113.1"), // or for another
		"192.0.2.1":      netip.MustParseAddr("192.0.2.1"),
		"192.0.2.12":     netip.MustParseAddr("192.0.2.12"),
		"172.30.0.11":    netip.MustParseAddr("172.30.0.11"),
		"127.0.0.1":      netip.MustParseAddr("127.0.0.1"),
	} {
		var no refused
		if err := show("n1", from, claim); !errors.As(err, &no) || no.status != http.StatusUnprocessableEntity {
			t.Errorf("%v from %s: %v, want 422", claim, from, err)
		}
	}
	has("n1")
	for range 2 {
		if err := show("n1", virtual.String(), virtual); err != nil {
			t.Fatal(err)
		}
	}
	has("n1", virtual)
	if got := report("n1", virtual).Show; got != nil {
		t.Errorf("it shall show again %v", got)
	}
	// It moves: for a moment both have it.
	report("n2", virtual)
	if err := show("n2", virtual.String(), virtual); err != nil {
		t.Fatal(err)
	}
	has("n2", virtual)
	report("n1")
	has("n1")
	report("n2", virtual)
	has("n2", virtual)
}

// Each time an address comes or goes, all hosts look after all their networks: not as
// often as a host likes. What it has said goes on meanwhile.
func TestAddressesComeAndGoAtAPace(t *testing.T) {
	p := start(t)
	h := p.join(t, "n1")
	// One that has its start and gets no more.
	p.pace("n1").addresses = flowcontrol.NewTokenBucketRateLimiter(1e-9, wire.MaxAddresses/2)
	var writes, refusals int
	last := int64(0)
	for i := range 3 * wire.MaxAddresses {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		h.from = a
		err := h.call(t.Context(), wire.AddressPath, wire.AddressShown{Address: a}, nil)
		var no refused
		if errors.As(err, &no) && (no.status == http.StatusTooManyRequests || no.status == http.StatusUnprocessableEntity) {
			refusals++
		} else if err != nil {
			t.Fatal(err)
		}
		n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
		if err != nil {
			t.Fatal(err)
		}
		if n.Revision != last {
			writes, last = writes+1, n.Revision
		}
		if len(n.Status.Addresses) > wire.MaxAddresses {
			t.Fatalf("it has %d addresses", len(n.Status.Addresses))
		}
	}
	if writes > wire.MaxAddresses/2+1 || refusals < wire.MaxAddresses {
		t.Errorf("%d writes, %d refusals", writes, refusals)
	}
	// It has nothing left to take back what it said.
	before, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "the cache has it", func() bool { n, ok := p.cfg.Nodes.Get("n1"); return ok && n.Revision == before.Revision })
	h.from = n1Address
	if err := h.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); err != nil {
		t.Fatal(err)
	}
	after, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil || !slices.Equal(before.Status.Addresses, after.Status.Addresses) {
		t.Errorf("it had %d addresses and has %d, %v", len(before.Status.Addresses), len(after.Status.Addresses), err)
	}
}

// What a host has shown counts for an hour, and as long as it shows it again when it is
// asked to: it is asked in time. So nobody has another's address for long.
func TestWhatWasShownCountsForAWhile(t *testing.T) {
	p := start(t)
	began := p.began
	var passed atomic.Int64
	p.now = func() time.Time { return began.Add(time.Duration(passed.Load())) }
	at := func(d time.Duration) { passed.Store(int64(d)) }
	monitor := &Monitor{Log: slog.New(slog.DiscardHandler), Store: p.store, Nodes: p.cfg.Nodes, Machines: p.cfg.Machines, Claims: p.cfg.Claims, Trash: p.cfg.Trash, now: p.now}
	h, virtual := p.join(t, "n1"), netip.MustParseAddr("203.0.113.9")
	p.pace("n1").reports = flowcontrol.NewFakeAlwaysRateLimiter()
	p.pace("n1").addresses = flowcontrol.NewTokenBucketRateLimiter(1e-9, 3) // shown three times anew; again costs nothing
	node := func() *resource.Node {
		t.Helper()
		n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
		if err != nil {
			t.Fatal(err)
		}
		wait.True(t, wait.Patience, "the cache has it", func() bool {
			c, ok := p.cfg.Nodes.Get("n1")
			return ok && c.Revision >= n.Revision
		})
		return n
	}
	report := func() []netip.Addr {
		t.Helper()
		var answer wire.ReportAnswer
		h.from = netip.Addr{}
		if err := h.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address, Addresses: []netip.Addr{virtual}}, &answer); err != nil {
			t.Fatal(err)
		}
		node()
		return answer.Show
	}
	show := func() error {
		h.from = virtual
		err := h.call(t.Context(), wire.AddressPath, wire.AddressShown{Address: virtual}, nil)
		node()
		return err
	}
	look := func() {
		t.Helper()
		if err := monitor.look(t.Context(), node(), began); err != nil {
			t.Fatal(err)
		}
	}
	has := func(what string, want bool) {
		t.Helper()
		if n := node(); slices.Contains(n.Status.Addresses, virtual) != want {
			t.Fatalf("%s it has %v, shown %v", what, n.Status.Addresses, n.Status.Shown)
		}
	}
	set := func(not ...netip.Addr) {
		t.Helper()
		if _, err := store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error {
			n.Spec.NotAddresses = not
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		look()
	}
	asked := 0
	if asked = len(report()); asked != 1 || show() != nil {
		t.Fatal("it is not asked to show it")
	}
	// An honest one, for a day.
	for now := time.Duration(0); now < 24*time.Hour; now += 7 * time.Minute {
		at(now)
		if report() != nil {
			if asked++; show() != nil {
				t.Fatalf("not shown after %v", now)
			}
			if again := report(); again != nil {
				t.Fatalf("asked at once again for %v", again)
			}
		}
		revision := node().Revision
		if show() != nil || node().Revision != revision {
			t.Error("unasked it costs a write")
		}
		look()
		has(now.String(), true)
	}
	if asked < 24 || asked > 24*2+1 {
		t.Errorf("asked %d times in a day", asked)
	}
	// One that has it no more says so all the same.
	at(24*time.Hour + 29*time.Minute)
	has("half an hour later", true)
	at(25*time.Hour + time.Minute)
	if got := report(); len(got) != 1 {
		t.Errorf("it shall show %v", got)
	}
	has("an hour later", false)
	if c := node().Status.Conditions.Get(resource.NodeAddressesShown); c == nil {
		t.Error("nothing is said")
	}
	// One that has died.
	if err := show(); err != nil {
		t.Fatal(err)
	}
	has("shown", true)
	at(25*time.Hour + 50*time.Minute)
	look()
	has("silent", true)
	at(26*time.Hour + 2*time.Minute)
	look()
	has("silent for an hour", false)
	// A sysadmin says no, at once and for good.
	if err := show(); err != nil {
		t.Fatal(err)
	}
	has("shown again", true)
	set(virtual)
	has("with a no", false)
	if got := report(); got != nil {
		t.Errorf("it shall show %v", got)
	}
	var no refused
	if err := show(); !errors.As(err, &no) || no.status != http.StatusUnprocessableEntity {
		t.Errorf("shown in spite of that: %v", err)
	}
	if c := node().Status.Conditions.Get(resource.NodeAddressesShown); c != nil {
		t.Errorf("what is settled is said: %s", c.Message)
	}
}

// A server that was away has not asked: what was shown before counts until it has.
func TestAServerThatWasAwayAsksAgain(t *testing.T) {
	a, now := netip.MustParseAddr("203.0.113.9"), time.Now()
	n := &resource.Node{}
	n.Status.Addresses = []netip.Addr{a}
	n.Status.Shown = []resource.ShownAddress{{Address: a, At: now.Add(-24 * time.Hour)}}
	if expire(n, now, now) || !due(shownAt(n, a), now) {
		t.Error("it is not asked first")
	}
	if !expire(n, now.Add(shownFor/2), now) || len(n.Status.Addresses)+len(n.Status.Shown) != 0 {
		t.Errorf("it has %v for ever", n.Status.Addresses)
	}
}

// own is a server's list.
type own struct {
	all []netip.Addr
	fn  func()
}

func (o *own) List() []netip.Addr { return o.all }
func (o *own) OnChange(fn func()) { o.fn = fn }

// What a server has besides is told to all nodes, and a change wakes who follows.
func TestAServersOtherAddresses(t *testing.T) {
	p := start(t)
	o := &own{}
	cfg := p.cfg
	cfg.Own = o
	h := NewHub(cfg)
	changed := h.waitChange()
	o.all = addresses("198.51.100.1")
	o.fn()
	select {
	case <-changed:
	default:
		t.Error("nobody is woken")
	}
}
