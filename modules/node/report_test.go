package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestAddressIsNotTheHostsToChoose(t *testing.T) {
	const n1, n2, foreign, server = "192.0.2.11", "192.0.2.12", "203.0.113.9", "192.0.2.1"
	type said struct{ claim, from string }
	p := start(t)
	if err := p.join(t, "n2").call(t.Context(), wire.ReportPath, wire.Report{Address: netip.MustParseAddr(n2)}, nil); err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "the other host is known", func() bool {
		n, ok := p.cfg.Nodes.Get("n2")
		return ok && n.Status.Address.IsValid()
	})
	for what, c := range map[string]struct {
		set     string // by a sysadmin
		reports []said
		want    string // address in the end; "": none
		trouble string // words of what is said then; "": nothing
	}{
		"where it comes from":                     {"", []said{{n1, n1}}, n1, ""},
		"twice":                                   {"", []said{{n1, n1}, {n1, n1}}, n1, ""},
		"a foreign one at first":                  {"", []said{{foreign, n1}}, "", "mp nodes set n1 --address " + foreign},
		"a foreign one at first, then the truth":  {"", []said{{foreign, n1}, {n1, n1}}, n1, ""},
		"a foreign one later":                     {"", []said{{n1, n1}, {foreign, n1}}, n1, foreign},
		"a foreign one later, from there":         {"", []said{{n1, n1}, {foreign, foreign}}, n1, foreign},
		"another host's at first":                 {"", []said{{n2, n1}}, "", n2},
		"another host's, from there":              {"", []said{{n2, n2}}, "", "is the address of node n2"},
		"another host's later":                    {"", []said{{n1, n1}, {n2, n1}}, n1, n2},
		"the server's":                            {"", []said{{server, server}}, "", "the server's"},
		"none":                                    {"", []said{{"", n1}}, "", "invalid IP"},
		"its own in IPv6":                         {"", []said{{"2001:db8::1", "2001:db8::1"}}, "", "can't be a host's"},
		"loopback":                                {"", []said{{"127.0.0.1", "127.0.0.1"}}, "", "can't be a host's"},
		"a machine's":                             {"", []said{{"172.30.0.11", "172.30.0.11"}}, "", "can't be a host's"},
		"a pod's":                                 {"", []said{{"10.42.1.9", "10.42.1.9"}}, "", "can't be a host's"},
		"a Service's":                             {"", []said{{"10.43.0.1", "10.43.0.1"}}, "", "can't be a host's"},
		"a group's":                               {"", []said{{"224.0.0.1", "224.0.0.1"}}, "", "can't be a host's"},
		"everybody's":                             {"", []said{{"255.255.255.255", "255.255.255.255"}}, "", "can't be a host's"},
		"reports by another interface":            {"", []said{{n1, n1}, {n1, foreign}}, n1, "come from " + foreign},
		"one that was set":                        {foreign, []said{{foreign, n1}}, foreign, ""},
		"one that was set, and another is said":   {foreign, []said{{n1, n1}}, foreign, "is what counts"},
		"another host's was set":                  {n2, []said{{n2, n1}}, "", "is the address of node n2"},
		"another host's was set, where it is":     {n2, []said{{n1, n1}}, n1, "it is at " + n1 + " as before; set the right one with: mp nodes set n1 --address ADDRESS"},
		"another host's was set, and is said":     {n2, []said{{n1, n1}, {n2, n2}}, n1, "is the address of node n2: it is at " + n1},
		"the server's was set":                    {server, []said{{n1, n1}}, n1, "the server's address: it is at " + n1},
		"a pod's was set, and it is elsewhere":    {"10.42.1.9", []said{{foreign, n1}}, "", "can't be a host's"},
		"written as IPv6, which is the same host": {"", []said{{n1, "::ffff:" + n1}}, n1, ""},
	} {
		t.Run(what, func(t *testing.T) {
			n := &resource.Node{}
			n.Name = "n1"
			if err := n.Spec.Address.UnmarshalText([]byte(c.set)); err != nil {
				t.Fatal(err)
			}
			for _, s := range c.reports {
				claim, _ := netip.ParseAddr(s.claim)
				p.note(n, wire.Report{Address: claim}, netip.MustParseAddr(s.from).Unmap())
			}
			got, trouble := "", ""
			if n.Status.Address.IsValid() {
				got = n.Status.Address.String()
			}
			if c := n.Status.Conditions.Get(resource.NodeAddressConfirmed); c != nil {
				trouble = c.Message
			}
			if got != c.want || (trouble == "") != (c.trouble == "") || !strings.Contains(trouble, c.trouble) {
				t.Errorf("it is at %q, and said is %q; want %q and %q", got, trouble, c.want, c.trouble)
			}
			if want := map[bool]resource.Phase{true: resource.Ready, false: resource.Pending}[got != ""]; n.Status.Phase != want {
				t.Errorf("phase %s, want %s", n.Status.Phase, want)
			}
		})
	}
}

