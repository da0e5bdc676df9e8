package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// teller tries to connect from somewhere.
type teller struct {
	who string
	try func(targets []string) map[string]string
}

// tellers are where A's code runs: a pod, a machine whose root it has become, and the
// network of its plane.
func (s *suite) tellers(t *testing.T) []teller {
	t.Helper()
	s.putTool(t)
	id := s.workspaceID(t, dctest.Rival, "box")
	within := func(p space) func([]string) map[string]string {
		return func(targets []string) map[string]string {
			out, err := p.command(t.Context(), append([]string{hostTool, "try"}, targets...)...).Output()
			if err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			return answers(string(out))
		}
	}
	return []teller{
		{"pod of A, root", func(targets []string) map[string]string { return s.tries(t, s.attacker, targets) }},
		{"root in A's machine", within(s.machineSpaces(t, id)[0])},
		{"code of A in A's plane", within(space{s.Server, "mp-" + id})},
	}
}

// testAddresses has A look for hosts at other addresses than those by which they are the
// platform's: of a second network card, and one that moves between hosts. And for
// private networks, which the operator's router knows.
func testAddresses(t *testing.T, s *suite) {
	tellers := s.tellers(t)
	beside := s.besides(t)
	var both sync.WaitGroup // who is not answered waits for seconds
	both.Go(func() { t.Run("other", func(t *testing.T) { s.otherAddresses(t, tellers, beside) }) })
	both.Go(func() { t.Run("private", func(t *testing.T) { s.privateNetworks(t, tellers, beside) }) })
	both.Wait()
}

