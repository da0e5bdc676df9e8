package agent

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// volume is one of network a, of 10 bytes, with these attachments.
func volume(uid string, machines ...string) wire.Volume {
	v := wire.Volume{UID: uid, NetworkID: "a", SizeBytes: 10}
	for _, m := range machines {
		v.Attachments = append(v.Attachments, wire.VolumeAttachment{MachineUID: m})
	}
	return v
}

// reportOf waits for a report with one volume that is as ok says.
func (s *server) reportOf(t *testing.T, what string, ok func(wire.VolumeReport) bool) {
	t.Helper()
	s.reported(t, what, func(r wire.Report) bool { return len(r.Volumes) == 1 && ok(r.Volumes[0]) })
}

func attachedTo(machines ...string) func(wire.VolumeReport) bool {
	return func(v wire.VolumeReport) bool {
		return v.Ready && slices.Equal(v.Attached, machines) && len(v.Failed) == 0
	}
}

// TestVolumesComeBeforeTheirMachines: a machine sees a volume once both are there. What is attached goes
// before the machine if nobody wants either, and a machine that shall go doesn't wait for it.
func TestVolumesComeBeforeTheirMachines(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w)
	state := stateOf("a", "a/u1")
	state.Volumes = []wire.Volume{volume("v1", "u1", "u2")}
	w.breaks("volume v1", "no room")
	s.sayState(t, state)
	s.reportOf(t, "why not", func(v wire.VolumeReport) bool {
		return !v.Ready && v.Message == "no room" && maps.Equal(v.Failed, map[string]string{"u1": "volume v1: no room", "u2": "machine u2 is not in the state"})
	})
	w.breaks("attachment v1/u1", "too old")
	s.reportOf(t, "why u1 has none", func(v wire.VolumeReport) bool {
		return v.Ready && v.SizeBytes == 10 && maps.Equal(v.Failed, map[string]string{"u1": "too old", "u2": "machine u2 is not in the state"})
	})
	w.breaks("", "")
	state.Volumes = []wire.Volume{volume("v1", "u1")}
	s.sayState(t, state)
	s.reportOf(t, "u1 having it", attachedTo("u1"))
	s.reported(t, "what is held, and where volumes can be", func(r wire.Report) bool {
		return slices.Contains(r.Holds, "a") && slices.Contains(r.Holds, "of-v1") && len(r.Pools) == 1
	})

	// It isn't there any more, for whatever reason.
	_ = w.change("attachment v1/u1", false)
	s.sayState(t, state) // a report follows
	s.reportOf(t, "u1 having it again", attachedTo("u1"))

	state.Volumes[0].Attachments = nil
	s.sayState(t, state)
	s.reportOf(t, "nobody having it", attachedTo())
	wantThere(t, w, "machine u1, network a, volume v1")

	state.Volumes = []wire.Volume{volume("v1", "u1")}
	s.sayState(t, state)
	s.reportOf(t, "u1 having it once more", attachedTo("u1"))
	w.breaks("attachment v1/u1", "it hangs")
	state.Machines[0].Remove = true
	s.sayState(t, state)
	s.reported(t, "u1 removed", func(r wire.Report) bool { return len(r.Machines) == 1 && r.Machines[0].Removed })
	w.breaks("", "")
	state.Machines = nil
	state.Volumes[0].Attachments = nil
	s.sayState(t, state)
	wantThere(t, w, "network a, volume v1")
}

// TestAllElseIsReported: of a host whose disk with volumes is away all else is told.
func TestAllElseIsReported(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w)
	state := stateOf("a", "a/u1")
	state.Volumes = []wire.Volume{volume("v1", "u1")}
	s.sayState(t, state)
	s.reportOf(t, "u1 having it", attachedTo("u1"))
	w.breaks("pool", "it is away")
	state.Registry = "news"
	s.sayState(t, state)
	s.reported(t, "all but volumes", func(r wire.Report) bool {
		return len(r.Machines) == 1 && r.Machines[0].Running && slices.Contains(r.Holds, wire.HoldsUnknown) &&
			len(r.Volumes) == 1 && !r.Volumes[0].Ready && r.Volumes[0].Message == "the disk with volumes of its host is away"
	})
}

