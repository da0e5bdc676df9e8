package volume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/modules/wire"
)

// A volume of raw blocks (wire.Volume.Block) is an image without a file system. Where another has its file system mounted, it
// has a tmpfs with the node of its device, so that machines see it, and lose it, as any other. The node belongs to
// the user that is root in its workspace's machines. What keeps a machine from doing more with its device than
// reading and writing is its filter of system calls (modules/machine), which knows all that loop devices can be asked for.

func (p place) blocks() diskimage.Block {
	return diskimage.Block{File: p.image().File, Mount: p.image().Mount}
}

func (h *Host) blocks(uid string) diskimage.Block { return h.place(uid).blocks() }

// ensureBlocks makes the disk if it is not there, and shows its blocks on the host.
func (h *Host) ensureBlocks(ctx context.Context, v wire.Volume, rec record) error {
	b := h.blocks(v.UID)
	var err error
	if b.Owner, err = h.cfg.HostUser(v.FirstUID); err != nil {
		return fmt.Errorf("users of its machines: %w", err)
	}
	if b.Owner == 0 {
		return saidf("machines on its host have no users of their own, and so can't be given raw blocks: the operator is told why")
	}
	if err := h.unseen(); err != nil {
		return err
	}
	err = b.Ensure(ctx, wholeMiB(v.SizeBytes))
	switch {
	case errors.Is(err, diskimage.ErrInUse):
		return h.said("somebody has it open from before: delete the pods that use it", err)
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

// closeBlocks closes what is shown of a volume's raw blocks for good, if it has some.
func (h *Host) closeBlocks(uid string) error {
	if rec, err := h.place(uid).record(); err != nil || !rec.Block {
		return nil
	}
	return h.blocks(uid).Close()
}

// usedOfBlocks is what raw blocks take on the disk. unix.EIO: they are not shown as they shall be.
func usedOfBlocks(f found) (int64, error) {
	if err := f.place.blocks().Check(); err != nil {
		return 0, fmt.Errorf("%w: %w", unix.EIO, err)
	}
	return min(f.takesBytes, f.sizeBytes), nil
}
