package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// scrub has the host that was chosen for it compare a volume's copies.
func (c *cluster) scrub(v served) {
	s := v.Status.Scrub
	if !s.Runs() || v.trash || v.Deleting() || v.networkID == "" || !v.Status.Conditions.Is(resource.VolumeServed) {
		return
	}
	if b := v.Brick(s.Brick); b != nil && !b.Removed {
		c.scrubs[b.NodeUID] = append(c.scrubs[b.NodeUID], wire.Scrub{Key: v.key, UID: v.UID, NetworkID: v.networkID, Brick: b.UID,
			Number: s.Wanted})
	}
}

// What a node may say of a scrub.
const maxScrubNames, maxScrubName = 10, 256

// takeScrub takes down how far it is that the copies of a volume are compared. Only the host that was chosen is believed.
func (h *Hub) takeScrub(ctx context.Context, node *resource.Node, rep wire.ScrubReport) error {
	meant := func(v *resource.Volume) bool {
		s := v.Status.Scrub
		if v.UID != rep.UID || !s.Runs() || s.Wanted != rep.Number {
			return false
		}
		b := v.Brick(s.Brick)
		return b != nil && b.NodeUID == node.UID
	}
	now := h.now().UTC()
	return h.noteVolume(ctx, rep.Key, false, meant, func(v *resource.Volume) {
		s := *v.Status.Scrub
		v.Status.Scrub = &s
		if !rep.Done {
			s.Bytes = amount(rep.Bytes)
			return
		}
		s = resource.VolumeScrub{Wanted: s.Wanted, Done: s.Wanted, Checked: now, CheckedBytes: amount(rep.Bytes),
			Files: amount(rep.Files), Damaged: amount(rep.Damaged), Left: amount(rep.Left)}
		for _, name := range rep.Names[:min(len(rep.Names), maxScrubNames)] {
			s.Names = append(s.Names, clip(name, maxScrubName))
		}
		for i := range v.Status.Bricks {
			b := &v.Status.Bricks[i]
			if n := amount(rep.Mended[b.UID]); n > 0 {
				s.Mended = amount(s.Mended + n)
				b.Mended, b.MendedAt = amount(b.Mended+n), now
			}
		}
		v.Status.Conditions.Set(intact(&s))
	})
}

// intact says what was found, to a tenant.
func intact(s *resource.VolumeScrub) resource.Condition {
	c := resource.Condition{Type: resource.VolumeIntact, Status: resource.True, Reason: "Same"}
	if s.Damaged == 0 && s.Left > 0 {
		c.Status, c.Reason = resource.Unknown, "NotCompared"
		c.Message = fmt.Sprintf("%d files could not be compared, since a copy had yet to be given something: it is done again in a day",
			s.Left)
		return c
	}
	if s.Damaged == 0 {
		return c
	}
	files, are := "files", "are"
	if s.Damaged == 1 {
		files, are = "file", "is"
	}
	c.Status, c.Reason = resource.False, "Damaged"
	c.Message = fmt.Sprintf("%d %s %s not the same in all copies, and it can't be said which is right, or it could not be written: "+
		"look whether what is in there is right, and write it anew, or restore it from a snapshot", s.Damaged, files, are)
	if s.Names != nil {
		c.Message += ": " + strings.Join(s.Names, ", ")
	}
	c.Message = clip(c.Message, maxText)
	return c
}

// FlipsFor is how long a node is under suspicion after a copy there was mended.
const FlipsFor = 30 * 24 * time.Hour

// Flips says, by UIDs of nodes, whose disks have given back something else than was written to them.
func Flips(volumes []*resource.Volume, now time.Time) map[string]error {
	files, copies := map[string]int64{}, map[string]int{}
	for _, v := range volumes {
		for _, b := range v.Status.Bricks {
			if b.Mended > 0 && now.Sub(b.MendedAt) < FlipsFor {
				files[b.NodeUID] += b.Mended
				copies[b.NodeUID]++
			}
		}
	}
	all := map[string]error{}
	for uid, n := range files {
		all[uid] = fmt.Errorf("%d files in copies of %d shared volumes were not as on the other hosts, and were mended", n, copies[uid])
	}
	return all
}
