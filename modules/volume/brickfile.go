package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A shared volume goes out as a file by a copy of one of its bricks, in which files are as GlusterFS keeps them: by the machines'
// own numbers of users, each with one more name below a folder of GlusterFS's, and with the times that clients see beside those
// that this host's kernel has set.

// openBrick opens the root of a shared volume in the file system of one of its bricks, and closes that one's root.
func openBrick(root *os.File) (*os.File, error) {
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), brickRoot, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if errors.Is(err, unix.ENOENT) {
		return nil, lasting{saidf("it is none of a shared volume")}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: brickRoot, Err: err}
	}
	return os.NewFile(uintptr(fd), brickRoot), nil
}

// What GlusterFS keeps for itself in the root of a brick.
const (
	glusterFolder  = ".glusterfs"
	glusterOrphans = ".glusterfs-anonymous-inode-" // then the volume's ID: what one brick has of files that others have deleted
)

// ofGluster says whether a name in the root of a brick is of something that clients don't see.
func ofGluster(name string) bool {
	id, is := strings.CutPrefix(name, glusterOrphans)
	return name == glusterFolder || is && len(id) == len("00000000-0000-0000-0000-000000000000")
}

// glusterTimes is where a brick keeps the times of a file that all bricks have the same of: a version, flags, and those of
// change, modification and access (posix-metadata-disk.h). None is there of what was made before GlusterFS had them.
const glusterTimes = "trusted.glusterfs.mdata"

// brickTime sets a file's time of modification to the one that clients see.
func brickTime(path string, st *unix.Stat_t) {
	const head, size = 1 + 8, 1 + 8 + 3*16
	var times [2 * size]byte
	n, err := unix.Lgetxattr(path, glusterTimes, times[:])
	if err != nil || n != size || times[0] != 1 {
		return
	}
	at := times[head+16:]
	st.Mtim.Sec, st.Mtim.Nsec = int64(binary.BigEndian.Uint64(at)), int64(binary.BigEndian.Uint64(at[8:]))
}

// procPath is a path to a name in a folder that is open, for calls that take no handle: nobody else has the folder.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}
