package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The disk may be that of planes, images and logs too. Each of them stops at a bound of
// its own while room is left; whatever passes those, a file of this size is held
// for etcd alone, and given up when the disk is full: enough to log in and
// delete for weeks. It is made anew once there is room for it.
const (
	heldBytes = 512 << 20
	// heldShare: of a small disk it is a twentieth.
	heldShare = 20
	heldFile  = "room"
)

// holdRoom holds room, or gives it up, and returns what is free after that. spent says that
// what should be held isn't.
func (s *Server) holdRoom() (free room, spent bool, err error) {
	file := filepath.Join(s.cfg.Dir, heldFile)
	if err := os.Remove(file + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) { // killed while it was made
		return free, false, err
	}
	free, size, err := s.disk()
	if err != nil {
		return free, false, err
	}
	want := min(heldBytes, size/heldShare)
	held := int64(0)
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err == nil {
		held = st.Blocks * 512 // a copy of the folder may have a file that takes nothing
	}
	switch {
	case held > 0 && !free.atLeast(1):
		s.cfg.Log.Warn("the room that etcd holds is given up: its disk is nearly full", "dir", s.cfg.Dir, "free", free.bytes)
		if err := os.Remove(file); err != nil {
			return free, true, fmt.Errorf("etcd: give up the room that is held: %w", err)
		}
		free, _, err = s.disk()
		return free, true, err
	case held < want && free.bytes-want >= 2*minFreeDisk && free.atLeast(2):
		if err := allocate(file, want); err != nil {
			// As without: the bounds of others still stand before etcd's own.
			s.cfg.Log.Warn("no room is held for etcd", "dir", s.cfg.Dir, "err", err)
			return free, false, nil
		}
		free, _, err = s.disk()
		return free, false, err
	}
	return free, held < want, nil
}

// allocate makes a file that takes size bytes of the disk. It has its name only once it does.
func allocate(file string, size int64) error {
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Sync(), f.Close())
	if err == nil {
		return os.Rename(file+".new", file)
	}
	if gone := os.Remove(file + ".new"); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// disk is what the disk has left, and its size in bytes.
func (s *Server) disk() (free room, size int64, err error) {
	var f unix.Statfs_t
	if err := s.statfs(s.cfg.Dir, &f); err != nil {
		return room{}, 0, fmt.Errorf("etcd: free space of %s: %w", s.cfg.Dir, err)
	}
	return roomOf(f), int64(f.Blocks) * f.Bsize, nil
}
