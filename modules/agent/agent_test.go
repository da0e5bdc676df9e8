package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestAddressesAreShown: what the server wants shown it is told from there. What can't
// be is in nobody's way.
func TestAddressesAreShown(t *testing.T) {
	s, w := newServer(t), &world{}
	missing := netip.MustParseAddr("192.0.2.77") // not this host's
	s.show = []netip.Addr{missing, netip.MustParseAddr("127.0.0.7"), netip.MustParseAddr("127.0.0.8")}
	run(t, s, t.TempDir(), w)
	await(t, "two addresses are shown", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.shown) == 2 && s.shown["127.0.0.7"] == "127.0.0.7" && s.shown["127.0.0.8"] == "127.0.0.8"
	})
	// News of that is told, and reports go on.
	await(t, "it reports again", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.reports) > 1
	})
}

// What can't be shown is tried less and less often, but for ever; what has gone and come
// back is tried at once.
func TestShowsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bridge, other := newShows(), netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("203.0.113.9")
		tries := func(during time.Duration) (n int) {
			for range during / wire.ReportEvery {
				for _, a := range s.next([]netip.Addr{bridge}) {
					n++
					s.failed(a)
				}
				time.Sleep(wire.ReportEvery)
			}
			return n
		}
		if n := tries(time.Minute); n < 3 || n > 5 {
			t.Errorf("%d tries in the first minute", n)
		}
		tries(10 * time.Minute)
		if n := tries(time.Hour); n < 10 || n > 13 {
			t.Errorf("%d tries in an hour, want one in five minutes", n)
		}
		if got := s.next([]netip.Addr{bridge, other}); !slices.Equal(got, []netip.Addr{other}) {
			t.Errorf("it tries %v", got)
		}
		s.next(nil)
		if got := s.next([]netip.Addr{bridge}); !slices.Equal(got, []netip.Addr{bridge}) {
			t.Errorf("come back, it tries %v", got)
		}
	})
}

func TestNetworksComeBeforeMachinesAndGoAfterThem(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w)
	s.say(t, "a b", "a/u1 b/u2")
	wantThere(t, w, "machine u1, machine u2, network a, network b")
	story := w.story()
	for network, uid := range map[string]string{"a": "u1", "b": "u2"} {
		if strings.Index(story, "+network "+network) > strings.Index(story, "+machine "+uid) {
			t.Errorf("a machine came before its network: %s", story)
		}
	}

	// Nobody knows them any more. A machine that stays for a while keeps its
	// network.
	w.breaks("machine u2", "it hangs")
	s.say(t, "", "")
	await(t, "u1 is gone", func() bool { return !strings.Contains(w.all(), "u1") })
	s.reported(t, "what can't be removed", func(r wire.Report) bool {
		return len(r.Problems) == 1 && r.Problems[0].Message == "machine u2: it hangs"
	})
	if got, want := w.all(), "machine u2, network a, network b"; got != want {
		t.Errorf("while a machine can't be removed there is %s, want %s", got, want)
	}
	w.breaks("", "")
	wantThere(t, w, "")
}

func TestAMachineSaysWhatItWaitsFor(t *testing.T) {
	s, w := newServer(t), &world{}
	w.breaks("network a", "no bridge")
	run(t, s, t.TempDir(), w)
	s.say(t, "a b", "a/u1 b/u2 c/u3")
	s.reported(t, "each one's problem", func(r wire.Report) bool {
		return len(r.Networks) == 2 && len(r.Machines) == 3 && r.Networks[0] == wire.NetworkReport{ID: "a", Message: "no bridge"} &&
			r.Networks[1] == wire.NetworkReport{ID: "b", Ready: true} &&
			r.Machines[0].Message == "network a: no bridge" && r.Machines[1].Running && r.Machines[1].Message == "" &&
			r.Machines[2].Message == "network c is not in the state"
	})
	if got := w.all(); strings.Contains(got, "u1") {
		t.Errorf("without its network there is %s", got)
	}
	w.breaks("", "")
	wantThere(t, w, "machine u1, machine u2, network a, network b")
	s.reported(t, "no problem", func(r wire.Report) bool { return r.Machines[0].Running && r.Machines[0].Message == "" })
}

func TestWhatFallsOverIsMadeAgain(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w)
	s.say(t, "a", "a/u1")
	wantThere(t, w, "machine u1, network a")
	_ = w.change("machine u1", false)
	s.say(t, "a b", "a/u1") // a report follows
	wantThere(t, w, "machine u1, network a, network b")
}

