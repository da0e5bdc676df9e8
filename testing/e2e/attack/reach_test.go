package attack

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
)

func sendUDP(to string, data []byte) error {
	conn, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(data)
	return err
}

// testReach tries to connect to what isn't A's: by every port that anybody
// listens on anywhere, at every address that any host has. Of all that A reaches, as
// anybody outside does, the ports of the server's front door and nothing else. A refused
// connection was an answer: it counts as reached.
func testReach(t *testing.T, s *suite) {
	own := append(s.Door(), "tcp@1023:"+s.Server.Address().String()+":443", "tcp:"+s.attacker.ip+":8080", "tcp:172.30.0.1:6443", "tcp:169.254.20.10:5000", "udp:169.254.20.10:53", "udp:10.43.0.10:53")
	got := map[string]string{}
	var err error
	for _, target := range own {
		got[target] = truthfully("open", func() string { return s.tries(t, s.attacker, []string{target})[target] })
		if !strings.HasPrefix(got[target], "open") {
			err = errors.Join(err, fmt.Errorf("%s is %s", target, got[target]))
		}
	}
	if !s.control(t, "A's pod reaches its own pod, plane, registry and resolvers, and the platform's front door", err) {
		return
	}
	all := s.foreign(t)
	targets := slices.Sorted(maps.Keys(all))
	got = s.tries(t, s.attacker, targets)
	for _, target := range targets {
		outcome, ok := got[target]
		s.record(t, attempt{What: "connect to " + target + " (" + all[target] + ")", From: "pod of A, root", Want: "no answer", Got: outcome,
			Blocked: ok && strings.HasPrefix(outcome, "closed") && (!strings.Contains(outcome, "refused") || strings.HasPrefix(target, "unix:"))})
	}
}

// tries makes a pod connect and returns what came of each attempt.
func (s *suite) tries(t testing.TB, p pod, targets []string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for chunk := range slices.Chunk(targets, 1500) { // arguments have a limit
		r := s.in(t, p, append([]string{"/tool", "try"}, chunk...)...)
		if r.Code != 0 {
			t.Fatal(r)
		}
		for line := range strings.Lines(r.Out) {
			target, outcome, _ := strings.Cut(strings.TrimSpace(line), " ")
			all[target] = outcome
		}
	}
	return all
}

// foreign are all targets that aren't A's, with what they are.
func (s *suite) foreign(t testing.TB) map[string]string {
	t.Helper()
	ports := map[string]bool{}
	for _, p := range []int{22, 80, 443, 2379, 2380, 5000, 6443, 6444, 7443, 8080, 10250, 10255, 10256, 10257, 10259} {
		ports[fmt.Sprintf("tcp:%d", p)] = true
	}
	ports["udp:53"], ports["udp:4789"] = true, true
	all := map[string]string{}
	for _, p := range s.spaces(t) {
		out, err := p.command(t.Context(), "ss", "-Hlntu").Output()
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) >= 5 {
				_, port, err := net.SplitHostPort(f[4])
				if err == nil {
					ports[f[0]+":"+port] = true
				}
			}
		}
		for path := range s.unixSockets(t, p) {
			all["unix:"+path] = "socket of " + p.String()
		}
	}
	add := func(address, what string) {
		for port := range ports {
			network, number, _ := strings.Cut(port, ":")
			all[network+":"+net.JoinHostPort(address, number)] = what
		}
	}
	for address, what := range s.hostAddresses(t) {
		add(address.String(), what)
	}
	add("172.30.0.12", "B's second machine; A has none")
	add("172.30.8.1", "a host's place in the network")
	add("172.30.0.1", "what isn't the API of A's plane")
	delete(all, "tcp:172.30.0.1:6443")
	for _, target := range s.Door() {
		delete(all, target)
	}
	for _, h := range s.Lab.Hosts() {
		for _, port := range []int{22, 2379, 6444, 10250} {
			for _, from := range []int{1, 20, 53, 80, 123, 443, 1023, 2379, 4789, 5000, 6443, 7443, 65535} {
				all[fmt.Sprintf("tcp@%d:%s:%d", from, h.Address(), port)] = h.Name() + ", from a port of A's choice"
			}
		}
	}
	for _, v := range s.victims {
		if !strings.HasPrefix(v.ip, "10.42.1.") {
			add(v.ip, "B's pod")
		}
	}
	r := s.Kube(t, s.Kubeconfig(), "", "get", "services", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.clusterIP}{"\n"}{end}`)
	for line := range strings.Lines(r.Out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "kubernetes" && f[0] != "kube-dns" {
			all["tcp:"+f[1]+":80"] = "B's Service " + f[0]
		}
	}
	for _, a := range []string{"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "[fd00:ec2::254]"} {
		all["tcp:"+a+":80"] = "metadata of a cloud"
	}
	all["tcp:169.254.20.11:5000"] = "link-local endpoints that A does not have"
	return all
}

// unixSockets are the sockets that processes in a namespace listen on: paths, and
// abstract ones, which begin with @ and have no file permissions.
func (s *suite) unixSockets(t testing.TB, p space) map[string]bool {
	t.Helper()
	out, err := p.command(t.Context(), "cat", "/proc/net/unix").Output()
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		// Flags 00010000 are those of a socket that listens.
		if f := strings.Fields(line); len(f) == 8 && f[3] == "00010000" && !strings.ContainsAny(f[7], " \x00") {
			all[f[7]] = true
		}
	}
	all["/run/containerd/containerd.sock"], all["/run/multipaas/status.sock"] = true, true
	return all
}
