package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// lookTime is how long List waits for file systems, all together. A hundred answer within a
// millisecond.
const lookTime = time.Second

// look is a question to a file system: it may never be answered.
type look struct {
	since time.Time
	done  chan struct{} // closed when the others are set
	used  int64
	err   error
}

// List says of every volume of which there is something what is seen of it. What is used is
// told in 64ths of the size. It blocks for lookTime at most.
func (h *Host) List() ([]wire.VolumeReport, error) {
	uids, err := h.uids()
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	real, infos, err := hostmount.Infos(h.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	mounted := map[string]bool{}
	for _, info := range infos {
		if rest, err := filepath.Rel(real, info.Mountpoint); err == nil && filepath.Base(rest) == "mount" {
			mounted[filepath.Dir(rest)] = true
		}
	}
	looks := h.ask(uids, mounted)
	var all []wire.VolumeReport
	for _, uid := range uids {
		p := h.place(uid)
		rec, err := p.record()
		r := wire.VolumeReport{UID: uid, Key: rec.Key, NetworkID: rec.NetworkID}
		if err != nil {
			r.Message = "its record can't be read: " + err.Error()
		}
		if info, err := os.Stat(p.image().File); err == nil {
			r.SizeBytes = info.Size()
		}
		if l := looks[uid]; l == nil {
			r.Fallen = true
		} else {
			select {
			case <-l.done:
				r.Fallen = errors.Is(l.err, unix.EIO)
				r.Ready, r.UsedBytes = l.err == nil && rec.Owned, roughly(l.used, r.SizeBytes)
				if r.Fallen {
					r.Message = "its file system has stopped after an error of the disk below; it is mounted anew once " +
						"nobody has it open: delete the pods that use it"
				} else if l.err != nil {
					r.Message = l.err.Error()
				}
			default:
				r.Message = "its file system has not answered since " + l.since.UTC().Format(time.RFC3339)
			}
		}
		all = append(all, r)
	}
	return all, nil
}

// ask asks each file system that is mounted, unless it has not answered an earlier question.
func (h *Host) ask(uids []string, mounted map[string]bool) map[string]*look {
	h.mu.Lock()
	defer h.mu.Unlock()
	looks, fresh := map[string]*look{}, []*look{}
	for _, uid := range uids {
		if !mounted[uid] {
			continue
		}
		l := h.asked[uid]
		if l == nil || l.answered() {
			l = &look{since: time.Now(), done: make(chan struct{})}
			fresh = append(fresh, l)
			dir := h.place(uid).image().Mount
			go func() {
				defer close(l.done)
				l.used, l.err = usedBytes(dir)
			}()
		}
		looks[uid] = l
	}
	h.asked = looks
	patience := time.After(lookTime)
	for _, l := range fresh {
		select {
		case <-l.done:
		case <-patience:
			return looks
		}
	}
	return looks
}

func (l *look) answered() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
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

// roughly rounds what is used up to 64ths of the size: not each look finds something new.
func roughly(used, size int64) int64 {
	step := max(size/64, 1)
	return min((used+step-1)/step*step, size)
}

// poolName is the one pool's.
const poolName = "default"

// Pools are where this host can have volumes. Free is told in whole GiB. It blocks for
// milliseconds.
func (h *Host) Pools() []resource.Pool {
	if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
		return nil
	}
	var f unix.Statfs_t
	if err := unix.Statfs(h.cfg.Dir, &f); err != nil {
		return nil
	}
	return []resource.Pool{{
		Name:      poolName,
		Path:      h.cfg.Dir,
		SizeBytes: int64(f.Blocks) * f.Bsize,
		FreeBytes: int64(f.Bavail) * f.Bsize >> 30 << 30,
		Reflink:   h.canReflink(),
	}}
}

// canReflink says whether files in the pool can share blocks. It is found out once.
func (h *Host) canReflink() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reflink == nil {
		err := tryReflink(h.cfg.Dir)
		for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EXDEV, unix.EISDIR, unix.ENOENT} {
			if err == nil || errors.Is(err, e) {
				h.reflink = new(err == nil)
			}
		}
		if h.reflink == nil { // that passes
			return false
		}
	}
	return *h.reflink
}

// tryReflink has two files without names share a block.
func tryReflink(dir string) error {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), dir)
		defer files[i].Close()
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return err
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd()))
}

// Fill says how full the pool is, if it has volumes, for problems: its path, and an error for each
// of the two, or nil.
func (h *Host) Fill() (path string, filling, full error) {
	uids, err := h.uids()
	var f unix.Statfs_t
	if err != nil || len(uids) == 0 || unix.Statfs(h.cfg.Dir, &f) != nil {
		return h.cfg.Dir, nil, nil
	}
	used := f.Blocks - f.Bfree
	percent := used * 100 / max(used+f.Bavail, 1) // as df says it
	text := fmt.Errorf("%d %% of %s are used, %.1f GiB are free", percent, h.cfg.Dir, float64(int64(f.Bavail)*f.Bsize)/(1<<30))
	switch {
	case percent >= fullPercent:
		return h.cfg.Dir, nil, text
	case percent >= fillingPercent:
		return h.cfg.Dir, text, nil
	}
	return h.cfg.Dir, nil, nil
}
