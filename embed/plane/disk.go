package plane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often it is looked at what a plane takes of the disk: as often as it
	// says itself.
	lookEvery = 15 * time.Second
	// spareBytes are for what SQLite has beside its tables: its log, what it sorts, and pages
	// of what was deleted until they are given back.
	spareBytes = 512 << 20
	// maxOwnFiles: it has five.
	maxOwnFiles = 1000
)

// ErrOvergrown is returned by Run for a plane that takes more of the disk than its
// database can come to. What it says of that itself nobody has to believe: somebody
// may have come to run code in it.
var ErrOvergrown = errors.New("it takes more of the disk than a plane can")

// mayTake is what the plane's own folder may come to, in bytes: the last that the guard
// lets pass ends at one and a half of the limit.
func (p *Plane) mayTake() int64 {
	if p.cfg.Datastore.Kind == Etcd {
		return p.spare
	}
	return p.cfg.Datastore.limit()/2*3 + p.spare
}

// sweep removes from the plane's own folder what isn't its database's, and looks at what
// that takes. The plane must not run.
func (p *Plane) sweep() error {
	own, err := os.OpenRoot(p.path(ownFolder))
	if err != nil {
		return err
	}
	defer own.Close()
	entries, err := fs.ReadDir(own.FS(), ".")
	if err != nil {
		return err
	}
	database := filepath.Base(databaseFile)
	its := []string{database, database + "-journal", database + "-wal", database + "-shm", filepath.Base(roomFile)}
	for _, e := range entries {
		if !slices.Contains(its, e.Name()) {
			if err := own.RemoveAll(e.Name()); err != nil {
				return fmt.Errorf("remove what a plane left: %w", err)
			}
		}
	}
	return p.look()
}

// watchDisk looks again and again until ctx is done, or the plane has overgrown.
func (p *Plane) watchDisk(ctx context.Context, overgrown context.CancelCauseFunc) {
	tick := time.NewTicker(p.lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := p.look()
		if errors.Is(err, ErrOvergrown) {
			overgrown(err)
			return
		}
		if err != nil {
			p.cfg.Log.Warn("what a plane takes of the disk is not known", "err", err)
		}
	}
}

// look measures what the plane takes of the disk. ErrOvergrown.
func (p *Plane) look() error {
	bytes, files, err := takenBelow(p.path(ownFolder))
	if pid := p.PID(); err == nil && pid != 0 {
		var more int64
		more, err = takenUnnamed(pid)
		bytes += more
	}
	if err != nil {
		return err
	}
	p.taken.Store(bytes)
	if may := p.mayTake(); bytes > may || files > maxOwnFiles {
		return fmt.Errorf("%w: %d MiB of %d, in %d files, in %s. It is stopped, and what is not its database there is removed; "+
			"if it is the database that is too large, put a backup in its place",
			ErrOvergrown, bytes>>20, may>>20, files, p.path(ownFolder))
	}
	return nil
}

// takenBelow is what files and folders below dir take, in bytes. It stops counting behind
// the most that there may be. Links lead nowhere.
func takenBelow(dir string) (bytes int64, files int, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(_ string, e fs.DirEntry, err error) error {
		if files > maxOwnFiles {
			return fs.SkipAll
		}
		if err == nil {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				files++
				bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		return err
	})
	return bytes, files, err
}

// takenUnnamed is what files take that a process has open, or in its memory, and that
// no folder has any more.
func takenUnnamed(pid int) (bytes int64, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	for _, of := range []string{"fd", "map_files"} {
		dir := filepath.Join("/proc", strconv.Itoa(pid), of)
		names, err := os.ReadDir(dir)
		if err != nil {
			return 0, gone(err)
		}
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, name.Name()), &st); err != nil {
				if err := gone(err); err != nil {
					return 0, err
				}
				continue
			}
			if id := (inode{st.Dev, st.Ino}); st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0 && !seen[id] {
				seen[id] = true
				bytes += st.Blocks * 512
			}
		}
	}
	return bytes, nil
}

// gone is nil for what has ended, or was closed, meanwhile.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
