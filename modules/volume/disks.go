package volume

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// unread is a device of which is not known what is on it.
type unread struct {
	disk.Device
	err error
}

func (u unread) Error() string { return u.Name + ": " + u.err.Error() }

// withXFS are the host's devices with an XFS file system of this UUID, and those that could have one. What stands on a pool's
// own files, or below another device, or is raw blocks of a tenant, is left out. It blocks for lookTime at most: one that hangs
// is asked once.
func (h *Host) withXFS(uuid string) (found []disk.Device, silent []unread, err error) {
	all, err := disk.All()
	if err != nil {
		return nil, nil, err
	}
	ours := append([]string{h.cfg.Dir, h.cfg.Pools}, h.cfg.Others...)
	for _, p := range h.all() {
		ours = append(ours, p.dir)
	}
	all = slices.DeleteFunc(all, func(d disk.Device) bool {
		file := d.Behind()
		return d.Held() || diskimage.IsShown(d.Name) || file != "" && slices.ContainsFunc(ours, func(dir string) bool {
			return dir != "" && strings.HasPrefix(file, dir+"/")
		})
	})
	answers := h.askDisks(all)
	patience := time.After(lookTime)
	for i, d := range all {
		is, err := answers[i].get(patience, "it")
		switch {
		case err == nil && is == uuid:
			found = append(found, d)
		case errors.Is(err, errSilent):
			silent = append(silent, unread{d, err})
			closed := make(chan time.Time)
			close(closed)
			patience = closed // it is over
		case errors.Is(err, fs.ErrPermission):
			silent = append(silent, unread{d,
				fmt.Errorf("the service may not open it: multipaas-node.service needs DeviceAllow=block-* rwm (%w)", err)})
		}
	}
	return found, silent, nil
}

// askDisks asks each device for the UUID of what is on it.
func (h *Host) askDisks(all []disk.Device) (answers []*answer[string]) {
	h.mu.Lock()
	defer h.mu.Unlock()
	askers := map[disk.Device]*asker[string]{}
	for _, d := range all {
		a := cmp.Or(h.disks[d], &asker[string]{})
		askers[d] = a
		answers = append(answers, a.begin(d.XFS))
	}
	h.disks = askers
	return answers
}

// writable says why nothing can be written to a folder: the service sees most of its host read-only (ProtectSystem= of its unit).
func writable(dir string) error {
	write := func() error { return unix.Access(dir, unix.W_OK) }
	err := write()
	if errors.Is(err, unix.EROFS) && hostmount.Do(write) == nil {
		return fmt.Errorf("the service may not write to %s: add ReadWritePaths=-%s to [Service] of multipaas-node.service "+
			"(systemctl edit multipaas-node) and restart it", dir, dir)
	}
	if err != nil {
		return &os.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}

// empty lets go of all volumes in a pool whose file system has stopped. While a loop device has a file in it the kernel keeps
// that file system, and to mount its disk anew would give the same one, stopped.
func (h *Host) empty(p *pool) error {
	if err := h.closeNodes(p); err != nil {
		return err
	}
	attached, err := h.Attached()
	if err != nil {
		return err
	}
	h.knowing.Lock()
	var uids []string
	for uid, in := range h.where {
		if in == p {
			uids = append(uids, uid)
		}
	}
	h.knowing.Unlock()
	for _, uid := range uids {
		if err := cmp.Or(h.endCopies(uid), h.hide(uid)); err != nil {
			return err
		}
		for _, a := range attached[uid] {
			if err := h.detach(uid, a.MachineUID); err != nil {
				return err
			}
		}
	}
	real, infos, err := hostmount.Infos(p.dir)
	if err != nil {
		return err
	}
	for _, info := range infos {
		point := info.Mountpoint
		if point == real {
			continue // the pool itself, by whose path its files are known as long as it is mounted
		}
		// Its folder can't be asked for anything, so not by hostmount.Unmount.
		err := hostmount.Do(func() error { return unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	all, err := disk.All()
	for _, d := range all {
		if strings.HasPrefix(d.Behind(), real+"/") {
			return errors.New("its file system has stopped after an error of its disk, and is mounted anew once nobody has " +
				"volumes on it open: delete the pods that use them")
		}
	}
	return err
}
