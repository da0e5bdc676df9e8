package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
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
	// maxOpen is how many open files and pieces of memory are looked at: half a second's
	// work. A plane with 250 machines has some thousand.
	maxOpen = 200_000
)

// ErrOvergrown is returned by Run for a plane that takes more of the disk than its
// database can come to. What it says of that itself nobody has to believe: somebody
// may have come to run code in it.
var ErrOvergrown = errors.New("it takes more of the disk than a plane can")

// mayTake is what the plane's own folder may come to, in bytes: the last that the guard
// lets pass ends at one and a half of the limit, and of an earlier, larger one the database
// may have its size yet. It must run then: deleting makes it smaller.
func (p *Plane) mayTake() int64 {
	if p.cfg.Datastore.Kind == Etcd {
		return p.spare
	}
	return max(p.cfg.Datastore.limit(), p.hadLimit)/2*3 + p.spare
}

// noteLimit takes down the largest limit that the datastore has ever had, beside what the
// plane can write. The plane must not run.
func (p *Plane) noteLimit() error {
	if p.cfg.Datastore.Kind == Etcd {
		return nil
	}
	type had struct{ LimitBytes int64 }
	var before had
	data, err := os.ReadFile(p.path(limitFile))
	if err == nil {
		err = json.Unmarshal(data, &before)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the largest limit of a plane's datastore: %w: if the file is damaged, remove it", err)
	}
	p.hadLimit = max(before.LimitBytes, p.cfg.Datastore.limit())
	if p.hadLimit == before.LimitBytes {
		return nil
	}
	if data, err = json.Marshal(had{p.hadLimit}); err != nil {
		return err
	}
	return p.write(limitFile, data)
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

// look measures what the plane takes of the disk. ErrOvergrown. Until the plane is ready,
// SQLite's log may come to as much again: it is cut when the database is opened, which a plane
// that was stopped for its log has to come to. look removes nothing: what has a name that nobody
// knows may be what an operator put there, such as the database before a restore, and who runs
// code in a plane could call a file what he likes.
func (p *Plane) look() error {
	bytes, files, err := takenBelow(p.path(ownFolder))
	if err != nil {
		return err
	}
	pids, err := p.pids()
	if err != nil {
		return err
	}
	more, open, err := takenUnnamed(pids)
	if err != nil {
		return err
	}
	bytes += more
	p.taken.Store(bytes)
	if log, err := os.Lstat(p.path(databaseFile + "-wal")); err == nil && !p.isReady.Load() {
		bytes -= min(log.Sys().(*syscall.Stat_t).Blocks*512, p.mayTake())
	}
	if open > maxOpen {
		return fmt.Errorf("%w: its processes have more than %d files open, which nobody can measure", ErrOvergrown, maxOpen)
	}
	if may := p.mayTake(); bytes > may || files > maxOwnFiles {
		database := filepath.Base(databaseFile)
		return fmt.Errorf("%w: %d MiB of %d, in %d files, in %s. It is stopped until that is less: move away from there "+
			"what is not %s, %s-wal or %s-shm, copies too; if it is the database that is too large, raise workspaces.datastore_limit "+
			"or put a backup in its place",
			ErrOvergrown, bytes>>20, may>>20, files, p.path(ownFolder), database, database, database)
	}
	return nil
}

// pids are all processes of the plane: it has one, and somebody who runs code in it may
// have made others.
func (p *Plane) pids() (all []int, err error) {
	if p.cfg.Cgroup != "" {
		if all, err = cgroup.Procs(p.cfg.Cgroup); err != nil {
			return nil, err
		}
		// A thread of ours that starts the plane is in its group for a moment.
		all = slices.DeleteFunc(all, func(pid int) bool { return pid == os.Getpid() })
	}
	if pid := p.PID(); pid != 0 && !slices.Contains(all, pid) {
		all = append(all, pid)
	}
	return all, nil
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

// takenUnnamed is what files take that processes have open, or in their memory, and that
// no folder has any more, and how many they have. It stops counting behind the most that
// it looks at.
func takenUnnamed(pids []int) (bytes int64, open int, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	for _, pid := range pids {
		for _, of := range []string{"fd", "map_files"} {
			dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), of))
			for err == nil && open <= maxOpen {
				var names []string
				names, err = dir.Readdirnames(1024)
				for _, name := range names {
					open++
					var st unix.Stat_t
					if err := gone(unix.Fstatat(int(dir.Fd()), name, &st, 0)); err != nil {
						_ = dir.Close()
						return 0, 0, err
					}
					if id := (inode{st.Dev, st.Ino}); st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0 && !seen[id] {
						seen[id] = true
						bytes += st.Blocks * 512
					}
				}
			}
			_ = dir.Close() // nil too
			if err != nil && !errors.Is(err, io.EOF) && gone(err) != nil {
				return 0, 0, err
			}
		}
	}
	return bytes, open, nil
}

// gone is nil for what has ended, or was closed, meanwhile.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
