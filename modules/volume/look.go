package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

// lookTime is how long a look waits for the pool, and for its file systems, all together. A
// hundred answer within a millisecond.
const lookTime = time.Second

// asker asks what may never answer, by a goroutine of its own, and not again before it has
// answered. The zero value is ready; it is safe for concurrent use.
type asker[T any] struct {
	mu   sync.Mutex
	last *answer[T]
}

type answer[T any] struct {
	since time.Time
	done  chan struct{} // closed when the others are set
	value T
	err   error
}

// errSilent is returned when what was asked has not answered.
var errSilent = errors.New("has not answered since")

// begin asks, unless it is asked already.
func (a *asker[T]) begin(do func() (T, error)) *answer[T] {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil {
		select {
		case <-a.last.done:
		default:
			return a.last
		}
	}
	now := &answer[T]{since: time.Now(), done: make(chan struct{})}
	a.last = now
	go func() {
		defer close(now.done)
		now.value, now.err = do()
	}()
	return now
}

// get waits for the answer; not at all, if it was asked for long ago.
func (a *answer[T]) get(patience <-chan time.Time, what string) (T, error) {
	if time.Since(a.since) > lookTime {
		never := make(chan time.Time)
		close(never)
		patience = never
	}
	select {
	case <-a.done:
		return a.value, a.err
	case <-patience:
	}
	select { // both were there
	case <-a.done:
		return a.value, a.err
	default:
		var none T
		return none, saidError{fmt.Sprintf("%s %v %s", what, errSilent, a.since.UTC().Format(time.RFC3339)), errSilent}
	}
}

func (a *asker[T]) ask(patience <-chan time.Time, what string, do func() (T, error)) (T, error) {
	return a.begin(do).get(patience, what)
}

// List says of every volume of which there is something what is seen of it; of what is used of a
// snapshot, what its file takes. It blocks for twice lookTime at most. The error says of which pools nothing can be said:
// they are not there, or don't answer.
func (h *Host) List() ([]wire.VolumeReport, error) { return h.list(false) }

// list is List of volumes, or of bricks.
func (h *Host) list(bricks bool) (all []wire.VolumeReport, away error) {
	var volumes []found
	mounted := map[string]bool{}
	for _, l := range h.look() {
		if l.err != nil {
			away = errors.Join(away, l.err)
			continue
		}
		volumes = append(volumes, l.volumes...)
		real, infos, err := hostmount.Infos(l.dir)
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, info := range infos {
			if rest, err := filepath.Rel(real, info.Mountpoint); err == nil && filepath.Base(rest) == "mount" {
				mounted[filepath.Dir(rest)] = true
			}
		}
	}
	answers := h.askVolumes(volumes, mounted)
	patience := time.After(lookTime)
	for _, f := range volumes {
		if f.rec.Brick != bricks {
			continue
		}
		r := wire.VolumeReport{UID: f.uid, Key: f.rec.Key, NetworkID: f.rec.NetworkID, SizeBytes: f.sizeBytes,
			Came: f.rec.Move, Fallen: !mounted[f.uid]}
		if f.err != nil && (f.sizeBytes > 0 || !errors.Is(f.err, fs.ErrNotExist)) { // else it is being made
			r.Message = h.said("its record can't be read: "+operators, f.err).Error()
		}
		if f.rec.Snapshot {
			r.Ready, r.UsedBytes, r.Fallen = f.sizeBytes > 0, f.takesBytes, f.sizeBytes == 0
			all = append(all, r)
			continue
		}
		r.Import = f.rec.Import
		if mounted[f.uid] {
			used, err := answers[f.uid].get(patience, "its file system")
			r.Ready, r.UsedBytes = err == nil && f.rec.Owned, used
			if r.Fallen = errors.Is(err, unix.EIO); r.Fallen {
				r.Message = "its file system has stopped after an error of the disk below; it is mounted anew once " +
					"nobody has it open: delete the pods that use it"
			} else if err != nil {
				r.Message = h.words("its file system can't be looked at", err).Error()
			}
		}
		if r.Import == importBegun && r.Message == "" {
			r.Import, r.Message = h.tellImport(f.place)
		}
		all = append(all, r)
	}
	return all, away
}

// askVolumes asks each file system that is mounted.
func (h *Host) askVolumes(all []found, mounted map[string]bool) map[string]*answer[int64] {
	h.mu.Lock()
	defer h.mu.Unlock()
	askers, answers := map[string]*asker[int64]{}, map[string]*answer[int64]{}
	for _, f := range all {
		if !mounted[f.uid] {
			continue
		}
		a := h.asked[f.uid]
		if a == nil {
			a = &asker[int64]{}
		}
		askers[f.uid] = a
		dir := f.place.image().Mount
		answers[f.uid] = a.begin(func() (int64, error) {
			if f.place.raw() {
				return usedOfBlocks(f)
			}
			return usedBytes(dir)
		})
	}
	h.asked = askers
	return answers
}

// usedBytes is what is used of a mounted file system. unix.EIO: it has stopped.
func usedBytes(dir string) (used int64, err error) {
	err = hostmount.Do(func() error {
		var st unix.Stat_t
		var f unix.Statfs_t
		if err := unix.Stat(dir, &st); err != nil { // which statfs doesn't tell
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if err := unix.Statfs(dir, &f); err != nil {
			return &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
		used = int64(f.Blocks-f.Bfree) * f.Bsize
		return nil
	})
	return used, err
}
