package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

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
		set, shown, claims string
		counts, show       string
		trouble            string // words of it; "": none
	}{
		"none":                                 {},
		"a private one, which nobody reaches":  {claims: "10.9.0.7", show: "10.9.0.7"},
		"a public one":                         {claims: "203.0.113.9", show: "203.0.113.9", trouble: "203.0.113.9"},
		"one that it has shown":                {shown: "203.0.113.9", claims: "203.0.113.9", counts: "203.0.113.9"},
		"shown, and moved away":                {shown: "203.0.113.9"},
		"shown, and another":                   {shown: "203.0.113.9", claims: "203.0.113.9 203.0.113.8", counts: "203.0.113.9", show: "203.0.113.8", trouble: "203.0.113.8"},
		"a sysadmin's":                         {set: "203.0.113.9", counts: "203.0.113.9"},
		"a sysadmin's, which it says too":      {set: "203.0.113.9", claims: "203.0.113.9", counts: "203.0.113.9"},
		"a resolver's":                         {claims: "10.0.0.53", trouble: "10.0.0.53"},
		"a resolver's, shown before":           {shown: "10.0.0.53", claims: "10.0.0.53", trouble: "10.0.0.53"},
		"a resolver's, which a sysadmin knows": {set: "10.0.0.53", claims: "10.0.0.53", counts: "10.0.0.53"},
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
			n.Name, n.Spec.Addresses, n.Status.Addresses = "n1", addresses(c.set), addresses(c.shown)
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
	if writes > wire.MaxAddresses+5 || refusals < wire.MaxAddresses {
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
