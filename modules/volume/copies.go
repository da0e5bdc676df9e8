package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	// maxCopies is how many copies are made at a time, one of each workspace at most: they share the
	// disk with everybody's volumes.
	maxCopies = 2
	// maxReceives is the same of what comes from other hosts, which takes hours if the network is slow: copies don't
	// wait for it. After receiveTurn it makes way for others that wait, and goes on later.
	maxReceives = 2
	receiveTurn = 5 * time.Minute
	// copyPatience is how long it is waited for a copy, so that of a small one nobody hears that it
	// is being made.
	copyPatience = time.Second
)

// copying is a copy that is being made. It outlives who asked for it.
type copying struct {
	source, network string
	incoming        bool // from another host
	end             context.CancelFunc
	done            chan struct{} // closed when err is set
	err             error
	copied, of      atomic.Int64 // bytes
}

// tell is told how far it is.
func (c *copying) tell(done, of int64) { c.copied.Store(done); c.of.Store(of) }

// snapshot makes a copy of a volume that nobody mounts, or finds it there.
func (h *Host) snapshot(ctx context.Context, v wire.Volume) error {
	p := h.place(v.UID)
	there, err := h.there(v)
	if err != nil {
		return err
	}
	if !there && v.Made {
		return h.said("it was there before, and is missing: it is not made anew",
			&os.PathError{Op: "stat", Path: p.disk(v.Block).File, Err: fs.ErrNotExist})
	}
	rec, err := p.record()
	want := record{Key: v.Key, UID: v.UID, NetworkID: v.NetworkID, Source: v.Source, Snapshot: true, Encrypted: v.Encrypted,
		Block: v.Block, HostUsers: h.ofHostUsers(v, rec, there)}
	if err != nil || rec != want {
		if err := os.MkdirAll(string(p), 0o700); err != nil {
			return err
		}
		if err := atomicfile.WriteJSON(p.at(recordName), want); err != nil {
			return err
		}
	}
	if there {
		return h.unmountSnapshot(v.UID) // a process that was killed may have read it
	}
	failpoint.Reach("volume/snapshot/recorded")
	if err := h.bring(ctx, v); err != nil {
		return err
	}
	h.cfg.Log.Info("snapshot made", "snapshot", v.Key, "uid", v.UID, "of", v.Source)
	return nil
}

// ofHostUsers is record.HostUsers of what has rec: of a copy that is yet to be made it is as in its source.
func (h *Host) ofHostUsers(v wire.Volume, rec record, there bool) bool {
	if !there && checkUID("source", v.Source) == nil {
		from, _ := h.place(v.Source).record()
		return from.HostUsers
	}
	return rec.HostUsers
}

