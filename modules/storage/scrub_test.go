package storage

import (
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestScrub: copies are compared each week, by another host each time, as long as all are there, and by another one when
// the one that does it is away.
func TestScrub(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	v := &resource.Volume{}
	v.UID, v.CreatedAt = "v", now
	hosts := map[string]*resource.Node{}
	for _, uid := range []string{"b0", "b1", "b2"} {
		v.Status.Bricks = append(v.Status.Bricks, resource.VolumeBrick{UID: uid, Online: true, Arbiter: uid == "b2"})
		n := &resource.Node{}
		n.Status.Phase, n.Status.Drivers = resource.Ready, []string{wire.ScrubDriver}
		hosts[uid] = n
	}
	settle := func(what string, runs bool, brick string) (again time.Duration) {
		t.Helper()
		again = settleScrub(v, hosts, now)
		s := v.Status.Scrub
		if s.Runs() != runs || runs && s.Brick != brick {
			t.Errorf("%s: %+v, want %v by %q", what, s, runs, brick)
		}
		return again
	}
	settle("before it is served", false, "")
	v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeServed, Status: resource.True})
	if again := settle("new", false, ""); again != scrubLook {
		t.Errorf("it is looked at again after %v", again)
	}
	now = now.Add(scrubEvery + scrubSpread)
	for _, n := range hosts {
		n.Status.Drivers = nil
	}
	settle("no host knows how", false, "")
	for _, n := range hosts {
		n.Status.Drivers = []string{wire.ScrubDriver}
	}
	v.Status.Bricks[0].Online = false
	settle("a copy is away", true, "")
	v.Status.Bricks[0].Online = true
	settle("it is back", true, "b1")
	v.Status.Bricks[0].Heal = 1
	settle("somebody wrote meanwhile", true, "b1")
	v.Status.Bricks[0].Heal = 0
	hosts["b1"].Status.Phase = resource.Degraded
	hosts["b1"].Status.Conditions.Set(resource.Condition{Type: resource.NodeReporting, Status: resource.False})
	settle("its host is silent", true, "b0")
	v.Status.Scrub = &resource.VolumeScrub{Wanted: 1, Done: 1, Checked: now}
	hosts["b1"].Status.Phase = resource.Ready
	hosts["b1"].Status.Conditions = nil
	settle("done", false, "")
	v.Status.Scrub.Left, v.Status.Scrub.Checked = 1, now.Add(-scrubAgain+time.Second)
	if again := settle("some were left", false, ""); again != time.Second {
		t.Errorf("what was left is looked at again after %v", again)
	}
	v.Status.Scrub.Checked = now.Add(-scrubAgain)
	settle("some were left a day ago", true, "b0")
	v.Status.Scrub = &resource.VolumeScrub{Wanted: 1, Done: 1, Checked: now}
	v.Status.Scrub.Wanted++
	settle("somebody wants it", true, "b0")
	v.Status.Bricks, v.Status.Scrub = v.Status.Bricks[:1], nil
	if settle("one copy", false, ""); v.Status.Scrub != nil {
		t.Errorf("one copy is compared: %+v", v.Status.Scrub)
	}
}
