package balancer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/wait"
)

// manyPods are n endpoints from 127.first.0.0 on, as fat as a tenant can make them.
func manyPods(first, n int) (out []discovery.Endpoint) {
	for i := range n {
		e := endpoint(fmt.Sprintf("127.%d.%d.%d", first, i/250, i%250+1), true, false)
		for j := range 5 { // of which the first is the pod
			e.Addresses = append(e.Addresses, fmt.Sprintf("127.200.%d.%d", j, i%250+1))
		}
		e.NodeName = new(strings.Repeat("n", 200))
		out = append(out, e)
	}
	return out
}

// routeSays waits until the condition of a route is as wanted.
func (s *site) routeSays(host, reason, words string) {
	s.t.Helper()
	wait.For(s.t, wait.Patience, "the route says "+reason, func(ctx context.Context) error {
		r, err := store.Of[resource.Route](s.store).Get(ctx, host)
		if err != nil {
			return err
		}
		c := r.Status.Conditions.Get(resource.RouteReady)
		if c == nil || c.Reason != reason || !strings.Contains(c.Message, words) {
			return fmt.Errorf("it says %+v", c)
		}
		return nil
	})
}

func (b *Balancer) backendsOf(host string) int { return len(*b.table.lookup(host).backends.Load()) }

// TestEndpointsAreBounded: a tenant may write any number of EndpointSlices. A service
// gets so many of them, a workspace so many, and the tenant is told.
func TestEndpointsAreBounded(t *testing.T) {
	s := newSite(t)
	k := s.workspace(shop)
	k.set("default", "hello", manyPods(1, maxEndpoints)...)
	b, stop := s.balancer()
	defer stop()
	s.route(hello, shop, "hello")
	s.routeSays(hello, "Served", "reach the app")
	wait.True(t, wait.Patience, "all endpoints are there", func() bool { return b.backendsOf(hello) == maxEndpoints })

	k.setSlice("default", "hello", "hello-more", pods("127.0.0.2")...)
	s.routeSays(hello, "TooManyEndpoints", fmt.Sprintf("more than %d endpoints", maxEndpoints))
	if n := b.backendsOf(hello); n != maxEndpoints {
		t.Errorf("%d backends, want %d", n, maxEndpoints)
	}
	k.remove("default", "hello-more")
	s.routeSays(hello, "Served", "reach the app")

	// What is routed is all that is kept.
	for i := range 12 {
		k.setSlice("other", "hello", fmt.Sprintf("other-%d", i), manyPods(20+i, 1000)...)
	}
	for i := range 11 {
		k.setSlice("default", "hello", fmt.Sprintf("hello-%d", i), manyPods(2+i, 1000)...)
	}
	s.routeSays(hello, "TooManyEndpoints", fmt.Sprintf("more than %d endpoints", maxWorkspaceEndpoints))
	wait.For(t, wait.Patience, "the table is saved", func(context.Context) error {
		info, err := os.Stat(savedFile(filepath.Join(s.dir, "routes"), shop))
		if err == nil && (info.Size() < 10_000 || info.Size() > 100_000) {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	if n := b.backendsOf(hello); n != maxEndpoints {
		t.Errorf("%d backends, want %d", n, maxEndpoints)
	}
}

// TestSlicesAreSlim: of a slice the ready pods are kept, and nothing of one that no
// route needs.
func TestSlicesAreSlim(t *testing.T) {
	f := (&Balancer{cfg: Config{Pods: netip.MustParsePrefix("10.42.0.0/16")}}).newFollower(shop, map[service]bool{{shop, "default", "hello"}: true})
	made := func(namespace, name string, addresses ...string) *discovery.EndpointSlice {
		s := sliceOf(addresses...)
		s.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Labels: map[string]string{discovery.LabelServiceName: name}}
		return s
	}
	for _, c := range []struct {
		slice *discovery.EndpointSlice
		want  string
	}{
		{made("default", "hello", "10.42.0.2", "10.42.0.1", "10.42.0.2"), "[10.42.0.1 10.42.0.2]"},
		{made("default", "hello"), ""},
		{made("default", "hello", "10.43.0.1"), ""},
		{made("other", "hello", "10.42.0.1"), ""},
		{made("default", "hallo", "10.42.0.1"), ""},
		{&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, AddressType: discovery.AddressTypeIPv4, Endpoints: pods("10.42.0.1")}, ""},
	} {
		got := ""
		if kept := f.slim(c.slice); kept != nil {
			got = fmt.Sprint(kept.pods)
		}
		if got != c.want {
			t.Errorf("%s/%s: got %s, want %s", c.slice.Namespace, c.slice.Labels, got, c.want)
		}
	}
}

// TestPickOfMany looks at some of a thousand backends, and finds the few that can be
// reached wherever they are.
func TestPickOfMany(t *testing.T) {
	p := newPool(shop, siteOf(shop, domain), 80, nil)
	var addrs []netip.Addr
	for i := range maxEndpoints {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 42, byte(i / 250), byte(i % 250)}))
	}
	p.set(addrs)
	list := *p.backends.Load()
	seen := map[*backend]bool{}
	for range 4 * maxEndpoints {
		b := p.pick(nil)
		b.active.Add(1)
		seen[b] = true
	}
	most := int64(0)
	for _, b := range list {
		most = max(most, b.active.Load())
	}
	if len(seen) != maxEndpoints || most > 6 {
		t.Errorf("%d of %d backends were picked, one of them %d times; want all, about four times", len(seen), maxEndpoints, most)
	}
	for _, b := range list[:900] { // their machines lost power
		b.rests.Store(time.Now().Add(time.Hour).UnixNano())
	}
	for range 2 * maxEndpoints {
		if b := p.pick(nil); b.rests.Load() != 0 {
			t.Fatal("one that rests was picked while others can be reached")
		}
	}
}

// TestSavedTables: each workspace's is its own: one that can't be read, or says
// something of another, takes nothing from the others.
func TestSavedTables(t *testing.T) {
	dir := t.TempDir()
	write := func(workspace, content string) {
		t.Helper()
		if err := os.WriteFile(savedFile(dir, workspace), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(host, workspace string) string {
		return fmt.Sprintf(`{"routes":[{"host":%q,"workspace":%q,"namespace":"default","service":"x","port":80}]}`, host, workspace)
	}
	write("acme/web/good", entry("good.example", "acme/web/good"))
	write("acme/web/liar", entry("liar.example", "acme/web/good"))
	write("acme/web/torn", entry("torn.example", "acme/web/torn")[:40])
	write("acme/web/huge", strings.Repeat(" ", maxSaved)+entry("huge.example", "acme/web/huge"))
	tab := newTable(domain, func(string) DialFunc { return nil }, func(string) {})
	err := tab.load(dir)
	if err == nil || !strings.Contains(err.Error(), "torn") || !strings.Contains(err.Error(), "huge") {
		t.Errorf("got %v, want an error for the two that can't be read", err)
	}
	if hosts := tab.hosts(); len(hosts) != 1 || hosts[0] != "good.example" || len(tab.unsaved()) != 0 {
		t.Errorf("routed: %v", hosts)
	}
	tab.remove("good.example")
	if got := tab.unsaved(); len(got) != 1 || got[0] != "acme/web/good" {
		t.Errorf("to be saved: %v", got)
	}
	if err := tab.save(dir, "acme/web/good"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(savedFile(dir, "acme/web/good")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a workspace without routes has a file: %v", err)
	}
}