// TestVolumesGoByOrderOnly: a volume that a state does not name stays, also one that was being made,
// and one that shall be removed goes.
func TestVolumesGoByOrderOnly(t *testing.T) {
	s, w := newServer(t), &world{}
	a, _ := run(t, s, t.TempDir(), w)
	state := stateOf("a", "a/u1")
	state.Volumes = []wire.Volume{volume("v1", "u1")}
	s.sayState(t, state)
	s.reportOf(t, "u1 having it", attachedTo("u1"))
	w.breaks("volume v1", "no room")
	s.sayState(t, state)
	s.reportOf(t, "a problem", func(v wire.VolumeReport) bool { return v.Message == "no room" })
	state.Volumes = nil
	s.sayState(t, state)
	wantThere(t, w, "machine u1, network a, volume v1")
	w.breaks("", "")
	a.add(Ref{volumeKind, "v1"}) // as it was when it was tried again
	s.reported(t, "that it is held", func(r wire.Report) bool {
		return len(r.Volumes) == 0 && slices.Contains(r.Holds, "of-v1") && len(r.Problems) == 0
	})
	if got := w.all(); !strings.Contains(got, "volume v1") || strings.Contains(w.story(), "-volume") {
		t.Errorf("there is %s after %s", got, w.story())
	}
	gone := volume("v1")
	gone.Remove = true
	state.Volumes = []wire.Volume{gone}
	s.sayState(t, state)
	s.reportOf(t, "it gone", func(v wire.VolumeReport) bool { return v.Removed && v.UID == "v1" && !v.Ready })
	wantThere(t, w, "machine u1, network a")
}

// TestRemovedNodeKeepsVolumes: of a node that was removed all goes but what is in volumes, and it does
// not say that it holds nothing.
func TestRemovedNodeKeepsVolumes(t *testing.T) {
	s, w, dir := newServer(t), &world{}, t.TempDir()
	_, stop := run(t, s, dir, w)
	state := stateOf("a", "a/u1")
	state.Volumes = []wire.Volume{volume("v1", "u1")}
	s.sayState(t, state)
	s.reportOf(t, "u1 having it", attachedTo("u1"))
	s.mu.Lock()
	s.removed = true
	s.mu.Unlock()
	s.states <- "" // the stream ends
	await(t, "the identity is gone", func() bool {
		_, _, err := Joined(dir)
		return errors.Is(err, fs.ErrNotExist)
	})
	if got := w.all(); got != "volume v1" {
		t.Errorf("left: %s", got)
	}
	s.mu.Lock()
	if s.wiped {
		t.Error("it has said that it is wiped")
	}
	s.mu.Unlock()
	if err := stop(); !errors.Is(err, ErrRemoved) || errors.Is(err, ErrLeftovers) {
		t.Errorf("got %v, want %v alone", err, ErrRemoved)
	}
}

// TestWants: before anybody has said what shall be, everything is.
func TestWants(t *testing.T) {
	a := New(Config{Drivers: []Driver{Volumes(nil)}})
	if !a.Wants("b") {
		t.Error("without a state: it isn't wanted")
	}
	a.plan = newPlan(a.cfg.Drivers, &wire.State{Volumes: []wire.Volume{{UID: "a"}}}, 1)
	if !a.Wants("a") || a.Wants("b") {
		t.Errorf("a: %t, b: %t; want a alone", a.Wants("a"), a.Wants("b"))
	}
}

// TestAHungDiskOfVolumes: what hangs for ever on the disk with volumes holds back volumes alone.
func TestAHungDiskOfVolumes(t *testing.T) {
	s, w := newServer(t), &world{hung: make(chan struct{})}
	state := stateOf("a b c d e f", "")
	for _, n := range state.Networks {
		state.Volumes = append(state.Volumes, wire.Volume{UID: "v" + n.ID, NetworkID: n.ID})
	}
	run(t, s, t.TempDir(), w)
	t.Cleanup(func() { close(w.hung) }) // first, or the agent would not end
	s.sayState(t, state)
	wantThere(t, w, "network a, network b, network c, network d, network e, network f")
	state.Machines = stateOf("", "a/u1 f/u2").Machines
	s.sayState(t, state)
	s.reported(t, "both machines", func(r wire.Report) bool {
		return len(r.Machines) == 2 && r.Machines[0].Running && r.Machines[1].Running && len(r.Volumes) == 6
	})
}
