package volume

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// A shared volume is made from a file by the host of its first brick, through a client as machines have them: what is put into a
// brick beside GlusterFS is in none. The client is the host's own, so that what belongs to user 0 there is 0 in bricks.

// Imported says how far the file of a shared volume is that this host writes into it, and what there is to say.
func (h *Host) Imported(v wire.Volume) (state, message string) {
	disk := v
	disk.UID = v.Brick
	err := checkUID("brick", v.Brick)
	if err == nil {
		err = h.locate(disk)
	}
	if err != nil {
		return importBegun, h.words("how far it is can't be read", err).Error()
	}
	return h.tellImport(h.place(v.Brick))
}

// intoShared has an import go into a shared volume.
func (h *Host) intoShared(u *unpacker, v wire.Volume) (err error) {
	if u.tree, err = h.cfg.Shared.Take(v.UID, wire.ImportMount); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errUnmounted
		}
		return err
	}
	// What has the name in a file is refused: see member.
	u.mark = ".import-" + v.UID
	fd, err := unix.Openat(int(u.tree.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "the volume's root", Err: err}
	}
	u.root = os.NewFile(uintptr(fd), u.mark)
	return nil
}

// syncShared is sync for a shared volume, which FUSE can't sync as a whole: the data of each file is when that is written, and
// all else with the log of the bricks' file systems, which is written in order. A file that was made, deleted and then written
// to has that written when it is synced, with all that came before; and nothing of it is left. A folder can't be synced:
// GlusterFS does nothing then.
func (u *unpacker) syncShared() error {
	if u.file != nil {
		if err := u.file.Sync(); err != nil {
			return err
		}
	}
	root := int(u.root.Fd())
	failed := func(op string, err error) error { return &os.PathError{Op: op, Path: u.mark, Err: err} }
	if err := unix.Unlinkat(root, u.mark, 0); err != nil && !errors.Is(err, unix.ENOENT) { // of one that was killed
		return failed("unlink", err)
	}
	var was unix.Stat_t // the root's times stay what the file has said
	if err := unix.Fstat(root, &was); err != nil {
		return failed("stat", err)
	}
	fd, err := unix.Openat(root, u.mark, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed("create", err)
	}
	f := os.NewFile(uintptr(fd), u.mark)
	defer f.Close()
	if err := unix.Unlinkat(root, u.mark, 0); err != nil {
		return failed("unlink", err)
	}
	if err := unix.UtimesNanoAt(root, "", []unix.Timespec{was.Atim, was.Mtim}, unix.AT_EMPTY_PATH); err != nil {
		return failed("set times", err)
	}
	if _, err := f.Write([]byte{0}); err != nil {
		return err
	}
	return f.Sync()
}

// empty deletes all that is in a volume. It blocks as long as there is something, until ctx is done.
func (u *unpacker) empty(ctx context.Context) error {
	all, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(u.root.Fd())))
	if err != nil {
		return err
	}
	defer all.Close()
	return emptyFolder(ctx, all)
}

// emptyFolder is RemoveAll of all that is in a folder, which ends between two names: the next try has less to do.
func emptyFolder(ctx context.Context, folder *os.Root) error {
	for {
		dir, err := folder.Open(".")
		if err != nil {
			return err
		}
		names, err := dir.Readdirnames(readNames)
		_ = dir.Close()
		if errors.Is(err, io.EOF) {
			return nil
		}
		for _, name := range names {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := removeIn(ctx, folder, name); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

func removeIn(ctx context.Context, folder *os.Root, name string) error {
	err := folder.Remove(name)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	below, err := folder.OpenRoot(name)
	if err != nil {
		return err
	}
	defer below.Close()
	if err := emptyFolder(ctx, below); err != nil {
		return err
	}
	return folder.Remove(name)
}

// fullShared is an error of a shared volume, of which the hosts' disks may be full and not the volume: GlusterFS says the same.
// What it keeps back, a hundredth, isn't free to it either; what a brick can't write in one piece may be left.
func (u *unpacker) fullShared(err error) error {
	if u.mark == "" || !errors.Is(err, unix.ENOSPC) {
		return err
	}
	var fs unix.Statfs_t
	if e := unix.Fstatfs(int(u.root.Fd()), &fs); e != nil {
		return errors.Join(err, saidError{poolTrouble, e})
	}
	if fs.Bavail > fs.Blocks/32 && fs.Ffree > fs.Files/100 {
		return saidError{"a disk with one of its copies is full", err}
	}
	return err
}

// unfitError is of a file with something in it that the volume can't have: what tenants read.
type unfitError struct{ text string }

func (e unfitError) Error() string { return e.text }