// ip changes addresses or routes of a host; what is there or gone already is right.
func ip(t *testing.T, h *lab.Host, command string) {
	t.Helper()
	if out, err := h.Command(context.WithoutCancel(t.Context()), append([]string{"ip"}, strings.Fields(command)...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: ip %s: %v: %s", h.Name(), command, err, out)
	}
}

// lead has all other hosts find an address at one.
func (s *suite) lead(t *testing.T, address string, to netip.Addr) {
	t.Helper()
	for _, h := range s.Lab.Hosts() {
		if h.Address() != to {
			ip(t, h, "route replace "+address+" via "+to.String())
		}
	}
}

func (s *suite) unlead(t *testing.T, address string) {
	for _, h := range s.Lab.Hosts() {
		_ = h.Command(context.WithoutCancel(t.Context()), "ip", "route", "del", address).Run()
	}
}

// here gives the lab's own end, a machine beside the platform, an address, and all hosts
// a way there.
func (s *suite) here(t *testing.T, address string) {
	t.Helper()
	links, err := exec.CommandContext(t.Context(), "ip", "-o", "addr", "show", "to", s.Lab.Address().String()).Output()
	f := strings.Fields(string(links))
	if err != nil || len(f) < 2 {
		t.Fatalf("the lab's bridge: %q, %v", links, err)
	}
	whole := netip.MustParseAddr(address)
	prefix := netip.PrefixFrom(whole, whole.BitLen()).String()
	if out, err := exec.CommandContext(t.Context(), "ip", "addr", "replace", prefix, "dev", f[1]).CombinedOutput(); err != nil {
		t.Fatalf("add %s: %v: %s", prefix, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", prefix, "dev", f[1]).Run() })
	if whole.Is4() {
		s.lead(t, address, s.Lab.Address())
		t.Cleanup(func() { s.unlead(t, address) })
	}
}

// besides listens beside the platform, at a public address: "tcp:ADDRESS:PORT".
func (s *suite) besides(t *testing.T) string {
	t.Helper()
	const address = "198.51.100.220"
	s.here(t, address)
	ln, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return "tcp:" + ln.Addr().String()
}

// portsOfHosts are what somebody could listen on.
var portsOfHosts = []string{"tcp:22", "tcp:80", "tcp:111", "tcp:443", "tcp:2379", "tcp:5000", "tcp:5432", "tcp:6443", "tcp:7443", "tcp:8080", "tcp:9100", "tcp:10250", "tcp:10256", "udp:53", "udp:4789"}

func at(address string) (targets []string) {
	for _, port := range portsOfHosts {
		network, number, _ := strings.Cut(port, ":")
		targets = append(targets, network+":"+address+":"+number)
	}
	return targets
}

// answersAt says whether somebody was there, and be it with a refusal.
func answersAt(outcome string) bool {
	return strings.HasPrefix(outcome, "open") || strings.Contains(outcome, "refused")
}

// refused tries targets from everywhere at once, and records that nobody answers. Who does
// not reach beside is no witness.
func (s *suite) refused(t *testing.T, tellers []teller, what map[string]string, beside, how string) {
	t.Helper()
	targets := slices.Sorted(maps.Keys(what))
	all := make([]map[string]string, len(tellers))
	var wg sync.WaitGroup
	for i, from := range tellers {
		wg.Go(func() {
			all[i] = from.try(append(slices.Clone(targets), beside))
			if !strings.HasPrefix(all[i][beside], "open") {
				all[i][beside] = truthfully("open", func() string { return from.try([]string{beside})[beside] })
			}
		})
	}
	wg.Wait()
	for i, from := range tellers {
		if got := all[i][beside]; !strings.HasPrefix(got, "open") {
			s.control(t, from.who+" reaches what is beside the platform", errors.New(got))
			continue
		}
		for _, target := range targets {
			got := all[i][target]
			s.record(t, attempt{What: "connect to " + target + " (" + what[target] + ")" + how, From: from.who, Want: "no answer of anybody there", Got: got,
				Blocked: strings.HasPrefix(got, "closed") && !answersAt(got)})
		}
	}
}

// otherAddresses tries what hosts have besides.
func (s *suite) otherAddresses(t *testing.T, tellers []teller, beside string) {
	second := map[string]*lab.Host{}
	for i, h := range s.Lab.Hosts() {
		second[fmt.Sprintf("198.51.100.%d", 201+i)] = h
	}
	const virtual = "203.0.113.201"
	hosts := s.Lab.Hosts()
	defer func() {
		for _, h := range hosts {
			for address := range second {
				_ = h.Command(context.WithoutCancel(t.Context()), "ip", "addr", "del", address+"/32", "dev", "lo").Run()
			}
			_ = h.Command(context.WithoutCancel(t.Context()), "ip", "addr", "del", virtual+"/32", "dev", "lo").Run()
		}
		for address := range second {
			s.unlead(t, address)
		}
		s.unlead(t, virtual)
	}()
	a := s.people(t)
	admin := a.admin(t)
	// shown waits until a node has shown that it has an address; a server need not.
	shown := func(h *lab.Host, address string) (took time.Duration) {
		t.Helper()
		began := time.Now()
		if h.Name() == s.Server.Name() {
			return 0
		}
		wait.For(t, wait.Patience, h.Name()+" has shown "+address, func(context.Context) error {
			var told struct{ Status struct{ Addresses []string } }
			got := a.bearer(t, admin, http.MethodGet, s.URL()+"/v1/nodes/"+h.Name(), "")
			if err := json.Unmarshal([]byte(got.body), &told); err != nil || !slices.Contains(told.Status.Addresses, address) {
				return errors.New(got.String())
			}
			return nil
		})
		return time.Since(began)
	}
	// heard waits until all hosts keep tenants from an address, or none does.
	heard := func(address string, want bool) {
		t.Helper()
		wait.For(t, wait.Patience, fmt.Sprintf("on all hosts there is a rule for %s: %v", address, want), func(ctx context.Context) error {
			for _, h := range hosts {
				rules, err := h.Run(ctx, "nft", "list", "chain", "ip", "multipaas", "outward")
				if has := strings.Contains(string(rules), address); err != nil || has != want {
					return fmt.Errorf("%s: %v, %v", h.Name(), has, err)
				}
			}
			return nil
		})
	}
	what := map[string]string{}
	for address, h := range second {
		s.lead(t, address, h.Address())
		ip(t, h, "addr replace "+address+"/32 dev lo")
		for _, target := range at(address) {
			what[target] = "the second address of " + h.Name()
		}
	}
	for address, h := range second {
		// The control: who is no tenant is answered there.
		if got := s.fromHost(t, other(hosts, h), "tcp:"+address+":22"); !answersAt(got) {
			s.control(t, h.Name()+" answers at its second address", errors.New(got))
			return
		}
		shown(h, address)
		heard(address, true)
	}
	s.refused(t, tellers, what, beside, "")
	// One moves from host to host, to the server at last.
	what = map[string]string{}
	for _, target := range at(virtual) {
		what[target] = "an address that moves"
	}
	var before *lab.Host
	for _, h := range []*lab.Host{s.Nodes[0], s.Nodes[1], s.Server} {
		if before != nil {
			ip(t, before, "addr del "+virtual+"/32 dev lo")
			_ = h.Command(t.Context(), "ip", "route", "del", virtual).Run()
			// Or the rules that follow would be those of where it was, which go while it is tried.
			heard(virtual, false)
		}
		s.lead(t, virtual, h.Address())
		ip(t, h, "addr replace "+virtual+"/32 dev lo")
		took := shown(h, virtual)
		s.record(t, attempt{What: "be faster than an address that moves to " + h.Name(), From: "anywhere of A", Want: "it is known in time",
			Got: took.Round(100 * time.Millisecond).String(), Blocked: took < wait.Patience})
		heard(virtual, true)
		if before != nil { // where it begins it is as any other
			s.refused(t, tellers, what, beside, ", now at "+h.Name())
		}
		before = h
	}
}

// other is one of the hosts that is not h.
func other(hosts []*lab.Host, h *lab.Host) *lab.Host {
	return hosts[slices.IndexFunc(hosts, func(o *lab.Host) bool { return o.Name() != h.Name() })]
}

// fromHost tries once from a host itself.
func (s *suite) fromHost(t *testing.T, h *lab.Host, target string) string {
	t.Helper()
	out, err := h.Command(t.Context(), hostTool, "try", target).Output()
	if err != nil {
		t.Fatal(err)
	}
	return answers(string(out))[target]
}

// privateNetworks tries networks that are no internet, as the operator's router knows
// them: they are shut unless he has listed them. Who may not go there hears it at once.
func (s *suite) privateNetworks(t *testing.T, tellers []teller, beside string) {
	const listed, besideListed = "10.250.7.9", "10.250.8.9"
	private := map[string]string{
		listed: "RFC 1918", besideListed: "RFC 1918", "172.16.0.9": "RFC 1918", "172.31.255.9": "RFC 1918", "192.168.77.9": "RFC 1918",
		"100.65.0.9": "RFC 6598", "100.127.255.9": "RFC 6598", "169.254.77.9": "link-local",
	}
	ports := []string{"22", "80", "443", "5432"}
	var targets []string
	for address := range private {
		s.here(t, address)
		for _, port := range ports {
			targets = append(targets, "tcp:"+address+":"+port)
		}
		if got := s.fromHost(t, s.Nodes[0], "tcp:"+address+":22"); !answersAt(got) {
			s.control(t, "hosts reach "+address, errors.New(got))
			return
		}
	}
	for _, address := range []string{"[fd00:77::9]", "[fc00::1]", "[fe80::1]", "[2001:db8::9]", "[::ffff:10.250.7.9]", "[64:ff9b::a00:1]"} {
		for _, port := range ports {
			targets = append(targets, "tcp:"+address+":"+port)
		}
	}
	for network, kind := range map[string]string{"10.0.0.1": "RFC 1918", "10.255.255.254": "RFC 1918", "192.168.255.254": "RFC 1918", "100.100.100.200": "RFC 6598"} {
		private[network] = kind
		targets = append(targets, "tcp:"+network+":80")
	}
	what := map[string]string{}
	for _, target := range targets {
		what[target] = "a private network"
	}
	s.refused(t, tellers, what, beside, "")
	// Who may go to one may go to that one.
	home := s.machineSpaces(t, s.workspaceID(t, dctest.Rival, "box"))[0].host
	var service lab.Service
	data, err := os.ReadFile(filepath.Join(home.Dir(), "services", "multipaas.json"))
	if err == nil {
		err = json.Unmarshal(data, &service)
	}
	if err != nil {
		t.Fatal(err)
	}
	again := func(env ...string) {
		t.Helper()
		one := service
		one.Env = append(slices.Clone(service.Env), env...)
		if err := errors.Join(home.Stop(t.Context(), one.Name), home.Start(t.Context(), one)); err != nil {
			t.Fatal(err)
		}
		s.PartsReady(t, home)
	}
	again("MULTIPAAS_EGRESS_ALLOW=10.250.7.0/24")
	defer again()
	open := "tcp:" + listed + ":22"
	for _, from := range tellers[:2] { // the plane goes out by the server
		wait.For(t, wait.Patience, from.who+" reaches what the operator has listed", func(context.Context) error {
			if got := from.try([]string{open})[open]; !answersAt(got) {
				return errors.New(got)
			}
			return nil
		})
	}
	maps.DeleteFunc(what, func(target, _ string) bool { return strings.Contains(target, listed) })
	s.refused(t, tellers[:2], what, beside, ", beside one that is listed")
}
