package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Attach has a machine see a volume that is mounted, as the folder wire.VolumesInMachine/VOLUME. It
// is seen at once, also by one that runs. What is attached as it shall be stays.
func (h *Host) Attach(volume, machine string) error {
	err := errors.Join(checkUID("volume", volume), checkUID("machine", machine))
	if err == nil {
		err = h.attach(volume, machine)
	}
	return h.outward("attach volume "+volume+" to machine "+machine, err)
}

func (h *Host) attach(volume, machine string) error {
	raw, err := exists(h.place(volume).disk(true).File)
	if err != nil {
		return err
	}
	if raw {
		return h.attachBlocks(volume, machine)
	}
	return h.attachMount(volume, machine, false)
}

// attachMount is attach of what is mounted; of raw blocks that is what their node is in.
func (h *Host) attachMount(volume, machine string, raw bool) error {
	dir := h.place(volume).image().Mount
	if dev, mounted, err := device(dir); err == nil && mounted && h.sees(dev, volume, machine) {
		return nil
	}
	_, own, err := h.mountAt(dir)
	if err != nil {
		return err
	}
	if own == nil {
		return errUnmounted
	}
	var users *os.File
	if !raw { // a node is the machine's own user's
		if users, err = h.usersFor(dir, volume, machine); err != nil {
			return err
		}
	}
	defer users.Close() // nil has none
	tree, err := clone(own, users)
	if err != nil {
		return err
	}
	defer tree.Close()
	return h.appear(tree, volume, machine, raw)
}

// AttachShared is Attach of a volume that Config.Shared has mounted. One that was mounted
// anew is attached anew. It asks nothing of who serves it, who may not answer.
func (h *Host) AttachShared(volume, machine string) error {
	err := errors.Join(checkUID("volume", volume), checkUID("machine", machine))
	if err == nil {
		err = h.attachShared(volume, machine)
	}
	return h.outward("attach volume "+volume+" to machine "+machine, err)
}

func (h *Host) attachShared(volume, machine string) error {
	dev, err := h.cfg.Shared.Device(volume, machine)
	if err == nil && h.sees(dev, volume, machine) {
		return nil
	}
	var tree *os.File
	if err == nil {
		tree, err = h.cfg.Shared.Take(volume, machine)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errUnmounted
	}
	if err != nil {
		return err
	}
	defer tree.Close()
	return h.appear(tree, volume, machine, false)
}

var errUnmounted = saidf("it is not mounted on this host")

// appear has a machine see a mount that is nowhere yet, in the place of what it saw. What is of raw blocks has the node of a
// device in it, which can be opened.
func (h *Host) appear(tree *os.File, volume, machine string, blocks bool) error {
	target, now, err := h.mountAt(h.shown(machine, volume))
	if err == nil && now != nil {
		err = hostmount.Unmount(target)
	}
	if err != nil {
		return err
	}
	flags := uint64(unix.MOUNT_ATTR_NODEV)
	if blocks {
		flags = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	}
	return put(tree, h.shown(machine), volume, flags)
}

// usersFor is a user namespace by which a machine shall see whose the files in a volume at dir are; nil
// if they are whose they shall be. In a volume that was made when its host had no users to give
// they are the host's own, and so nobody's in a machine that was made since; in one that came back from
// the trash to another workspace they are its former one's. (To change the owner of
// each file would take as long as there are many, and be done half when it is cut off.)
func (h *Host) usersFor(dir, volume, machine string) (*os.File, error) {
	rec, err := h.place(volume).record()
	if err != nil {
		return nil, nil // Ensure, which goes before, tells what is wrong with it
	}
	first, err := h.cfg.MachineUser(machine)
	if err != nil || first == 0 {
		return nil, err
	}
	if rec.HostUsers {
		return netns.NewUsers(first, resource.MachineUIDs)
	}
	// A workspace's users begin at a multiple of their number, so that of the root tells whose they are.
	var root unix.Stat_t
	if err := hostmount.Do(func() error { return unix.Stat(dir, &root) }); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	from := root.Uid / resource.MachineUIDs * resource.MachineUIDs
	if from == 0 || from == first {
		return nil, nil
	}
	return netns.ShiftUsers(from, first, resource.MachineUIDs)
}