func TestCapacityOnlyShrinksByItself(t *testing.T) {
	const gib = 1 << 30
	size := func(cpu, memory, disk int64) resource.Size {
		return resource.Size{MilliCPU: cpu * 1000, MemoryBytes: memory * gib, DiskBytes: disk * gib}
	}
	first := size(4, 16, 100)
	for what, c := range map[string]struct {
		set, claim, want resource.Size
		reason           string // of what is said; "": nothing
	}{
		"the same":                   {claim: first, want: first},
		"less":                       {claim: size(2, 8, 50), want: size(2, 8, 50)},
		"nothing":                    {},
		"less than nothing":          {claim: size(-1, -1, -1)},
		"a little more":              {claim: size(4, 17, 110), want: first},
		"more disk":                  {claim: size(4, 16, 900), want: first, reason: resource.DiskGrown},
		"more memory":                {claim: size(4, 900, 100), want: first, reason: "Grown"},
		"more of all":                {claim: size(900, 900, 900), want: first, reason: "Grown"},
		"more than there are":        {claim: resource.Size{MilliCPU: 1<<63 - 1, MemoryBytes: 1<<63 - 1, DiskBytes: 1<<63 - 1}, want: first, reason: "Grown"},
		"as a sysadmin has set":      {set: size(8, 0, 0), claim: size(8, 16, 100), want: size(8, 16, 100)},
		"more than that":             {set: size(8, 0, 0), claim: size(64, 16, 100), want: size(8, 16, 100), reason: "Grown"},
		"less than a sysadmin's":     {set: size(64, 64, 640), claim: first, want: first},
		"a sysadmin wants less used": {set: size(1, 1, 1), claim: first, want: size(1, 1, 1), reason: "Grown"},
	} {
		t.Run(what, func(t *testing.T) {
			n := &resource.Node{Spec: resource.NodeSpec{Capacity: c.set}}
			noteCapacity(n, first)
			reason, trouble := noteCapacity(n, c.claim)
			if n.Status.Capacity != c.want || reason != c.reason || (trouble == "") != (reason == "") {
				t.Errorf("it has %v (%q: %s), want %v (%q)", n.Status.Capacity, reason, trouble, c.want, c.reason)
			}
		})
	}
}

func TestReportsAreFitForPeople(t *testing.T) {
	p := start(t)
	evil := "6.1\x1b[2J\n\x00\u202e" + strings.Repeat("k", 100<<10)
	rep := wire.Report{Address: n1Address, Version: evil, Kernel: evil, OS: evil, Drivers: []string{evil}}
	for i := range 1000 {
		rep.Problems = append(rep.Problems, resource.Condition{Type: fmt.Sprint(i, evil), Reason: evil, Message: evil, Status: "Perhaps" + resource.ConditionStatus(evil)})
	}
	rep.Problems[0].Type, rep.Problems[1].Type = resource.NodeAddressConfirmed, resource.NodeReporting
	rep.Networks = []wire.NetworkReport{{ID: "00002a", Message: evil}}
	n := &resource.Node{}
	p.note(n, rep, n1Address)
	texts := append([]string{n.Status.Version, n.Status.Kernel, n.Status.OS}, n.Status.Drivers...)
	for _, c := range n.Status.Conditions {
		texts = append(texts, c.Type, c.Reason, string(c.Status))
		if len(c.Message) > maxText || strings.ContainsFunc(c.Message, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("a message of %d octets: %.40q", len(c.Message), c.Message)
		}
	}
	for _, text := range texts {
		if len(text) > maxName || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%d octets: %.40q", len(text), text)
		}
	}
	if n.Status.Conditions.Get(resource.NodeAddressConfirmed) != nil || n.Status.Conditions.Get(resource.NodeReporting) != nil || len(n.Status.Conditions) > maxItems {
		t.Errorf("a host says in the platform's name: %+v", n.Status.Conditions)
	}
}

// Reports without news are not written, and too many are not heard.
func TestReportsHaveAPace(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	report := func() error { return c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil) }
	if err := report(); err != nil {
		t.Fatal(err)
	}
	first, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	wait.True(t, wait.Patience, "the cache has the first report", func() bool {
		n, ok := p.cfg.Nodes.Get("n1")
		return ok && n.Revision == first.Revision
	})
	refusals := 0
	for range 5 * wire.ReportBurst {
		var no refused
		switch err := report(); {
		case errors.As(err, &no) && no.status == http.StatusTooManyRequests:
			refusals++
		case err != nil:
			t.Fatal(err)
		}
	}
	if refusals < 3*wire.ReportBurst {
		t.Errorf("of %d reports at once %d are refused", 5*wire.ReportBurst, refusals)
	}
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil || n.Revision != first.Revision {
		t.Errorf("reports without news are written: revision %d after %d, %v", n.Revision, first.Revision, err)
	}
	if err := c.call(t.Context(), wire.ItemsPath, wire.Items{}, nil); err != nil {
		t.Errorf("what it sees of volumes is not heard for it: %v", err)
	}
	if other := p.join(t, "n2"); other.call(t.Context(), wire.ReportPath, wire.Report{Address: netip.MustParseAddr("192.0.2.12")}, nil) != nil {
		t.Error("another node is not heard for it")
	}
}

// A host that was given up is nobody at once, though its machines are still in the
// books.
func TestALostHostIsNobody(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	m := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	m.Name, m.Spec.Node, m.Spec.Index = "shop-1", "n1", 1
	if err := store.Of[resource.Machine](p.store).Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	cert := c.certificate(t)
	wait.True(t, wait.Patience, "the node runs the machine", func() bool { return p.Runs(cert, "acme/web/shop") })
	change := func(change func(*resource.Node)) {
		t.Helper()
		_, err := store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error { change(n); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(n *resource.Node) { n.Spec.Lost = true })
	if err := c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); err != nil {
		t.Errorf("a node that nobody has removed yet: %v", err)
	}
	change(func(n *resource.Node) { n.DeletedAt = new(time.Now()) })
	wait.True(t, wait.Patience, "it pulls no images", func() bool { return !p.Runs(cert, "acme/web/shop") })
	for _, path := range []string{wire.ReportPath, wire.CertificatePath, wire.MachineCertificatesPath, wire.LeavePath} {
		if err := c.call(t.Context(), path, struct{}{}, nil); !errors.Is(err, errGone) {
			t.Errorf("%s: got %v, want %v", path, err, errGone)
		}
	}
}
