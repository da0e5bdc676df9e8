package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// A volume of raw blocks (wire.Volume.Block) is an image without a file system. Where another has its file system mounted, it
// has a tmpfs with the node of its device, so that machines see it, and lose it, as any other. The node belongs to
// the user that is root in the machine that it is shown to. What keeps a machine from doing more with its device than
// reading and writing is its filter of system calls (modules/machine), which knows what loop devices can be asked for.
//
// No host ever mounts what a tenant wrote there: its file has another name than one that may be mounted, from the moment on
// that it is made, here or as a copy of another or by a stream. Neither a record says which of the two it is, nor a server.

// blocks are those of a volume that is of raw blocks, whether they are there or not.
func (h *Host) blocks(uid string) diskimage.Block {
	b := h.place(uid).blocks()
	b.Numbers = &h.numbers
	return b
}

// blocks are not shown without numbers.
func (p place) blocks() diskimage.Block {
	return diskimage.Block{File: p.disk(true).File, Mount: p.image().Mount}
}

// disk is the file with what is in a volume, for who copies it. Of raw blocks it can't be mounted.
func (p place) disk(raw bool) diskimage.Image {
	if raw {
		return diskimage.Image{File: p.at("blocks.img")}
	}
	return p.image()
}

// raw says whether what is there are raw blocks.
func (p place) raw() bool {
	there, err := exists(p.disk(true).File)
	return there && err == nil
}

// stored is disk of what is there.
func (p place) stored() diskimage.Image { return p.disk(p.raw()) }

var errKind = saidf("raw blocks and file systems are never taken for each other, and its host was told of one as the other: " +
	"the operator is told, who upgrades what is older")

// there says whether a volume or snapshot is there. One that is of the other kind is an error.
func (h *Host) there(v wire.Volume) (bool, error) {
	p := h.place(v.UID)
	other, err := exists(p.disk(!v.Block).File)
	if err != nil {
		return false, err
	}
	if other {
		return false, errKind
	}
	return exists(p.disk(v.Block).File)
}

// alone has do be the only one of a volume's that shows or closes its node.
func (h *Host) alone(uid string, do func() error) error {
	h.mu.Lock()
	one := h.blocking[uid]
	if one == nil {
		one = &sync.Mutex{}
		h.blocking[uid] = one
	}
	h.mu.Unlock()
	one.Lock()
	defer one.Unlock()
	return do()
}

// ensureBlocks makes the disk if it is not there, and shows its blocks on the host.
func (h *Host) ensureBlocks(ctx context.Context, v wire.Volume, rec record) error {
	if err := cmp.Or(diskimage.CanShow(), unseen(udevDir)); err != nil {
		return err
	}
	if err := h.takeBack(v.UID); err != nil {
		return err
	}
	b := h.blocks(v.UID)
	ensure := func() error { return h.alone(v.UID, func() error { return b.Ensure(wholeMiB(v.SizeBytes)) }) }
	err := ensure()
	if errors.Is(err, diskimage.ErrInUse) {
		if err = diskimage.AwaitFree(ctx, b.File); err == nil {
			err = ensure()
		}
	}
	switch {
	case errors.Is(err, diskimage.ErrInUse):
		return h.said("somebody has it open from before: delete the pods that use it", err)
	case errors.Is(err, diskimage.ErrNumbers):
		return h.said("its host has shown so many raw blocks that it can show no more before the operator "+
			"restarts it", err)
	case errors.Is(err, diskimage.ErrShrink):
	case err != nil:
		return err
	}
	if rec.Owned {
		return nil
	}
	rec.Owned, rec.HostUsers = true, false
	if err := atomicfile.WriteJSON(h.place(v.UID).at(recordName), rec); err != nil {
		return err
	}
	h.cfg.Log.Info("volume of raw blocks made", "volume", v.Key, "uid", v.UID)
	return nil
}

// attachBlocks is attach of raw blocks: their node is given to who is root in the machine, whatever the volume's record says.
func (h *Host) attachBlocks(volume, machine string) error {
	first, err := h.cfg.MachineUser(machine)
	if err != nil {
		return fmt.Errorf("users of machine %s: %w", machine, err)
	}
	if first == 0 {
		return saidf("machines on its host have no users of their own, and so can't be given raw blocks: the operator is told why")
	}
	return h.alone(volume, func() error {
		switch err := h.blocks(volume).Give(first, resource.MachineUIDs); {
		case errors.Is(err, diskimage.ErrOthers):
			return h.said("another workspace had it, and has not let go of it yet", err)
		case errors.Is(err, fs.ErrNotExist):
			return errUnmounted
		case err != nil:
			return err
		}
		return h.attachMount(volume, machine, true)
	})
}

// takeBack closes the node of raw blocks that no machine sees any more, whoever in one has bound it elsewhere, and shows another,
// if it can be at once. Of one that was given to nobody, and of no raw blocks, it is no error.
func (h *Host) takeBack(uid string) error {
	if !h.place(uid).raw() {
		return nil
	}
	return h.alone(uid, func() error {
		b := h.blocks(uid)
		if given, err := b.Check(); err != nil || !given {
			return nil // Ensure, which comes next, says what is wrong with it
		}
		attached, err := h.Attached()
		if err != nil || len(attached[uid]) > 0 {
			return err
		}
		if err := b.Close(); err != nil {
			return err
		}
		if err := b.Ensure(0); err != nil {
			h.cfg.Log.Debug("raw blocks are shown later", "uid", uid, "err", err)
		}
		return nil
	})
}

// closeNode closes the node of a volume's raw blocks for good, and gives its device back, if there is one.
func (h *Host) closeNode(uid string) error {
	return h.alone(uid, func() error { return diskimage.CloseNode(h.place(uid).image().Mount) })
}

// closeBlocks is closeNode, and takes away what it was in.
func (h *Host) closeBlocks(uid string) error { return h.alone(uid, h.blocks(uid).Close) }

// closeNodes is closeNode of all volumes in a pool, which may be away, or lost: it asks nothing of its disk.
func (h *Host) closeNodes(p *pool) error {
	_, infos, err := hostmount.Infos(p.dir)
	for _, info := range infos {
		if uid := filepath.Base(filepath.Dir(info.Mountpoint)); info.FSType == "tmpfs" && checkUID("volume", uid) == nil {
			err = errors.Join(err, h.alone(uid, func() error { return diskimage.CloseNode(info.Mountpoint) }))
		}
	}
	return err
}

// usedOfBlocks is what raw blocks take on the disk. unix.EIO: they are not shown as they shall be.
func usedOfBlocks(f found) (int64, error) {
	if _, err := f.place.blocks().Check(); err != nil {
		return 0, fmt.Errorf("%w: %w", unix.EIO, err)
	}
	return min(f.takesBytes, f.sizeBytes), nil
}

// pause is for how long raw blocks are not copied that are written to all the time: each try reads the disk.
type pause struct {
	until time.Time
	last  time.Duration
}

const maxPause = time.Hour

// rest begins such a pause, twice as long as the last one.
func (h *Host) rest(uid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := min(max(2*h.rests[uid].last, time.Minute), maxPause)
	h.rests[uid] = pause{time.Now().Add(last), last}
}

// rested says that it isn't over.
func (h *Host) rested(uid string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if until := h.rests[uid].until; time.Now().Before(until) {
		return saidf("raw blocks are copied only while nothing is written to them: it is tried again at %s",
			until.UTC().Format(time.RFC3339))
	}
	return nil
}