// TestWhatFallsOverIsReportedAtOnce has a machine fall over with no change of the
// state: that it does and that it runs again is said before the next heartbeat.
func TestWhatFallsOverIsReportedAtOnce(t *testing.T) {
	s, w := newServer(t), &world{}
	a, _ := run(t, s, t.TempDir(), w)
	s.say(t, "a", "a/u1")
	s.reported(t, "u1 running", func(r wire.Report) bool { return len(r.Machines) == 1 && r.Machines[0].Running })
	_ = w.change("machine u1", false)
	before, began := s.said(), time.Now()
	a.Look()
	await(t, "reports of u1 down and up again", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		since := s.reports[before:]
		down := slices.IndexFunc(since, func(r wire.Report) bool { return !r.Machines[0].Running })
		return down >= 0 && since[len(since)-1].Machines[0].Running
	})
	if took := time.Since(began); took > wire.ReportEvery/2 {
		t.Errorf("it took %v", took)
	}
}

// TestOnlyNewsIsReported has states come that change nothing of what the server is told: it
// hears nothing, so that what is news then needn't wait for its turn.
func TestOnlyNewsIsReported(t *testing.T) {
	s, w := newServer(t), &world{}
	a, _ := run(t, s, t.TempDir(), w)
	state := stateOf("a", "a/u1")
	s.sayState(t, state)
	running := func(r wire.Report) bool {
		return len(r.Machines) == 1 && r.Machines[0].Running && r.Networks[0].Ready
	}
	s.reported(t, "u1 running", running)
	before := s.said()
	for i := range 2 * wire.ReportBurst {
		state.Registry = fmt.Sprint("r", i)
		tried := w.tried("machine u1")
		s.sayState(t, state)
		await(t, "u1 is looked after", func() bool { return w.tried("machine u1") > tried })
	}
	_ = w.change("machine u1", false)
	a.Look()
	await(t, "a report of u1 down", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.reports[before:], func(r wire.Report) bool { return !running(r) })
	})
	if n := s.said() - before; n > 3 { // down, up, and one for what was news still when it began
		t.Errorf("%d reports for one piece of news", n)
	}
}

func TestWaitingIsNoReasonToReport(t *testing.T) {
	s, w := newServer(t), &world{}
	w.breaks("network a", "no bridge")
	run(t, s, t.TempDir(), w)
	s.say(t, "a", "a/u1")
	s.reported(t, "the network's problem", func(r wire.Report) bool {
		return len(r.Machines) == 1 && r.Machines[0].Message == "network a: no bridge"
	})
	before := s.said()
	time.Sleep(time.Second) // not waiting for an event: nothing shall happen
	if n := s.said() - before; n > 10 {
		t.Errorf("%d reports in a second while nothing changed", n)
	}
}

// TestReportsKeepThePause has a machine fail with another text each time: each is
// reported, and none of the reports shortens the pause before the next try.
func TestReportsKeepThePause(t *testing.T) {
	s, w := newServer(t), &world{}
	w.breaks("machine u1", "try #")
	run(t, s, t.TempDir(), w)
	s.say(t, "a", "a/u1")
	s.reported(t, "a try", func(r wire.Report) bool {
		return len(r.Machines) == 1 && strings.HasPrefix(r.Machines[0].Message, "try ")
	})
	time.Sleep(time.Second)                 // not waiting for an event: nothing shall happen
	if n := w.tried("machine u1"); n > 10 { // at 0, 0.2, 0.6 and 1.4 s; thousands without a pause
		t.Errorf("%d tries within a second", n)
	}
}

func TestEndpointsHearOfEachStateOnce(t *testing.T) {
	s, w := newServer(t), &world{hold: make(chan struct{})}
	run(t, s, t.TempDir(), w)
	state := stateOf("a b", "a/u1 b/u2")
	for i, registry := range []string{"r1", "r2"} {
		state.Registry = registry
		s.sayState(t, state)
		// Machines of the first state are being made meanwhile.
		await(t, "endpoints are told", func() bool { return len(strings.Fields(w.heard())) > i })
	}
	close(w.hold)
	wantThere(t, w, "machine u1, machine u2, network a, network b")
	s.sayState(t, &wire.State{Registry: "r3"}) // no machine is made
	wantThere(t, w, "")
	if got, want := w.heard(), "r1 r2 r3"; got != want {
		t.Errorf("endpoints were told %s, want %s", got, want)
	}
}

func TestRemovedIsSaidUntilTheServerKnows(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w)
	s.say(t, "a", "a/u1 a/u2")
	wantThere(t, w, "machine u1, machine u2, network a")
	s.say(t, "a", "-a/u1 a/u2")
	s.reported(t, "u1 removed", func(r wire.Report) bool {
		return len(r.Machines) == 2 && r.Machines[0] == wire.MachineReport{UID: "u1", Removed: true} && r.Machines[1].Running
	})
	s.say(t, "a", "a/u2")
	s.reported(t, "u2 alone", func(r wire.Report) bool { return len(r.Machines) == 1 })
	wantThere(t, w, "machine u2, network a")
}

