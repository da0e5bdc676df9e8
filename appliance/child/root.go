package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root is all that a child sees of the file system, each where it is here: its
// executable, these, its own processes in /proc, /dev/null and /dev/urandom. The rest
// is an empty file system of its own that nobody can write to. What is mounted
// here later, or below one of these, isn't seen.
type Root struct {
	Read  []string // files and folders; those that are not there are left out
	Write []string // folders, for data: nothing in them can be run
}

// rootSize is more than the names of some folders take.
const rootSize = "size=256k,nr_inodes=256,mode=755"

// enter makes the calling thread, and what it starts, see nothing else. The thread must be
// locked, must not be the process's first, whose view /proc/self tells of, and must end with its goroutine.
//
// It is done here, and not by the child, so that the child needs no privilege, and
// not by a program in between, whose start would be a part of the child's.
func (r *Root) enter(executable, dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("a file system of its own: %w", err)
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	const data = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	type part struct {
		path  string
		flags uintptr
		fd    int
		dir   bool
	}
	parts := []part{
		{path: "/dev/null", flags: unix.MS_NOSUID | unix.MS_NOEXEC},
		{path: "/dev/urandom", flags: unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_RDONLY},
		{path: executable, flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY},
	}
	for _, path := range r.Read {
		parts = append(parts, part{path: path, flags: data | unix.MS_RDONLY})
	}
	for _, path := range r.Write {
		parts = append(parts, part{path: path, flags: data})
	}
	// All are opened before the new root is mounted, over whatever is at dir.
	var there []part
	for _, p := range parts {
		p.fd, err = unix.Open(p.path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: p.path, Err: err}
		}
		defer unix.Close(p.fd)
		var st unix.Stat_t
		if err := unix.Fstat(p.fd, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: p.path, Err: err}
		}
		p.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		there = append(there, p)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", data, rootSize); err != nil {
		return fmt.Errorf("mount a new root: %w", err)
	}
	for _, p := range there {
		target := filepath.Join(dir, p.path)
		if err := place(target, p.dir); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", p.fd), target, "", unix.MS_BIND, ""); err != nil {
			return &fs.PathError{Op: "show", Path: p.path, Err: err}
		}
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|p.flags, ""); err != nil {
			return &fs.PathError{Op: "show with less rights", Path: p.path, Err: err}
		}
	}
	if err := place(filepath.Join(dir, "proc"), true); err != nil {
		return err
	}
	// Processes of others are not even listed.
	if err := unix.Mount("proc", filepath.Join(dir, "proc"), "proc", data|unix.MS_RDONLY, "hidepid=ptraceable"); err != nil {
		return fmt.Errorf("mount /proc, which wants Linux 5.8 or newer: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return &fs.PathError{Op: "chdir", Path: dir, Err: err}
	}
	// The old root comes to lie over the new one, and is taken off (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return &fs.PathError{Op: "chdir", Path: "/", Err: err}
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|data, ""); err != nil {
		return fmt.Errorf("make the new root read-only: %w", err)
	}
	return nil
}

// place makes an empty folder or file to mount on, unless it is there.
func place(path string, dir bool) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o444)
}
