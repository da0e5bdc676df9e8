package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

// brickRoot is the folder of a brick's file system that is a shared volume's root. It is below
// another that is ours, so that GlusterFS finds none where the file system isn't mounted.
const brickRoot = "volume/brick"

// EnsureBrick makes a brick, or finds it there, and shows it as the folder of its UID in
// Config.Bricks, in which its root is brickRoot. See Ensure.
func (h *Host) EnsureBrick(ctx context.Context, b wire.Brick) error {
	err := cmp.Or(checkUID("brick", b.UID), checkSize(b.SizeBytes))
	if err == nil {
		v := wire.Volume{Key: b.Key, UID: b.UID, NetworkID: b.NetworkID, Pool: b.Pool,
			SizeBytes: b.SizeBytes, Made: b.Made, Source: b.Source, Encrypted: b.Encrypted}
		err = h.ensure(ctx, v, true)
	}
	if err == nil {
		err = h.show(b.UID)
	}
	return h.outward("brick of volume "+cmp.Or(b.Key, b.UID), err)
}

func (h *Host) brickAt(uid string) string { return filepath.Join(h.cfg.Bricks, uid) }

// show has a brick's file system appear where GlusterFS looks for it.
func (h *Host) show(uid string) error {
	want, mounted, err := device(h.place(uid).image().Mount)
	if err != nil {
		return err
	}
	have, shown, errShown := device(h.brickAt(uid))
	if errShown == nil && mounted && shown && have == want {
		return nil
	}
	_, own, err := h.mountAt(h.place(uid).image().Mount)
	if err != nil {
		return err
	}
	if own == nil {
		return saidf("it is not mounted on its host")
	}
	if shown || errShown != nil {
		if err := hostmount.Unmount(h.brickAt(uid)); err != nil {
			return err
		}
	}
	tree, err := clone(own, nil)
	if err != nil {
		return err
	}
	defer tree.Close()
	return put(tree, h.cfg.Bricks, uid, unix.MOUNT_ATTR_NODEV)
}

// hide is the contrary of show. Of none, and of what is no brick, it is no error.
func (h *Host) hide(uid string) error {
	if h.cfg.Bricks == "" {
		return nil
	}
	if err := hostmount.Unmount(h.brickAt(uid)); err != nil {
		return err
	}
	err := hostmount.Do(func() error { return os.Remove(h.brickAt(uid)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveBrick destroys what is in a brick and takes everything of it away, also from GlusterFS if that
// has it. None there is no error.
func (h *Host) RemoveBrick(ctx context.Context, b wire.Brick) error {
	err := checkUID("brick", b.UID)
	if err == nil {
		err = h.remove(ctx, wire.Volume{UID: b.UID, Pool: b.Pool})
	}
	return h.outward("remove brick "+b.UID, err)
}

// Bricks is List for bricks. One that doesn't appear has Fallen.
func (h *Host) Bricks() ([]wire.VolumeReport, error) {
	all, away := h.list(true)
	if len(all) == 0 {
		return nil, away
	}
	real, infos, err := hostmount.Infos(h.cfg.Bricks)
	if err != nil {
		return nil, fmt.Errorf("list bricks: %w", err)
	}
	shown := map[string]bool{}
	for _, info := range infos {
		if rest, err := filepath.Rel(real, info.Mountpoint); err == nil {
			shown[rest] = true
		}
	}
	for i := range all {
		b := &all[i]
		if b.Ready && !shown[b.UID] {
			b.Ready, b.Fallen = false, true
		}
		if b.Fallen && b.Message != "" {
			b.Message = "its file system has stopped after an error of the disk below"
		}
	}
	return all, away
}
