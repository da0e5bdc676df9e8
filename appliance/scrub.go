package appliance

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/wire"
)

var _ agent.ScrubHost = (*scrubbing)(nil)

// scrubbing is the comparison of shared volumes' copies, as the agent drives it.
type scrubbing struct {
	*sharing

	mu sync.Mutex
	at map[string]scrubAt // by UIDs of volumes; one is kept as long as it is wanted
}

type scrubAt struct {
	number int64
	*gluster.Scrub
}

// scrubStep is for how long one is gone on with at a time: others have their turns.
const scrubStep = time.Minute

func (s *scrubbing) Scrub(ctx context.Context, w wire.Scrub) (rep wire.ScrubReport, err error) {
	s.mu.Lock()
	now := s.at[w.UID]
	if now.Scrub == nil || now.number != w.Number || uidOf(now.Own) != w.Brick {
		own := gluster.Brick{Host: s.address, Path: brickPath(w.Brick)}
		now = scrubAt{w.Number, &gluster.Scrub{Volume: wire.GlusterName(w.UID), Own: own}}
		if s.at == nil {
			s.at = map[string]scrubAt{}
		}
		s.at[w.UID] = now
	}
	s.mu.Unlock()
	rep.Done, err = s.Host.Scrub(ctx, now.Scrub, time.Now().Add(scrubStep))
	seen := now.Seen
	rep.Bytes, rep.Files, rep.Left = seen.Bytes, seen.Files, seen.Left
	rep.Damaged, rep.Names = seen.Damaged, slices.Clone(seen.Names)
	for brick, n := range seen.Mended {
		if rep.Mended == nil {
			rep.Mended = map[string]int64{}
		}
		rep.Mended[uidOf(brick)] = n
	}
	if rep.Done || len(rep.Mended) > 0 || rep.Damaged > 0 {
		s.log.Info("copies of a shared volume compared", "volume", w.Key, "done", rep.Done, "files", rep.Files, "bytes", rep.Bytes,
			"mended", rep.Mended, "damaged", rep.Damaged, "left", rep.Left)
	}
	return rep, s.words("compare the copies of shared volume "+w.Key, err)
}

func (s *scrubbing) EndScrub(ctx context.Context, name string) error {
	s.mu.Lock()
	for uid := range s.at {
		if wire.GlusterName(uid) == name {
			delete(s.at, uid)
		}
	}
	s.mu.Unlock()
	return s.words("end the comparison of shared volume "+name, s.Unpin(ctx, name))
}

func (s *scrubbing) Scrubbed() (names []string, err error) {
	names, err = s.Pinned()
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.at {
		if name := wire.GlusterName(uid); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, err
}

// uidOf is the UID of a brick by where glusterd finds it.
func uidOf(b gluster.Brick) string {
	return path.Base(strings.TrimSuffix(b.Path, "/volume/brick"))
}
