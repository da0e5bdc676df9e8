package storage

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/multipaas/multipaas/modules/resource"
)

// settleShared computes the size, the phase and what is said of a shared volume from what was seen of its
// bricks. full: no host has room for a copy that was given up with its host or disk.
func settleShared(v *resource.Volume, hosts map[string]*resource.Node, full bool) {
	s := &v.Status
	served := s.Conditions.Is(resource.VolumeServed)
	_, source := lostOf(v, hosts)
	size, there, reporting := v.Spec.SizeBytes, 0, 0
	filling := 0
	for i, b := range s.Bricks {
		if b.Filling {
			filling++
		}
		if hosts[b.UID] == nil {
			s.Bricks[i].Online, s.Bricks[i].Ready, s.Bricks[i].Heal = false, false, 0 // nobody reports of it any more
		}
		if !b.Arbiter && !b.Filling {
			size = min(size, b.SizeBytes)
		}
		if h := hosts[b.UID]; h != nil && !h.Silent() {
			reporting++
		}
		if has(b, hosts[b.UID]) {
			there++
		}
	}
	imported := s.Conditions.Get(resource.VolumeImported)
	if served && !v.Importing() {
		s.SizeBytes = max(s.SizeBytes, size) // the copies of lost hosts come again, and are small at first
	}
	ready := resource.Condition{Type: resource.VolumeReady, Status: resource.False}
	was := s.Conditions.Get(resource.VolumeReady)
	back := was != nil && was.Status != resource.True && was.Reason == resource.VolumeRestored // from the trash
	switch {
	case (served || v.Spec.Source != nil) && !source:
		ready.Reason, ready.Final = "CopiesLost", true
		ready.Message = "every host or disk with a copy of it was given up, and what it held is lost with them"
		s.Conditions.Set(ready)
		s.Phase, s.ObservedGeneration = resource.Failed, v.Generation
		return
	case !served:
		ready.Reason, ready.Message = "Creating", creating(v, hosts)
	case v.Importing():
		ready.Reason, ready.Message = resource.VolumeImporting, "what is in it comes as a file: send it with `mp volumes import`"
		if imported != nil {
			ready.Message, ready.Final = cmp.Or(imported.Message, ready.Message), imported.Final
		}
	case reporting == 0:
		ready.Reason, ready.Message = "HostsSilent", "none of the hosts with a copy of it reports: nobody can say how it is"
	case filling >= len(s.Bricks)-1 && filling > 0 && has(s.Bricks[0], hosts[s.Bricks[0].UID]):
		ready.Status, ready.Reason = resource.True, "Ready" // it is the first's alone, until another has all
	case there <= len(s.Bricks)/2 && back && reporting == len(s.Bricks):
		ready.Reason, ready.Message = resource.VolumeRestored, "its hosts bring it back"
	case there <= len(s.Bricks)/2:
		ready.Reason, ready.Message = "NoQuorum", noQuorum(v, hosts, full)
	default:
		ready.Status, ready.Reason = resource.True, "Ready"
	}
	s.Conditions.Set(ready)
	if served && len(s.Bricks) > 1 {
		s.Conditions.Set(replicated(v, hosts, full))
	}
	r := s.Conditions.Get(resource.VolumeReplicated)
	switch now := ready.Status == resource.True; {
	case now && s.SizeBytes < v.Spec.SizeBytes:
		s.Phase = resource.Updating
	case now && r != nil && r.Status != resource.True:
		s.Phase, s.ObservedGeneration = resource.Degraded, v.Generation
	case now:
		s.Phase, s.ObservedGeneration = resource.Ready, v.Generation
	case s.SizeBytes == 0 || ready.Reason == resource.VolumeRestored:
		s.Phase = resource.Creating
	default:
		s.Phase = resource.Degraded
	}
}

// has says whether a brick, on a host that may be nil, has its part of the volume.
func has(b resource.VolumeBrick, host *resource.Node) bool {
	return host != nil && b.Online && b.Replaces == ""
}

// creating says what a volume that GlusterFS hasn't got waits for.
func creating(v *resource.Volume, hosts map[string]*resource.Node) string {
	for _, b := range v.Status.Bricks {
		switch h := hosts[b.UID]; {
		case b.Ready || b.Filling:
		case h == nil || h.Silent() || b.Message != "":
			return "a host that shall have a copy of it has not made it: " + why(b, h, false)
		}
	}
	for _, b := range v.Status.Bricks {
		if !b.Ready && !b.Filling {
			return "its hosts are making its copies"
		}
	}
	if c := v.Status.Conditions.Get(resource.VolumeServed); c != nil && c.Message != "" {
		return c.Message
	}
	return "its copies are made, and put together"
}

