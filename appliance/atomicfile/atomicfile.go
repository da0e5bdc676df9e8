// Package atomicfile writes files that are whole or not there at all, also
// after a power cut: a reader sees the old content or the new, never half of
// either.
//
// Parties: whoever writes files that must survive a crash. Any package may
// import it; it imports nothing of ours but the points at which tests kill it.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/failpoint"
)

// Write puts data at path with exactly the given mode, whatever the umask. The
// folder must exist. When Write returns nil, the file survives a power cut.
func Write(path string, data []byte, mode fs.FileMode) error {
	return WriteFunc(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteGroup is Write of a file for its owner, root, and a group to read; group 0 is
// root's own.
func WriteGroup(path string, gid int, data []byte) error {
	mode := fs.FileMode(0o640)
	if gid == 0 {
		mode = 0o600
	}
	return write(path, mode, gid, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteJSON puts v at path as JSON, for its owner alone.
func WriteJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(path, data, 0o600)
}

// WriteFunc is Write for content that is made while it is written. If content
// returns an error, what stood at path before still does.
func WriteFunc(path string, mode fs.FileMode, content func(io.Writer) error) error {
	return write(path, mode, os.Getegid(), content)
}

func write(path string, mode fs.FileMode, gid int, content func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := temporary(dir, "."+filepath.Base(path)+".tmp-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// Closed at the end: as long as it is open nobody takes it for left over.
	defer f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	if err := content(f); err != nil {
		return err
	}
	if err := f.Chown(-1, gid); err != nil {
		return err
	}
	if err := f.Chmod(mode.Perm()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	failpoint.Reach("file/written")
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// From here on the new file stands; only its survival is open.
	if err := SyncDir(dir); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// temporary makes a locked file whose name begins with prefix, and removes those
// that nobody holds a lock on: a writer was killed, and secrets may be in them.
//
// The file lies beside its target, for rename is atomic only within one file
// system. CreateTemp gives it mode 0600, so a secret is never open to others for
// a moment. One fixed name was rejected: two writers at once would mix.
func temporary(dir, prefix string) (*os.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			removeAbandoned(filepath.Join(dir, e.Name()))
		}
	}
	for {
		f, err := os.CreateTemp(dir, prefix+"*")
		if err != nil {
			return nil, err
		}
		// Somebody else may hold the lock for the moment between his lock and his
		// removal; the name tells whether he was there.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
		if _, err := os.Lstat(f.Name()); err == nil {
			return f, nil
		}
		f.Close()
	}
}

// removeAbandoned removes a temporary file unless a writer has it. What goes
// wrong is left to the next writer.
func removeAbandoned(name string) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = os.Remove(name)
	}
}

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "file/written", In: failpoint.Both, Cuts: "the new content stands beside the file, which is still the old one"},
	}
}

// SyncDir makes the names in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