// bring makes the disk of a volume or snapshot from that of its source, as that is at some moment
// from now on: at once, where disks share blocks, or else by a copy. The error says how far that is.
func (h *Host) bring(ctx context.Context, v wire.Volume) error {
	if err := checkUID("source", v.Source); err != nil {
		return err
	}
	// As its source is, for that is what somebody wrote; a record only says so.
	source := h.place(v.Source)
	to := h.place(v.UID).disk(v.Block).File
	h.mu.Lock()
	c := h.copies[v.UID]
	h.mu.Unlock()
	if c == nil {
		if err := h.thaw(v.Source); err != nil {
			return err
		}
		from := source.stored()
		if there, err := exists(from.File); err != nil || there && source.raw() != v.Block {
			return cmp.Or(err, errKind)
		}
		// The server lets nothing grow of which copies are being made: they were promised so much.
		if info, err := os.Stat(from.File); err == nil && sizeOf(info, v.Encrypted) > wholeMiB(v.SizeBytes) {
			return saidf("what it is to be made from has grown: delete this one, and ask for one that is as large")
		}
		if v.Block {
			if err := h.rested(v.UID); err != nil {
				return err
			}
			if err := h.blocks(v.Source).Sync(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		err := from.Clone(ctx, to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return h.said("what it is to be made from is not there", err)
		case !errors.Is(err, diskimage.ErrNoReflink):
			return err
		}
		c = h.beginCopy(v, func(ctx context.Context, c *copying) error {
			if v.Block {
				return h.blocks(v.Source).Copy(ctx, to, c.tell)
			}
			return from.Copy(ctx, to, c.tell)
		})
	}
	err := h.await(ctx, v, c, "it is being copied")
	if errors.Is(err, diskimage.ErrTooMuch) {
		return h.said(fmt.Sprintf("files on the disk with volumes of its host can't share blocks, as on XFS they can, and there "+
			"volumes with up to %s in them can be copied while machines have them", resource.Bytes.Text(diskimage.MaxLiveCopy)), err)
	}
	if errors.Is(err, diskimage.ErrBusy) {
		h.rest(v.UID)
		return h.said("files on the disk with volumes of its host can't share blocks, as on XFS they can, and there raw blocks are "+
			"copied only while nothing is written to them: it is tried again later", err)
	}
	return err
}

// await waits a moment for a copy's end; nil is none that could be begun. The error says how far it is.
func (h *Host) await(ctx context.Context, v wire.Volume, c *copying, what string) error {
	if c == nil {
		return saidf("it waits for other copies that its host makes")
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(copyPatience):
		return saidf("%s: %s of %s", what, resource.Bytes.Text(c.copied.Load()), resource.Bytes.Text(c.of.Load()))
	}
	h.mu.Lock()
	delete(h.copies, v.UID)
	h.mu.Unlock()
	return c.err
}

// Shares says whether a volume or snapshot may share blocks with what it was made from: what both files take
// is less than their sum.
func (h *Host) Shares(uid string) bool {
	rec, err := h.place(uid).record()
	return err == nil && rec.Source != "" && h.canReflink(h.poolOf(uid))
}

// beginCopy has a copy made by do, or returns nil while there are too many.
func (h *Host) beginCopy(v wire.Volume, do func(ctx context.Context, c *copying) error) *copying {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	running, most := 0, maxCopies
	if v.Incoming {
		most = maxReceives
	}
	for _, c := range h.copies {
		select {
		case <-c.done:
			continue
		default:
		}
		if c.incoming != v.Incoming {
			continue
		}
		if running++; running == most || c.network == v.NetworkID {
			h.crowded = h.crowded || v.Incoming
			return nil
		}
	}
	ctx, end := context.WithCancel(context.Background())
	c := &copying{source: v.Source, network: v.NetworkID, incoming: v.Incoming, end: end, done: make(chan struct{})}
	h.copies[v.UID] = c
	go func() {
		defer close(c.done)
		defer end()
		c.err = do(ctx, c)
	}()
	return c
}

// yields says whether one that comes from another host makes way, because others wait.
func (h *Host) yields() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.crowded
	h.crowded = false
	return was
}

// endTime is how long it is waited for copies to end: they do at the next block, if the disk answers.
const endTime = 10 * time.Second

// endCopies ends the copies that are made of a volume or snapshot, and of another to it, or all if it
// is "", and waits for that. The error is of those that don't end.
func (h *Host) endCopies(uid string) error {
	ended := map[string]*copying{}
	h.mu.Lock()
	for to, c := range h.copies {
		if uid == "" || to == uid || c.source == uid {
			c.end()
			ended[to] = c
		}
	}
	h.mu.Unlock()
	late := time.After(endTime)
	for to, c := range ended {
		select {
		case <-c.done:
		case <-late:
			return saidf("a copy that is made of it, or to it, does not end: the disk of its host may hang")
		}
		h.mu.Lock()
		if h.copies[to] == c {
			delete(h.copies, to)
		}
		h.mu.Unlock()
	}
	return nil
}

// thaw has a volume be written to again that was frozen when the process before this one was killed.
// It is asked before anything is done with a volume, and acts once.
func (h *Host) thaw(uid string) error {
	h.thawing.Lock()
	defer h.thawing.Unlock()
	if h.thawed[uid] {
		return nil
	}
	if err := h.place(uid).image().Thaw(); err != nil {
		return err
	}
	h.thawed[uid] = true
	return nil
}
