package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestReportsAreAsLargeAsBefore: however many volumes a host has, and however much is wrong with
// them, none is in its sign of life. They are told by pages, and of those only what is news.
func TestReportsAreAsLargeAsBefore(t *testing.T) {
	const many = 1000
	s, w := newServer(t), &world{}
	a, _ := run(t, s, t.TempDir(), w)
	state := stateOf("a", "a/u1")
	for i := range many {
		v := volume(fmt.Sprintf("v%d", i))
		v.Remove = i >= 3
		for j := range 100 { // that are not there, and each says why
			if !v.Remove {
				v.Attachments = append(v.Attachments, wire.VolumeAttachment{MachineUID: fmt.Sprintf("gone%d-%s", j, strings.Repeat("x", 500))})
			}
		}
		state.Volumes = append(state.Volumes, v)
	}
	s.sayState(t, state)
	s.reported(t, "all volumes", func(r wire.Report) bool {
		return len(r.Volumes) == many && !slices.ContainsFunc(r.Volumes[3:], func(v wire.VolumeReport) bool { return !v.Removed }) &&
			!slices.ContainsFunc(r.Volumes[:3], func(v wire.VolumeReport) bool { return !v.Ready || len(v.Failed) != 100 })
	})
	s.mu.Lock()
	for _, r := range s.reports {
		if text, _ := json.Marshal(r); len(text) > 1000 {
			t.Errorf("a sign of life of %d bytes", len(text))
		}
	}
	for _, p := range s.pages {
		size := 0
		for _, item := range p.Items {
			size += len(item.Report)
		}
		if len(p.Items) > wire.MaxPageItems || len(p.Items) > 1 && size > wire.MaxPageBytes || len(p.Items) == 0 {
			t.Errorf("a page of %d items, %d bytes", len(p.Items), size)
		}
	}
	s.pages = nil
	s.mu.Unlock()

	w.breaks("volume v1", "no room")
	s.sayState(t, state)
	s.reported(t, "that v1 has a problem", func(r wire.Report) bool { return len(r.Volumes) == many && r.Volumes[1].Message == "no room" })
	s.mu.Lock()
	for _, p := range s.pages {
		for _, item := range p.Items {
			if !strings.Contains(string(item.Report), `"uid":"v1"`) {
				t.Errorf("it was no news: %.200s", item.Report)
			}
		}
	}
	s.pages, s.volumes = nil, map[string]wire.VolumeReport{} // as if it had forgotten all
	s.anew = true
	s.mu.Unlock()
	a.forget()
	a.Look()
	s.reported(t, "all volumes once more, as it was asked to", func(r wire.Report) bool { return len(r.Volumes) == many })
	s.mu.Lock()
	s.anew, s.volumes = false, map[string]wire.VolumeReport{}
	s.mu.Unlock()
	s.states <- "" // the stream ends
	s.reported(t, "all volumes after it has connected anew", func(r wire.Report) bool { return len(r.Volumes) == many })
}

// TestVolumesWaitForNoReport: that a volume is ready is told while what the host has said of other things has used up
// its reports.
func TestVolumesWaitForNoReport(t *testing.T) {
	s, w := newServer(t), &world{}
	run(t, s, t.TempDir(), w, func(a *Agent) { a.pace = flowcontrol.NewFakeNeverRateLimiter() })
	state := stateOf("a", "a/u1")
	state.Volumes = []wire.Volume{volume("v1")}
	s.sayState(t, state)
	await(t, "v1 is ready", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.volumes["v1"].Ready
	})
	if n := s.said(); n > 0 {
		t.Errorf("%d reports, and none is allowed", n)
	}
}

func TestTextsOfReportsAreBounded(t *testing.T) {
	long := strings.Repeat("ü", 64<<10)
	for machines, most := range map[int]int{1: maxText, 5000: minText} {
		rep := &wire.Report{Machines: make([]wire.MachineReport, machines), Networks: []wire.NetworkReport{{Message: long}, {Message: "short"}}}
		for i := range rep.Machines {
			rep.Machines[i].Message = long
		}
		shorten(rep)
		if got := rep.Machines[machines-1].Message; len(got) > most || len(got) < most-4 || !strings.HasSuffix(got, "ü...") {
			t.Errorf("of %d machines one has a text of %d bytes, ...%s", machines, len(got), got[len(got)-8:])
		}
		if rep.Networks[1].Message != "short" {
			t.Errorf("a short text is %q", rep.Networks[1].Message)
		}
	}
}

func TestOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outbox
		o.anew()
		set := func(what string, n int, wantNews bool) {
			t.Helper()
			items := map[Ref]any{}
			for i := range n {
				items[Ref{"volume", fmt.Sprint(i)}] = wire.VolumeReport{UID: fmt.Sprint(i), Message: what}
			}
			if news, err := o.set(items); err != nil || news != wantNews {
				t.Fatalf("%d items, %s: news %v, %v", n, what, news, err)
			}
		}
		// told is how many items all pages have.
		told := func() (n int) {
			for {
				page, taken := o.page()
				if page.Items == nil {
					return n
				}
				n += len(page.Items)
				taken()
			}
		}
		set("first", 250, true)
		if page, _ := o.page(); len(page.Items) != wire.MaxPageItems {
			t.Errorf("a page of %d", len(page.Items))
		}
		if n := told(); n != 250 {
			t.Errorf("%d of 250 are told", n)
		}
		set("first", 250, false)
		set("second", 2, true)
		page, taken := o.page()
		o.anew() // while it is on its way
		taken()
		if n := told(); len(page.Items) != 2 || n != 2 {
			t.Errorf("after the server has forgotten all, %d are told, and %d before", n, len(page.Items))
		}
		page, taken = o.page()
		set("third", 2, true)
		taken()
		if n := told(); page.Items != nil || n != 2 {
			t.Errorf("of what has changed meanwhile, %d are told, and %v before", n, page)
		}
		set("third", 2, false)
		time.Sleep(anewEvery)
		set("third", 2, true)
		set("none", 0, false)
		if n := told(); n != 0 {
			t.Errorf("of nothing, %d are told", n)
		}
	})
}

// TestUseIsToldNowAndThen: what is used of a volume changes with each look of somebody who writes,
// and each time it is told is a write of the server's.
func TestUseIsToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var u usage
		for _, c := range []struct {
			after     time.Duration
			used, big int64 // in MiB, of a volume of 1 GiB and of one of 1 TiB
			want, too int64
		}{
			{0, 5, 5, 5, 5},
			{usedEvery / 2, 20, 10000, 5, 5},
			{time.Second, 21, 10491, 21, 10491},
			{usedEvery / 2, 22, 10492, 21, 10491},
			{time.Second, 5, 5, 5, 5},
			{usedEvery, 6, 6, 6, 6},
		} {
			time.Sleep(c.after)
			steady := u.look()
			if got, too := steady("v1", c.used*mib, 1<<30), steady("v2", c.big*mib, 1<<40); got != c.want*mib || too != c.too*mib {
				t.Errorf("of %d and %d MiB, %d and %d are told", c.used, c.big, got/mib, too/mib)
			}
		}
		u.look()("v3", 0, 1<<30) // it is not mounted yet
		if got := u.look()("v3", mib, 1<<30); got != mib {
			t.Errorf("of the first %d bytes %d are told", mib, got)
		}
		u.look()
		if u.look()("v1", 1, 1); len(u.told) != 1 {
			t.Errorf("it keeps %v", u.told)
		}
	})
}