// TestAbsenceIsNoOrder starts an agent with a state from disk that knows less than
// there is: only the server may say that something is no more.
func TestAbsenceIsNoOrder(t *testing.T) {
	s, w, dir := newServer(t), &world{}, t.TempDir()
	_, stop := run(t, s, dir, w)
	s.say(t, "a b", "a/u1 b/u2")
	wantThere(t, w, "machine u1, machine u2, network a, network b")
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	old, err := json.Marshal(stateOf("a c", "a/u1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateName), old, 0o600); err != nil {
		t.Fatal(err)
	}
	w.events = nil
	run(t, s, dir, w)
	// Network c tells its reports from those of before, of which one may come late.
	s.reported(t, "both networks of the old state", func(r wire.Report) bool {
		c := slices.IndexFunc(r.Networks, func(n wire.NetworkReport) bool { return n.ID == "c" })
		return len(r.Networks) == 2 && c >= 0 && r.Networks[c].Ready && r.Networks[1-c].Ready && r.Holds == nil
	})
	if got, want := w.story(), "+network c"; got != want {
		t.Errorf("with the state from disk: %q, want %q", got, want)
	}
	s.say(t, "a c", "a/u1")
	wantThere(t, w, "machine u1, network a, network c")
	s.reported(t, "what is here, once the server has spoken", func(r wire.Report) bool {
		return slices.Contains(r.Holds, "a") && slices.Contains(r.Holds, "c") && slices.Contains(r.Holds, wire.HoldsUnknown)
	})
	s.say(t, "c", "")
	s.reported(t, "that nothing of a is left", func(r wire.Report) bool { return slices.Equal(r.Holds, []string{"c"}) })
}

func TestRemovedNodeLeavesNothing(t *testing.T) {
	s, w, dir := newServer(t), &world{}, t.TempDir()
	_, stop := run(t, s, dir, w)
	s.say(t, "a", "a/u1")
	wantThere(t, w, "machine u1, network a")
	s.mu.Lock()
	s.removed = true
	s.mu.Unlock()
	s.states <- "" // the stream ends
	await(t, "the identity is gone", func() bool {
		_, _, err := Joined(dir)
		return errors.Is(err, fs.ErrNotExist)
	})
	if got := w.all(); got != "" {
		t.Errorf("left: %s", got)
	}
	s.mu.Lock()
	if !s.wiped {
		t.Error("it has not said that it is wiped")
	}
	s.mu.Unlock()
	if err := stop(); !errors.Is(err, ErrRemoved) || errors.Is(err, ErrLeftovers) {
		t.Errorf("got %v, want %v alone", err, ErrRemoved)
	}
}

// ready is what the agent says of a machine that it has started.
func ready(string) Progress { return Progress{serial: 1} }

// TestWhatDiesAtOnceIsStartedWithPauses has a machine end by itself whenever it
// is started: the pauses grow, and are forgotten when it has been up for a while
// and when it is to be another.
func TestWhatDiesAtOnceIsStartedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		d := Machines(MachinesConfig{Networks: worldDeadEnd{}, Runner: worldRunner{w}})
		state := stateOf("a", "a/u1")
		started := func() bool {
			err := d.Wanted(state)[0].Ensure(t.Context())
			if err == nil {
				t.Fatal("no error of a network that gives no place")
			}
			return errors.Is(err, errDeadEnd)
		}
		// dies says that the machine has ended and returns after how long it is
		// started again.
		dies := func() time.Duration {
			var r Report
			fallen, err := d.Report(t.Context(), state, ready, &r)
			if err != nil || len(fallen) != 1 || !strings.Contains(r.Machines[0].Message, "started again after") {
				t.Fatalf("a machine that ended: %v, %+v, %v", fallen, r.Machines, err)
			}
			for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
				if started() {
					return time.Since(began)
				}
			}
		}
		if !started() {
			t.Fatal("it is not started the first time")
		}
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
			if got := dies(); got != want*time.Second {
				t.Errorf("a pause of %v, want %v", got, want*time.Second)
			}
		}
		time.Sleep(2 * maxPause)
		if got := dies(); got != minPause {
			t.Errorf("after it was up for a while: a pause of %v, want %v", got, minPause)
		}
		dies()
		var r Report
		if _, err := d.Report(t.Context(), state, ready, &r); err != nil || started() {
			t.Fatalf("it is started without a pause, %v", err)
		}
		state.Machines[0].Spec.Size.MemoryBytes = 1 << 30
		if !started() {
			t.Error("with another size it waits for a pause of the old one")
		}
	})
}

var errDeadEnd = errors.New("no place")

// worldDeadEnd gives no machine a place, so it ends a start where that would begin.
type worldDeadEnd struct{ worldPlaces }

func (worldDeadEnd) AttachMachine(context.Context, wire.Machine) (string, error) {
	return "", errDeadEnd
}
