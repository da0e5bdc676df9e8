package volume

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// poolName is the one pool's.
const poolName = "default"

// markName is the file that tells a pool's disk from the folder that it is mounted at.
const markName = "pool.json"

// mark is in a pool with volumes, and beside what else the host keeps: both, or the pool's disk
// is away.
type mark struct {
	ID string `json:"id"`
}

func readMark(file string) (m mark, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// markIn is the pool's own mark.
func (h *Host) markIn() string { return filepath.Join(h.cfg.Dir, markName) }

// present says why the pool is not there. One of which this host has not heard is.
func (h *Host) present() error {
	known, err := readMark(h.cfg.Mark)
	if err != nil || known.ID == "" {
		return err
	}
	own, err := readMark(h.markIn())
	if err != nil || own == known {
		return err
	}
	return fmt.Errorf("%w at %s: mount it there; if it is lost for good, delete the file %s, and then "+
		"the volumes that were on it", errAway, h.cfg.Dir, h.cfg.Mark)
}

var errAway = errors.New("the disk with volumes is not")

// begin makes the folder of a volume that is new, in a pool that is marked as one that has volumes:
// as one step, or who removes the last of the others would take the mark away in between.
func (h *Host) begin(v wire.Volume) error {
	h.marking.Lock()
	defer h.marking.Unlock()
	if err := h.markPool(); err != nil || v.Made {
		return err
	}
	return os.MkdirAll(string(h.place(v.UID)), 0o700)
}

// markPool marks the pool as one that has volumes, before it has any. The caller holds h.marking.
func (h *Host) markPool() error {
	known, err := readMark(h.cfg.Mark)
	if err != nil || known.ID != "" {
		return err
	}
	own, err := readMark(h.markIn())
	if err != nil {
		return err
	}
	if own.ID == "" {
		own.ID = rand.Text()
		if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
			return err
		}
		if err := atomicfile.WriteJSON(h.markIn(), own); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(h.cfg.Mark), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(h.cfg.Mark, own)
}

// unmarkPool forgets a pool that has no volumes.
func (h *Host) unmarkPool() error {
	h.marking.Lock()
	defer h.marking.Unlock()
	uids, err := h.uids()
	if err != nil || len(uids) > 0 {
		return err
	}
	for _, file := range []string{h.cfg.Mark, h.markIn()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// room is what a look at the pool has found.
type room struct {
	volumes []found
	disk    unix.Statfs_t
	reflink bool
}

// found is a volume's folder.
type found struct {
	uid        string
	rec        record
	err        error // of the record
	sizeBytes  int64
	takesBytes int64 // of the pool
}

// pool looks at the pool. A disk that doesn't answer keeps nobody waiting for more than lookTime.
func (h *Host) pool() (room, error) {
	return h.askPool.ask(time.After(lookTime), "the disk with volumes", func() (r room, err error) {
		if err := h.present(); err != nil {
			return r, err
		}
		if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
			return r, err
		}
		if err := unix.Statfs(h.cfg.Dir, &r.disk); err != nil {
			return r, &os.PathError{Op: "statfs", Path: h.cfg.Dir, Err: err}
		}
		r.reflink = h.canReflink()
		uids, err := h.uids()
		for _, uid := range uids {
			f := found{uid: uid}
			p := h.place(uid)
			f.rec, f.err = p.record()
			if info, err := os.Stat(p.image().File); err == nil {
				f.sizeBytes = sizeOf(info, f.rec.Encrypted)
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					f.takesBytes = st.Blocks * 512
				}
			}
			r.volumes = append(r.volumes, f)
		}
		return r, err
	})
}

// answers says why the pool is not there, or does not answer within lookTime.
func (h *Host) answers() error {
	_, err := h.askPresent.ask(time.After(lookTime), "the disk with volumes", func() (none struct{}, err error) {
		return none, h.present()
	})
	return err
}

// Pools are where this host can have volumes, those that are away too. Free is told in whole
// GiB. It blocks for lookTime at most.
func (h *Host) Pools() []resource.Pool {
	r, err := h.pool()
	if err != nil {
		return []resource.Pool{{Name: poolName, Path: h.cfg.Dir, Message: err.Error()}}
	}
	return []resource.Pool{{
		Name:      poolName,
		Path:      h.cfg.Dir,
		SizeBytes: int64(r.disk.Blocks) * r.disk.Bsize,
		FreeBytes: int64(r.disk.Bavail) * r.disk.Bsize >> 30 << 30,
		Reflink:   r.reflink,
		Copies:    true,
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

// Trouble says what is wrong with the pool, for problems: its path, and for each of PoolAway,
// PoolFilling and PoolFull an error, or nil. Of one without volumes nothing is said. It blocks for
// lookTime at most.
func (h *Host) Trouble() (path string, away, filling, full error) {
	r, err := h.pool()
	if err != nil || len(r.volumes) == 0 {
		return h.cfg.Dir, err, nil, nil
	}
	free := r.disk.Bavail
	used := r.disk.Blocks - r.disk.Bfree
	percent := used * 100 / max(used+free, 1) // as df says it
	text := fmt.Errorf("%d %% of %s are used, %.1f GiB are free", percent, h.cfg.Dir, float64(int64(free)*r.disk.Bsize)/(1<<30))
	switch {
	case percent >= fullPercent:
		full = text
	case percent >= fillingPercent:
		filling = text
	}
	return h.cfg.Dir, nil, filling, full
}