// why says of a brick that isn't there why not.
func why(b resource.VolumeBrick, host *resource.Node, full bool) string {
	switch {
	case host == nil && full:
		return "its host, or its disk there, was given up, and no other has room for one now"
	case host == nil:
		return "its host, or its disk there, was given up"
	case host.Silent():
		return "its host does not report"
	case b.Message != "":
		return b.Message
	case !b.Ready:
		return "its host is making it"
	case b.Filling:
		return "it is new, and is given what the others have, one after the other"
	case b.Replaces != "":
		return "it is new, and takes the place of another"
	}
	return "its host reports, and the others don't reach what serves it there: it is started again"
}

// missing says what of a volume isn't there, and why.
func missing(v *resource.Volume, hosts map[string]*resource.Node, full bool) string {
	n, arbiter := 0, false
	var whys []string
	for _, b := range v.Status.Bricks {
		h := hosts[b.UID]
		if has(b, h) {
			continue
		}
		if arbiter = arbiter || b.Arbiter; !b.Arbiter {
			n++
		}
		whys = append(whys, why(b, h, full))
	}
	all, verb := v.Copies(), "is"
	what := fmt.Sprintf("%d of %d copies", n, all)
	switch {
	case n == 0 && arbiter:
		what = "the arbiter, which has no data and knows which copy is right,"
	case n == 1 && all == 1:
		what = "its only copy"
	case arbiter:
		what, verb = what+" and the arbiter, which knows which one is right,", "are"
	case n > 1:
		verb = "are"
	}
	return fmt.Sprintf("%s %s missing: %s", what, verb, strings.Join(whys, "; "))
}

func noQuorum(v *resource.Volume, hosts map[string]*resource.Node, full bool) string {
	if len(v.Status.Bricks) == 1 {
		return missing(v, hosts, full) + ". What it holds comes back with that"
	}
	return missing(v, hosts, full) + ". One alone can't know whether what it has is the latest, so nothing is read or written " +
		"until another is back"
}

// replicated says whether a volume could lose one of its copies now, to somebody who has never seen GlusterFS.
func replicated(v *resource.Volume, hosts map[string]*resource.Node, full bool) resource.Condition {
	c := resource.Condition{Type: resource.VolumeReplicated, Status: resource.False}
	there, heal, unknown, filling := 0, int64(0), false, false
	for _, b := range v.Status.Bricks {
		filling = filling || b.Filling
		if has(b, hosts[b.UID]) {
			there, heal, unknown = there+1, max(heal, b.Heal), unknown || b.Heal < 0
		}
	}
	switch {
	case filling && heal > 0:
		c.Reason, c.Message = "Filling", fmt.Sprintf("its copies are given what the first one has: %d files and folders to go, as "+
			"far as is known. Reading and writing go on while that is there", heal)
	case filling:
		c.Reason, c.Message = "Filling", "its copies are given what the first one has. Reading and writing go on while that is there"
	case there <= len(v.Status.Bricks)/2:
		c.Reason, c.Message = "CopiesMissing", missing(v, hosts, full)
	case there < len(v.Status.Bricks):
		c.Reason, c.Message = "CopyMissing", missing(v, hosts, full)+". Reading and writing go on with the others; "+
			"it is given what it misses once it is there, and until then no other may fail"
	case heal > 0:
		c.Reason, c.Message = "Healing", fmt.Sprintf("a copy that was away is given what it missed: %d files and folders to go. "+
			"Reading and writing go on; until it has them no other may fail", heal)
	case unknown:
		c.Reason, c.Message = "Healing", "a copy that was away is back, and it is being found out what it missed. "+
			"Reading and writing go on; until it has that no other may fail"
	default:
		c.Status, c.Reason = resource.True, "Replicated"
	}
	return c
}

// roomForCopies says why a shared volume can't have so many bytes more. The caller is alone.
func (c *Controller) roomForCopies(
	ctx context.Context, v *resource.Volume, more int64, free func(n *resource.Node, pool string) int64,
) error {
	hosts, err := c.hostsOf(ctx, v)
	if err != nil {
		return internal(err)
	}
	for _, b := range v.Status.Bricks {
		grows := resource.BrickBytes(v.Spec.SizeBytes+more, b.Arbiter) - resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter)
		if h := hosts[b.UID]; h != nil && free(h, b.Pool) < grows {
			return refuse(codes.OutOfRange, "one of the hosts with its copies has not %s more free for it: "+
				"ask the operator for more disk", resource.Bytes.Text(grows))
		}
	}
	return nil
}
