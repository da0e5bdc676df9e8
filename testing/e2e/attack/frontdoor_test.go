package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// shut records attempts to reach hosts, of which none may get an answer.
func (s *suite) shut(t *testing.T, from, way string, targets []string, got map[string]string) {
	t.Helper()
	for _, target := range targets {
		outcome, ok := got[target]
		s.record(t, attempt{What: "connect to " + target + way, From: from, Want: "no answer", Got: outcome,
			Blocked: ok && strings.HasPrefix(outcome, "closed") && !strings.Contains(outcome, "refused")})
	}
}

// rootBesideTheDoor tries all addresses that hosts have as root in A's machine: by the
// ways that the machine has, and by those that its root may give it. Of the server the
// front door is open to it, by the one way.
func (s *suite) rootBesideTheDoor(t *testing.T, inMachine func(args ...string) (string, error)) {
	const who = "root in A's machine"
	try := func(targets []string) map[string]string {
		out, err := inMachine(append([]string{"try"}, targets...)...)
		if err != nil {
			t.Fatalf("%s: %v: %s", who, err, out)
		}
		return answers(out)
	}
	door := s.Door()
	home := s.machineSpaces(t, s.workspaceID(t, dctest.Rival, "box"))[0]
	// lead gives the machine a way; what was there is told again by the next Attach, or here.
	lead := func(address, via string) {
		if out, err := home.command(t.Context(), "ip", "route", "replace", address, "via", via, "proto", "109").CombinedOutput(); err != nil {
			t.Fatalf("lead %s by %s: %v: %s", address, via, err, out)
		}
	}
	open := func(what string) bool {
		var err error
		for range 5 {
			err = nil
			for target, outcome := range try(door) {
				if !strings.HasPrefix(outcome, "open") {
					err = errors.Join(err, fmt.Errorf("%s is %s", target, outcome))
				}
			}
			if err == nil {
				break
			}
		}
		return s.control(t, what, err)
	}
	if !open("root in A's machine reaches the front door") {
		return
	}
	var all []string
	addresses := map[string]bool{}
	for address := range s.hostAddresses(t) {
		addresses[address.String()] = true
		for _, port := range []int{22, 80, 443, 2379, 2380, 5000, 6443, 6444, 7443, 8080, 10250, 10256, 10257, 10259} {
			all = append(all, fmt.Sprintf("tcp:%s:%d", address, port))
		}
		all = append(all, "udp:"+address.String()+":53", "udp:"+address.String()+":4789")
	}
	all = slices.DeleteFunc(all, func(target string) bool { return slices.Contains(door, target) })
	slices.Sort(all)
	s.shut(t, who, "", all, try(all))

	server, plane := s.Server.Address().String(), plan.Plane.String()
	defer lead(server, plane)
	for address := range addresses {
		if address == server {
			continue
		}
		lead(address, plane)
		defer func() {
			_ = home.command(context.WithoutCancel(t.Context()), "ip", "route", "del", address, "via", plane, "proto", "109").Run()
		}()
	}
	s.shut(t, who, ", by way of the server", all, try(all))
	// The host's agent gives it its own way again, each half a minute.
	astray := plan.Gateway(1).String()
	var got map[string]string
	for range 5 {
		lead(server, astray)
		got = try(door)
		if out, err := home.command(t.Context(), "ip", "route", "show", server).Output(); err == nil && strings.Contains(string(out), astray) {
			break
		}
	}
	s.shut(t, who, ", by way of its host", door, got)
	lead(server, plane)
	open("with its own way, root in A's machine reaches the front door again")
}

// inside floods the front door from a pod of A's, while B is served there: outside, and
// B's own pods, on the same hosts.
func (w *waste) inside(t *testing.T) {
	server := w.Server.Address().String()
	by := *w.by
	urls := []string{"https://" + server + ":7443/livez", "http://" + server + ":80/"}
	by.asks = append(slices.Clone(by.asks), ask{what: "B's pod at the front door", within: answerWithin, do: func(context.Context) error {
		got := w.asks(t, w.victims[0], urls...)
		if !strings.HasPrefix(got[urls[0]], "200 ok") || !strings.HasPrefix(got[urls[1]], "404") {
			return fmt.Errorf("%v", got)
		}
		return nil
	}})
	wait.For(t, wait.Patience, "B's pod is answered at the front door", by.asks[len(by.asks)-1].do)
	out, err := space{w.Server, "mp-" + w.id}.command(t.Context(), "ip", "-o", "-4", "addr", "show", "uplink").Output()
	f := strings.Fields(string(out))
	if err != nil || len(f) < 4 {
		t.Fatalf("A's uplink on the server: %q, %v", out, err)
	}
	uplink, _, _ := strings.Cut(f[3], "/")
	var to []string
	for _, target := range w.Door() {
		to = append(to, strings.TrimPrefix(target, "tcp:"))
	}
	const tries = 7500 // 1500 to each port
	var o outcome
	files, most := w.openFiles(), 0
	sources := map[string]int{} // of connections that the server has -> the most of them
	by.during(t, "flood of connections to the front door", podOfA, func() {
		w.start(t, "inside", "connect", strings.Join(to, ","), fmt.Sprint(tries), "5")
		stop := w.watch(&most, func() int { return w.openFiles() - files })
		stopSources := w.sources(t, sources)
		o = w.await(t, "inside", 2*time.Minute)
		stopSources()
		stop()
	})
	// What is over the workspace's bound gets no answer, or is ended by the server's own.
	_, log, _ := strings.Cut(o.log, "at once ")
	var held int
	_, _ = fmt.Sscanf(log, "%d,", &held)
	w.record(t, attempt{What: fmt.Sprintf("hold %d connections to all ports of the front door", tries), From: podOfA,
		Want: "1024 at most are held, and as many more files of the server", Got: fmt.Sprintf("%d more files; %s", most, o),
		Blocked: held > 0 && held <= 1024+64 && most <= 2500})
	// Nobody else has hundreds of connections there: the flood is A's, by one address.
	var others []string
	for _, from := range slices.Sorted(maps.Keys(sources)) {
		if from != uplink && sources[from] > 400 {
			others = append(others, from)
		}
	}
	w.record(t, attempt{What: "be counted as somebody else at the front door", From: podOfA, Want: "all connections come from " + uplink + ", A's own on the server",
		Got: fmt.Sprintf("%v", sources), Blocked: sources[uplink] > 400 && len(others) == 0})
}

// sources counts, until it is stopped, the connections that the server has at its
// front door, by address.
func (w *waste) sources(t *testing.T, most map[string]int) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			out, err := w.Server.Command(ctx, "ss", "-Htn", "state", "established").Output()
			if err == nil {
				now := map[string]int{}
				for line := range strings.Lines(string(out)) {
					f := strings.Fields(line)
					if len(f) < 4 {
						continue
					}
					at, err1 := netip.ParseAddrPort(f[2])
					from, err2 := netip.ParseAddrPort(f[3])
					if errors.Join(err1, err2) == nil && slices.Contains(dctest.DoorPorts, int(at.Port())) {
						now[from.Addr().Unmap().String()]++
					}
				}
				for from, n := range now {
					most[from] = max(most[from], n)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}
