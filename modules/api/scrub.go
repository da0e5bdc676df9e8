package api

import (
	"context"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// scrubOperation adds what has the copies of a shared volume compared now. While they are, it changes nothing.
func (a *API) scrubOperation(volumes *collection[resource.Volume, *resource.Volume]) {
	op := volumes.operation("scrub", http.MethodPost, "Compare the copies of a shared volume, byte by byte, and mend what differs")
	op.path += "/scrub"
	add(a, op, func(ctx context.Context, in *struct {
		Place
		Match
	}) (*Output[resource.Accepted[*resource.Volume]], error) {
		var out *resource.Volume
		err := volumes.retry(ctx, in.Place, in.Match, func(v *resource.Volume) (err error) {
			switch out = v; {
			case v.Deleting():
				return deleting("volume", v.Name)
			case v.Spec.Class != resource.SharedVolume || len(v.Status.Bricks) > 0 && v.Copies() < 2:
				return conflict("no-copies", "There is one copy of volume "+v.Name+": nothing to compare it with.",
					"Have a shared volume with three copies where that matters: "+
						"`mp volumes create NAME --size SIZE --class shared --replicas 3`.")
			case !v.Status.Conditions.Is(resource.VolumeServed):
				return conflict("not-ready", "Volume "+v.Name+" has no copies yet.", "Try it again when it is Ready.")
			case v.Status.Scrub.Runs():
				return nil
			}
			out, err = volumes.kind().Modify(ctx, v.Key(), func(now *resource.Volume) error {
				if now.UID != v.UID || now.Deleting() || now.Status.Scrub.Runs() {
					return store.ErrSkip
				}
				s := resource.VolumeScrub{}
				if now.Status.Scrub != nil {
					s = *now.Status.Scrub
				}
				s.Wanted++
				s.Brick, s.Bytes = "", 0
				now.Status.Scrub = &s
				return nil
			})
			return err
		})
		if err != nil {
			return nil, err
		}
		return accepted(out, ""), volumes.shown(ctx, out)
	})
}