// sees says whether a machine has a volume as it shall, by the number of its device. All that should be are
// asked for whenever the host's state changes: it reads no list of mounts, of which there are as many.
func (h *Host) sees(want uint64, volume, machine string) bool {
	have, mounted, err := device(h.shown(machine, volume))
	return err == nil && mounted && have == want
}

// clone returns what is mounted on the host as a mount that is nowhere yet. If there are users, a user namespace,
// what belongs to its own users on the disk belongs to those that they are here.
func clone(own *mountinfo.Info, users *os.File) (tree *os.File, err error) {
	err = hostmount.Do(func() error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, own.Mountpoint, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("clone mount %s: %w", own.Mountpoint, err)
		}
		tree = os.NewFile(uintptr(fd), own.Mountpoint)
		return nil
	})
	if err != nil {
		return nil, err
	}
	dev, err := deviceOf(int(tree.Fd()), "", unix.AT_EMPTY_PATH)
	if err == nil && dev != unix.Mkdev(uint32(own.Major), uint32(own.Minor)) {
		err = saidf("it was unmounted meanwhile")
	}
	if err == nil && users != nil {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
		if err = unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			err = fmt.Errorf("set mount's users: %w", err)
		}
	}
	if err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// put mounts what is nowhere yet as the folder name in dir, a tmpfs: a machine's, or that of
// bricks. All is found by handle: once that tmpfs was taken away, with its machine, nothing can be mounted there any more,
// least of all in what the machine's removal deletes.
func put(tree *os.File, dir, name string, flags uint64) error {
	return hostmount.Do(func() error { return putHere(tree, dir, name, flags) })
}

func putHere(tree *os.File, dir, name string, flags uint64) error {
	in, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(in)
		var kind unix.Statfs_t
		if err = unix.Fstatfs(in, &kind); err == nil && kind.Type != unix.TMPFS_MAGIC {
			err = fs.ErrNotExist
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return saidf("it was started before machines could have volumes, and can have some once it is started anew: " +
			"have it replaced (scale the workspace down and up again), or restart its host")
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := unix.Mkdirat(in, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(dir, name), Err: err}
	}
	failpoint.Reach("volume/attach/folder-made")
	at, err := unix.Openat(in, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	defer unix.Close(at)
	// Before anybody sees it: flags that are set later reach no machine.
	attr := unix.MountAttr{Attr_set: flags, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set mount's flags: %w", err)
	}
	err = unix.MoveMount(int(tree.Fd()), "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// Detach takes a volume from a machine's sight. What somebody in there has mounted elsewhere, or
// has open, stays his. None there is no error.
func (h *Host) Detach(volume, machine string) error {
	err := errors.Join(checkUID("volume", volume), checkUID("machine", machine))
	if err == nil {
		err = h.detach(volume, machine)
	}
	if err == nil {
		err = h.takeBack(volume)
	}
	return h.outward("detach volume "+volume+" from machine "+machine, err)
}

func (h *Host) detach(volume, machine string) error {
	if err := hostmount.Unmount(h.shown(machine, volume)); err != nil {
		return err
	}
	// It takes no folder away in which something is, or is mounted.
	err := hostmount.Do(func() error { return os.Remove(h.shown(machine, volume)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Attached are the machines that see volumes, by the volumes' UIDs.
func (h *Host) Attached() (map[string][]wire.VolumeAttachment, error) {
	real, infos, err := hostmount.Infos(h.cfg.Machines)
	if err != nil {
		return nil, err
	}
	all := map[string][]wire.VolumeAttachment{}
	for _, info := range infos {
		// MACHINE/volumes/VOLUME
		rest, _ := filepath.Rel(real, info.Mountpoint)
		part := strings.Split(rest, "/")
		if len(part) != 3 || part[1] != wire.VolumesOfMachine || checkUID("volume", part[2]) != nil {
			continue
		}
		a := wire.VolumeAttachment{MachineUID: part[0]}
		if !slices.Contains(all[part[2]], a) {
			all[part[2]] = append(all[part[2]], a)
		}
	}
	return all, nil
}

// mountAt is what is mounted at dir, on top; nil if nothing is. real is dir without links.
func (h *Host) mountAt(dir string) (real string, top *mountinfo.Info, err error) {
	real, infos, err := hostmount.Infos(dir)
	if i := slices.IndexFunc(infos, func(m *mountinfo.Info) bool { return m.Mountpoint == real }); i >= 0 {
		top = infos[i]
	}
	return real, top, err
}
