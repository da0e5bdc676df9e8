package storage

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// scrubEvery is how often the copies of each shared volume are compared, and up to scrubSpread later, so that those that
	// were made together are not compared together.
	scrubEvery  = 7 * 24 * time.Hour
	scrubSpread = 24 * time.Hour
	// scrubAgain is when they are after some files could not be.
	scrubAgain = 24 * time.Hour
	// scrubLook is how often it is looked whether it is time, at least.
	scrubLook = 6 * time.Hour
)

// scrubDue is when a volume's copies are to be compared next.
func scrubDue(v *resource.Volume) time.Time {
	last := v.CreatedAt
	if s := v.Status.Scrub; s != nil && s.Checked.After(last) {
		last = s.Checked
		if s.Left > 0 {
			return last.Add(scrubAgain)
		}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(v.UID))
	return last.Add(scrubEvery + time.Duration(h.Sum64()%uint64(scrubSpread)))
}

// settleScrub has a volume's copies compared when it is time, or somebody wants it, and chooses the host that does it: another
// one each time, as long as all copies are there. again is when it is to be called again, 0 for when something changes.
func settleScrub(v *resource.Volume, hosts map[string]*resource.Node, now time.Time) (again time.Duration) {
	able := func(b resource.VolumeBrick) bool {
		n := hosts[b.UID]
		return n != nil && !b.Arbiter && !b.Filling && b.Replaces == "" && n.Scrubs() && !n.Silent() && !n.Deleting()
	}
	data := slices.DeleteFunc(slices.Clone(v.Status.Bricks), func(b resource.VolumeBrick) bool { return b.Arbiter })
	if len(data) < 2 || !v.Status.Conditions.Is(resource.VolumeServed) || !slices.ContainsFunc(data, able) {
		return 0
	}
	s := resource.VolumeScrub{}
	if v.Status.Scrub != nil {
		s = *v.Status.Scrub
	}
	if !s.Runs() {
		if wait := scrubDue(v).Sub(now); wait > 0 {
			return min(wait, scrubLook)
		}
		s.Wanted++
	}
	if b := v.Brick(s.Brick); b == nil || !able(*b) {
		s.Brick, s.Bytes = "", 0
		for i := range data {
			b := data[(int(s.Wanted%int64(len(data)))+i)%len(data)]
			if v.Whole() && able(b) {
				s.Brick = b.UID
				break
			}
		}
	}
	v.Status.Scrub = &s
	return 0
}
